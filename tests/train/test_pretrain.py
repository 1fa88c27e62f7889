"""Pretraining that goes on with the weights of another model, an imported one: the same model, ids and bits."""

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError, run_main
from common.metrics_file import read_metrics
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from evaluate.perplexity import main as perplexity
from model.chat_template.template import Template, load_template
from model.checkpoint import locate, weights
from model.interop.hf_export import export_hf
from model.interop.hf_import import import_hf
from model.tokenizer import load_tokenizer
from tests.helpers import hf_checkpoints
from train.initial_checkpoint import find_newest_pretrain_run
from train.pretrain import main

CPU = torch.device("cpu")
SIZES = {
    "sequence_length": 128,
    "batch_tokens": 512,
    "micro_batch": 2,
    "max_steps": 6,
    "checkpoint.every": 2,
    "checkpoint.keep": 9,
    "evaluation.every": 3,
    "evaluation.tokens": 1000,
    "evaluation.sample_tokens": 3,
    "device": "cpu",
}
CLOCKS = {"tokens_per_second", "mfu", "memory_bytes"}


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rate is measured whenever a trainer is made, which takes long beside other work."""
    monkeypatch.setattr("train.throughput.matmul_flops", lambda *_: 1e9)


@pytest.fixture(scope="module")
def base(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported run: a byte-level tokenizer, Llama 3's template, grouped heads, its own stop ids."""
    folder = tmp_path_factory.mktemp("base")
    with gzip.open(
        root / "assets/sample/pretrain/jsonl/stories.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        texts = [json.loads(line)["text"][:200] for line, _ in zip(file, range(300), strict=False)]
    hf_checkpoints.save_hf_checkpoint(
        folder / "theirs",
        hf_checkpoints.train_byte_level_bpe(texts),
        ("<|begin|>", "<|end|>"),
        hf_checkpoints.LLAMA3_TEMPLATE,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    )
    import_hf(folder / "theirs", folder / "imported")
    return folder / "imported"


@pytest.fixture(scope="module")
def data(base: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little text, prepared with the base's tokenizer."""
    folder = tmp_path_factory.mktemp("data") / "stories"
    source = SourceGroup("jsonl", (str(root / "assets/sample/pretrain/jsonl/stories.jsonl.gz"),))
    prepare_groups(
        [source], folder, locate.resolve_checkpoint(base), PrepareOptions(workers=1, limit=60)
    )
    return folder


def train(root: Path, run: Path, **words: Any) -> None:
    """`python -m train.pretrain` in this process."""
    said = {"run": run, **SIZES, **words}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(
            sys,
            "argv",
            [
                "pretrain",
                *(word for key, value in said.items() for word in (f"--{key}", str(value))),
            ],
        )
        main()


@pytest.fixture(scope="module")
def whole(root: Path, base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on from the base that was never stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.throughput.matmul_flops", lambda *_: 1e9)
        train(root, run, base=base, data=data)
    return run


def records(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in CLOCKS}
        for record in read_metrics(run)
    ]


def state(run: Path) -> tuple[bytes, bytes]:
    folder = locate.step_folder(run, 6)
    return (folder / "model.safetensors").read_bytes(), (
        folder / "optimizer.safetensors"
    ).read_bytes()


def test_continued_pretraining_starts_from_base_weights_and_config(
    whole: Path, base: Path, tmp_path: Path
) -> None:
    """Training from nothing under the name of a base; a run with another shape, tokenizer, template or other stop ids."""
    before, tokenizer = weights.load_checkpoint(base, CPU)
    after, again = weights.load_checkpoint(whole, CPU)
    assert (
        after.config == before.config
        and again.fingerprint == tokenizer.fingerprint
        and len(after.config.stop_ids) > 2
    )
    assert (
        load_template(locate.resolve_checkpoint(whole))
        == load_template(locate.resolve_checkpoint(base))
        != Template()
    )
    start = next(record["loss"] for record in records(whole) if record["kind"] == "train")
    ends = [record["loss"] for record in records(whole) if record["kind"] == "validation"]
    moved = [
        (a - b).norm() / b.norm()
        for a, b in zip(after.parameters(), before.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.7  # of other random weights it would be 1.4
    assert start > ends[0] > ends[1]
    export_hf(whole, tmp_path / "out")
    assert weights.load_checkpoint(tmp_path / "out", CPU)[0].config == before.config


def test_resume_is_bit_identical_without_base(
    root: Path, whole: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    """A resumed run that begins with the base again, or cannot go on where the base is gone."""
    run, moved = tmp_path / "run", tmp_path / "base"
    shutil.copytree(base, moved)
    train(root, run, base=moved, data=data)
    assert state(run) == state(whole)
    for step in (3, 4, 6):
        shutil.rmtree(locate.step_folder(run, step))
    shutil.rmtree(moved)
    train(root, run, base=moved, data=data)
    assert state(run) == state(whole) and records(run) == records(whole)


def test_text_is_prepared_with_base_tokenizer(
    root: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus in ids that the base gives other meanings."""
    monkeypatch.setattr("data.corpora.resolver.PREPARED_FOLDER", tmp_path / "prepared")
    lines = (
        f"第{n}天，山上的庙里有{n * 37 % 101}个和尚在讲第{n * 53 % 89}个故事。" for n in range(300)
    )
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    train(root, tmp_path / "run", base=base, data=tmp_path / "text.txt", max_steps=1)
    (made,) = (tmp_path / "prepared").iterdir()
    assert (
        load_tokenizer(made).fingerprint
        == load_tokenizer(locate.resolve_checkpoint(base)).fingerprint
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"data": "{shards}"}, "was prepared with another tokenizer"),
        ({"tokenizer": "assets/tokenizer"}, "--tokenizer is for a run without a base"),
        (
            {"sequence_length": 1024, "batch_tokens": 1024},
            "max_position_embeddings 512 is shorter than a row (1024)",
        ),
        ({"base": "nowhere"}, "nowhere is not a checkpoint"),
    ],
)
def test_options_incompatible_with_base_are_refused(
    words: dict[str, Any],
    message: str,
    root: Path,
    base: Path,
    data: Path,
    shard_set: Path,
    tmp_path: Path,
) -> None:
    """Hours of training on ids of another vocabulary."""
    said = {"base": base, "data": data, **words}
    if words.get("data"):
        said["data"] = shard_set
    with pytest.raises(UserError) as caught:
        train(root, tmp_path / "run", **said)
    assert message in str(caught.value) and not (tmp_path / "run" / "run.json").exists()


def test_adding_or_changing_base_on_resume_is_refused(
    root: Path, whole: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    """`make pretrain BASE=…` that silently continues the run of the day before."""
    run = tmp_path / "run"
    shutil.copytree(whole, run, symlinks=True)
    for other, said in (
        ({"base": whole}, "was made with another base"),
        ({}, "began with the weights of .*: go on with"),
    ):
        with pytest.raises(UserError, match=said):
            train(root, run, data=data, **other)


def test_continued_run_can_be_evaluated_and_fine_tuned(
    root: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pretraining run that counts as fine-tuned because it had a base."""
    monkeypatch.setattr(sys, "argv", ["perplexity", "--checkpoint", str(whole), "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        run_main(perplexity)
    assert ended.value.code == 0 and "perplexity" in capsys.readouterr().out
    assert find_newest_pretrain_run(whole.parent) == whole


def test_every_checkpoint_stores_total_steps(whole: Path) -> None:
    """A run stopped half way that is taken for a whole one, because nothing in it tells."""
    left = locate.find_remaining_steps(whole, locate.step_folder(whole, 4))
    assert left == locate.RemainingSteps(4, 6, f"make pretrain RUN={whole}")
    assert locate.find_remaining_steps(whole, locate.resolve_checkpoint(whole)) is None
