"""Pretraining from a base, and on the shipped sample in place of a corpus."""

import gzip
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common import run_layout
from common.errors import UserError, run_main
from common.yaml_files import load_yaml
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
from tests.helpers.training import checkpoint_bytes, comparable_records, to_arguments
from train import pretrain
from train.options import PretrainOptions
from train.pretrain_run import resolve_run
from train.run.default_base import find_newest_run_of
from train.run.spec import RunSpec

CPU = torch.device("cpu")
SIZES = {
    "sequence_length": 128,
    "batch_tokens": 512,
    "micro_batch": 2,
    "max_steps": 6,
    "checkpoint.every": 2,
    "checkpoint.keep": 9,
    "evaluation.every": 3,
    "evaluation.tokens": 500,
    "evaluation.sample_tokens": 2,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def base(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported run: byte-level tokenizer, Llama 3 template, grouped heads, its own stop ids."""
    folder = tmp_path_factory.mktemp("base")
    stories = root / "assets/sample/pretrain/jsonl/stories.jsonl.gz"
    with gzip.open(stories, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"][:200] for line, _ in zip(file, range(300), strict=False)]
    hf_checkpoints.save_hf_checkpoint(
        folder / "hf",
        hf_checkpoints.train_byte_level_bpe(texts),
        ("<|begin|>", "<|end|>"),
        hf_checkpoints.LLAMA3_TEMPLATE,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    )
    import_hf(folder / "hf", folder / "imported")
    return folder / "imported"


@pytest.fixture(scope="module")
def data(base: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little text, prepared with the base's tokenizer."""
    folder = tmp_path_factory.mktemp("data") / "stories"
    source = SourceGroup("jsonl", (str(root / "assets/sample/pretrain/jsonl/stories.jsonl.gz"),))
    tokenizer = locate.resolve_checkpoint(base)
    prepare_groups([source], folder, tokenizer, PrepareOptions(workers=1, limit=60))
    return folder


def train(root: Path, run: Path, **options: Any) -> None:
    """Run `python -m train.pretrain` in this process."""
    arguments = to_arguments({"run": run, **SIZES, **options})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("train.monitoring.throughput.matmul_flops", lambda *_: 1e9)
        patch.setattr(sys, "argv", ["pretrain", *arguments])
        pretrain.main()


@pytest.fixture(scope="module")
def whole(root: Path, base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, from a copy of the base beside it."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(base, folder / "base")
    train(root, folder / "run", base=folder / "base", data=data)
    return folder / "run"


@pytest.mark.slow
def test_continued_pretraining_starts_from_base_weights_and_config(
    whole: Path, base: Path, tmp_path: Path
) -> None:
    """Catch random weights, and another shape, tokenizer, template or stop ids than the base's."""
    base_model, base_tokenizer = weights.load_checkpoint(base, CPU)
    model, tokenizer = weights.load_checkpoint(whole, CPU)
    assert model.config == base_model.config and len(model.config.stop_ids) > 2
    assert tokenizer.fingerprint == base_tokenizer.fingerprint
    template = load_template(locate.resolve_checkpoint(whole))
    assert template == load_template(locate.resolve_checkpoint(base)) != Template()
    distances = [
        float(((after - before).norm() / before.norm()).detach())
        for after, before in zip(model.parameters(), base_model.parameters(), strict=True)
    ]
    assert 0 < max(distances) < 0.7  # it would be 1.4 from other random weights
    records = comparable_records(whole)
    first_loss = next(record["loss"] for record in records if record["kind"] == "train")
    losses = [record["loss"] for record in records if record["kind"] == "validation"]
    assert first_loss > losses[0] > losses[1]
    export_hf(whole, tmp_path / "out")
    assert weights.load_checkpoint(tmp_path / "out", CPU)[0].config == base_model.config


@pytest.mark.slow
def test_resume_is_bit_identical_without_base(
    root: Path, whole: Path, data: Path, tmp_path: Path
) -> None:
    """Catch a resumed run that starts from the base again, or that needs it."""
    run, copied_base = tmp_path / "run", whole.with_name("base")
    shutil.copytree(whole, run, symlinks=True)
    for step in (3, 4, 6):
        shutil.rmtree(run_layout.step_folder(run, step))
    copied_base.rename(tmp_path / "base")
    try:
        train(root, run, base=copied_base, data=data)
    finally:
        (tmp_path / "base").rename(copied_base)
    assert checkpoint_bytes(run, 6) == checkpoint_bytes(whole, 6)
    assert comparable_records(run) == comparable_records(whole)


@pytest.mark.slow
def test_text_is_prepared_with_base_tokenizer(
    root: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch a corpus in ids that the base gives other meanings."""
    monkeypatch.setattr("data.corpora.resolver.PREPARED_FOLDER", tmp_path / "prepared")
    lines = (
        f"第{n}天，山上的庙里有{n * 37 % 101}个和尚在讲第{n * 53 % 89}个故事。" for n in range(300)
    )
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    train(root, tmp_path / "run", base=base, data=tmp_path / "text.txt", max_steps=1)
    (prepared,) = (tmp_path / "prepared").iterdir()
    expected = load_tokenizer(locate.resolve_checkpoint(base)).fingerprint
    assert load_tokenizer(prepared).fingerprint == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "{shard_set}"}, "was prepared with another tokenizer"),
        ({"tokenizer": "assets/tokenizer"}, "--tokenizer is for a run without a base"),
        (
            {"sequence_length": 1024, "batch_tokens": 1024},
            "max_position_embeddings 512 is shorter than the 1024 tokens of a row",
        ),
        ({"base": "nowhere"}, "nowhere is n"),
    ],
)
def test_options_incompatible_with_base_are_refused(
    options: dict[str, Any],
    message: str,
    root: Path,
    base: Path,
    data: Path,
    shard_set: Path,
    tmp_path: Path,
) -> None:
    """Prevent hours of training on ids of another vocabulary."""
    options = {"base": base, "data": data, **options}
    options["data"] = str(options["data"]).format(shard_set=shard_set)
    with pytest.raises(UserError) as refused:
        train(root, tmp_path / "run", **options)
    assert message in str(refused.value)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_changed_base_on_resume_is_refused(
    root: Path, whole: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    """Prevent `make pretrain BASE=…` from resuming the run of the day before."""
    run = tmp_path / "run"
    shutil.copytree(whole, run, symlinks=True)
    old = locate.weights_sha256(locate.resolve_checkpoint(base))[:8]
    new = locate.weights_sha256(locate.resolve_checkpoint(whole))[:8]
    for base_option, value in ((whole, new), ("null", "none")):
        with pytest.raises(UserError, match=f"base: {old} -> {value}"):
            train(root, run, data=data, base=base_option)


@pytest.mark.slow
def test_base_added_to_a_run_from_scratch_is_refused(
    root: Path, whole: Path, data: Path, tmp_path: Path
) -> None:
    """Prevent a run from random weights from being resumed as one from a base."""
    run = tmp_path / "run"
    shape = {"model.hidden_size": 32, "model.num_attention_heads": 4, "model.num_hidden_layers": 2}
    train(root, run, data=data, max_steps=1, **shape)
    new = locate.weights_sha256(locate.resolve_checkpoint(whole))[:8]
    with pytest.raises(UserError, match=f"base: none -> {new}"):
        train(root, run, data=data, max_steps=1, base=whole, **shape)


def test_continued_run_can_be_evaluated_and_fine_tuned(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catch a pretraining run that counts as fine-tuned because it had a base."""
    monkeypatch.setattr(sys, "argv", ["perplexity", "--checkpoint", str(whole), "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        run_main(perplexity)
    assert ended.value.code == 0 and "perplexity" in capsys.readouterr().out
    assert find_newest_run_of("pretrain", whole.parent) == whole


def test_every_checkpoint_stores_total_steps(whole: Path) -> None:
    """Catch a run stopped half way that is taken for a complete one."""
    remaining = locate.find_remaining_steps(whole, run_layout.step_folder(whole, 4))
    assert remaining == locate.RemainingSteps(4, 6, f"make pretrain RUN={whole}")
    assert locate.find_remaining_steps(whole, locate.resolve_checkpoint(whole)) is None


@pytest.mark.slow
def test_sample_in_place_of_a_corpus_limits_epochs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevent a day of a GPU on 17,000 epochs of 100 kB, because `make data` was forgotten."""
    monkeypatch.chdir(tmp_path)
    config = load_yaml(root / "configs" / "pretrain-43m.yaml")

    def resolve(max_steps: int) -> RunSpec:
        values = {**config, "data": "zhihu", "device": "cpu", "max_steps": max_steps}
        return resolve_run(PretrainOptions.model_validate(values))

    with pytest.raises(UserError) as refused:
        resolve(10_000)
    message = str(refused.value)
    assert "\n" not in message
    assert re.search(r"10,000 steps are 17,\d\d\d epochs of the shipped sample", message)
    assert "zhihu is not prepared: prepare it first (make data DATA=zhihu)" in message
    advice = re.search(r"--max_steps (\d+)$", message)
    assert advice is not None
    max_steps = int(advice[1])
    assert resolve(max_steps).data.sets[0].name == "zhihu"
    with pytest.raises(UserError, match="epochs of the shipped"):
        resolve(max_steps + 1)
    assert not Path("runs").exists()
