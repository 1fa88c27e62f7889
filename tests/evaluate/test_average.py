"""`python -m evaluate.average` compares averages with the newest checkpoint on the dev split."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.files import write_checksummed_json, write_manifest
from common.run_layout import RUN_FILE, step_folder
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import ShardSet
from evaluate import average
from evaluate.kinds.summaries import summarize_articles
from evaluate.metrics.rouge import compute_rouge
from model.chat_template.template import Template
from model.checkpoint import weights
from model.checkpoint.averaging import average_checkpoints
from model.tokenizer.base import Tokenizer
from tests.helpers.random_llama import random_llama


@pytest.mark.slow
def test_figures_are_those_of_the_averaged_weights(
    run_command: Callable[..., None], root: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents figures of other weights, other records, or of the difference the other way."""
    sample = root / "assets/sample/summary/csl"
    files = {}
    for name, count in (("train", 2), ("dev", 4)):
        lines = (sample / f"{name}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        files[name] = tmp_path / f"{name}.tsv"
        files[name].write_text("".join(lines[:count]), encoding="utf-8")
    group = SourceGroup("csl", (str(files["train"]),), (str(files["dev"]),))
    tokenizer_folder = root / "assets/tokenizer"
    prepare_groups([group], tmp_path / "set", tokenizer_folder, PrepareOptions(workers=1))
    run = tmp_path / "run"
    folders = [step_folder(run, step) for step in (1, 2)]
    for seed, folder in enumerate(folders):
        folder.mkdir(parents=True)
        model = random_llama(
            seed, vocab_size=tokenizer.vocab_size, hidden_size=32, max_position_embeddings=512
        )
        weights.save_checkpoint(model, tokenizer, folder)
        Template().save(folder)
        write_manifest(folder, {"step": seed + 1})
    fingerprint = ShardSet.open(tmp_path / "set").fingerprint
    record = {
        "shards": [str(tmp_path / "set")],
        "fingerprints": {"data": [{"set": fingerprint, "weight": 1.0}], "template": {}},
    }
    write_checksummed_json(run / RUN_FILE, record)
    out = tmp_path / "out.json"
    arguments = ["--checkpoint", run, "--last", 2, "--limit", 3, "--max_new_tokens", 4]
    run_command(average, *arguments, "--device", "cpu", "--json", out)

    split = ShardSet.open(tmp_path / "set").load_records("validation")
    records = [split.record(index) for index in range(3)]
    means = []
    for each in (folders[1:], folders):
        model, _ = average_checkpoints(each, torch.device("cpu"))
        articles = [record.article for record in records]
        answers = summarize_articles(model, tokenizer, Template(), articles, max_new_tokens=4)
        scores = [
            compute_rouge(answer.text, record.title, case="lower")["1"].f
            for answer, record in zip(answers, records, strict=True)
        ]
        means.append(sum(scores) / 3)
    [figures] = json.loads(out.read_text(encoding="utf-8"))["averages"]["2"]["sets"].values()
    rouge = figures["rouge_1"]
    assert rouge["newest"]["mean"] == pytest.approx(means[0])
    assert rouge["average"]["mean"] == pytest.approx(means[1])
    assert rouge["change"]["mean"] == pytest.approx(means[1] - means[0])
    loss = figures["loss"]
    assert loss["change"]["low"] <= loss["average"]["mean"] - loss["newest"]["mean"]
    assert loss["newest"]["mean"] != loss["average"]["mean"]
