"""What a run may not go on with is refused by name; what may change may, and the order of data stays the same."""

import gc
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.files import write_atomic
from common.run_layout import list_steps, step_folder
from data.prepare.options import PrepareOptions
from tests.fault_injection.kill import ROOT, Scenario, read_comparable_metrics
from tests.helpers.prepare import prepare_source
from train.pretrain import main


def go_on(scenario: Scenario, run: Path, monkeypatch: pytest.MonkeyPatch, *change: str) -> str:
    """What the same command with a change says before it trains."""
    monkeypatch.setattr(
        sys, "argv", ["train.pretrain", *scenario.arguments, "--run", str(run), *change]
    )
    with pytest.raises(UserError) as refused:
        main()
    said = str(refused.value)
    # A process that fails ends; here what it held in its frames, the lock of the run, has to go by itself.
    del refused
    gc.collect()
    return said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--seed", "7"], ["another seed (0, now 7)", "go on with --seed 0"]),
        (["--max_steps", "50"], ["another max_steps (40, now 50)", "go on with --max_steps 40"]),
        (["--batch_tokens", "512"], ["another batch_tokens", "go on with --batch_tokens 256"]),
        (
            ["--sequence_length", "32"],
            ["another sequence_length", "go on with --sequence_length 64"],
        ),
        (["--model.hidden_size", "64"], ["another model (hidden_size: 32, now 64, "]),
        (["--model.rope_theta", "5000"], ["another model (rope", "now 5000"]),
        (["--optimizer.lr", "0.5"], ["another optimizer (lr: ", "now 0.5)", "config.yaml says"]),
        (["--optimizer.name", "adamw"], ["another optimizer (name: muon, now adamw)"]),
        (["--schedule.final", "0.5"], ["another schedule (final: ", "now 0.5)"]),
    ],
)
def test_changed_option_is_refused_by_name(
    pretrain: Scenario,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: list[str],
    words: list[str],
) -> None:
    """A continuation that silently is something else, or a refusal that leaves the user to guess."""
    said = go_on(pretrain, finished, monkeypatch, *change)
    assert all(
        word in said for word in [*words, "name a new run: RUN=runs/NAME (--run runs/NAME)"]
    ), said
    assert said.count("\n") == 0


def test_changed_data_or_tokenizer_is_refused(
    pretrain: Scenario, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same words under other ids."""
    texts = tmp_path / "text.jsonl"
    write_atomic(
        texts, "".join(f'{{"text": "第{number}个故事，{"很长" * 20}。"}}\n' for number in range(40))
    )
    prepare_source(
        "jsonl",
        [str(texts)],
        tmp_path / "other",
        ROOT / "assets/tokenizer",
        PrepareOptions(workers=1),
    )
    said = go_on(pretrain, finished, monkeypatch, "--data", str(tmp_path / "other"))
    was = pretrain.arguments[pretrain.arguments.index("--data") + 1]
    assert said == (
        f"{finished} was trained on {was} ({Path(was).name}) and not on {tmp_path / 'other'} (other): go on with "
        f"DATA={was} (--data {was}), or name a new run: RUN=runs/NAME (--run runs/NAME)"
    )
    changed = retokenized(tmp_path)
    prepare_source("jsonl", [str(texts)], tmp_path / "words", changed, PrepareOptions(workers=1))
    said = go_on(pretrain, finished, monkeypatch, "--data", str(tmp_path / "words"))
    assert "another tokenizer: prepare the data with the run's own tokenizer" in said


def test_adding_base_to_scratch_run_is_refused(
    pretrain: Scenario, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`make pretrain BASE=runs/x` where the run's default name is taken: a sentence about the weights that it began with."""
    base = shutil.copytree(step_folder(finished, list_steps(finished)[0]), tmp_path / "base")
    said = go_on(pretrain, finished, monkeypatch, "--base", str(base))
    assert said == (
        f"{finished} is there already and began from nothing: to train the weights of {base}, name a new run: "
        "RUN=runs/NAME (--run runs/NAME)"
    )


def retokenized(folder: Path) -> Path:
    """The shipped tokenizer with the pieces of two ids exchanged."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((ROOT / "assets/tokenizer/tokenizer.model").read_bytes())
    one, other = model.pieces[500], model.pieces[501]
    one.piece, other.piece = other.piece, one.piece
    (folder / "changed").mkdir()
    (folder / "changed/tokenizer.model").write_bytes(model.SerializeToString())
    return folder / "changed"


@pytest.mark.slow
def test_changeable_options_keep_data_order(
    pretrain: Scenario, finished: Path, whole: Path
) -> None:
    """A micro-batch, a rhythm of saving or of measuring that changes which rows come when."""
    for step in [step for step in list_steps(finished) if step > 36]:
        shutil.rmtree(step_folder(finished, step))
    start = list_steps(finished)[-1]
    changes = [
        "--micro_batch",
        "1",
        "--log_every",
        "1",
        "--checkpoint.every",
        "2",
        "--checkpoint.keep",
        "1",
        "--evaluation.every",
        "5",
        "--evaluation.tokens",
        "300",
        "--evaluation.sample_tokens",
        "0",
    ]
    child = Scenario(pretrain.module, [*pretrain.arguments, *changes]).start(finished)
    assert child.wait() == 0 and f"continues after step {start}" in child.output, child.output

    def trained(run: Path) -> dict[int, dict[str, Any]]:
        return {
            record["step"]: record
            for record in read_comparable_metrics(run)
            if record["kind"] == "train"
        }

    mine, right = trained(finished), trained(whole)
    assert start < 40 and [step for step in mine if step > start] == list(range(start + 1, 41))
    last = mine[40], right[40]
    assert last[0]["tokens"] == last[1]["tokens"] and last[0]["epoch"] == last[1]["epoch"]
    # The gradient of the very last rows, to the rounding of another order of addition.
    assert last[0]["grad_norm"] == pytest.approx(last[1]["grad_norm"], rel=1e-3)
