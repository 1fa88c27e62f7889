"""Resuming with other options: some are refused by name, others keep the order of the data."""

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


def resume_error(
    scenario: Scenario, run: Path, monkeypatch: pytest.MonkeyPatch, *change: str
) -> str:
    """Resume a run with changed options; return the error message."""
    monkeypatch.setattr(
        sys, "argv", ["train.pretrain", *scenario.arguments, "--run", str(run), *change]
    )
    with pytest.raises(UserError) as refused:
        main()
    message = str(refused.value)
    # A real process ends here; in this one the frames of the traceback keep the run lock open.
    del refused
    gc.collect()
    return message


@pytest.mark.parametrize(
    ("change", "parts"),
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
    parts: list[str],
) -> None:
    """Prevents a resumed run that silently differs, and an error that does not say what to do."""
    message = resume_error(pretrain, finished, monkeypatch, *change)
    assert all(
        part in message for part in [*parts, "name a new run: RUN=runs/NAME (--run runs/NAME)"]
    ), message
    assert message.count("\n") == 0


def test_changed_data_or_tokenizer_is_refused(
    pretrain: Scenario, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prevents training on data whose ids mean other text."""
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
    message = resume_error(pretrain, finished, monkeypatch, "--data", str(tmp_path / "other"))
    was = pretrain.arguments[pretrain.arguments.index("--data") + 1]
    assert message == (
        f"{finished} was trained on {was} ({Path(was).name}) and not on "
        f"{tmp_path / 'other'} (other): go on with "
        f"DATA={was} (--data {was}), or name a new run: RUN=runs/NAME (--run runs/NAME)"
    )
    changed = retokenized(tmp_path)
    prepare_source(
        "jsonl", [str(texts)], tmp_path / "retokenized", changed, PrepareOptions(workers=1)
    )
    message = resume_error(pretrain, finished, monkeypatch, "--data", str(tmp_path / "retokenized"))
    assert "another tokenizer: prepare the data with the run's own tokenizer" in message


def test_adding_base_to_scratch_run_is_refused(
    pretrain: Scenario, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prevents an obscure error for `make pretrain BASE=runs/x` with an existing run name."""
    base = shutil.copytree(step_folder(finished, list_steps(finished)[0]), tmp_path / "base")
    message = resume_error(pretrain, finished, monkeypatch, "--base", str(base))
    assert message == (
        f"{finished} is there already and began from nothing: "
        f"to train the weights of {base}, name a new run: "
        "RUN=runs/NAME (--run runs/NAME)"
    )


def retokenized(folder: Path) -> Path:
    """Return the tokenizer of `assets` with the pieces of two ids swapped."""
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
    pretrain: Scenario, finished: Path, uninterrupted: Path
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

    resumed, expected = trained(finished), trained(uninterrupted)
    assert start < 40 and [step for step in resumed if step > start] == list(range(start + 1, 41))
    last = resumed[40], expected[40]
    assert last[0]["tokens"] == last[1]["tokens"] and last[0]["epoch"] == last[1]["epoch"]
    # The gradient of the very last rows, to the rounding of another order of addition.
    assert last[0]["grad_norm"] == pytest.approx(last[1]["grad_norm"], rel=1e-3)
