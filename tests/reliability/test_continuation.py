"""Resuming with other options: what determines a run is compared, the rest may change."""

import shutil
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.files import write_atomic
from common.run_layout import list_steps, step_folder
from data.prepare.options import PrepareOptions
from tests.fault_injection.kill import Scenario
from tests.helpers.prepare import prepare_source
from tests.helpers.training import comparable_records, to_arguments
from train.pretrain import main


def refusal(
    scenario: Scenario, run: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> list[str]:
    """Return the differences that resuming with more arguments is refused for."""
    command = ["train.pretrain", *scenario.arguments, "--run", str(run), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(UserError) as refused:
        main()
    first, *differences, remedy = str(refused.value).splitlines()
    assert first == f"{run} was started with other values (old -> new):"
    assert "RUN=runs/NAME" in remedy and f"{run}/config.yaml" in remedy
    # Other data may be the same text, prepared by another version, and a run cannot become longer:
    # in both cases its weights may go on in another run.
    assert (f"BASE={run}" in remedy) == (
        any(line.startswith("  data: ") for line in differences)
        or all(line.startswith(("  max_steps: ", "  epochs: ")) for line in differences)
    )
    return [line.strip() for line in differences]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value", "difference"),
    [
        ("seed", 7, "seed: 0 -> 7"),
        ("max_steps", 30, "max_steps: 20 -> 30"),
        ("batch_tokens", 128, "batch_tokens: 64 -> 128"),
        ("sequence_length", 64, "sequence_length: 32 -> 64"),
        ("model.hidden_size", 64, "model.hidden_size: 32 -> 64"),
        ("model.rope_theta", 5000, "model.rope_theta: 500000.0 -> 5000.0"),
        ("optimizer.lr", 0.5, "optimizer.lr: 0.002 -> 0.5"),
        ("optimizer.name", "adamw", "optimizer.name: muon -> adamw"),
        ("schedule.final", 0.5, "schedule.final: 0.0 -> 0.5"),
    ],
)
def test_changed_option_is_refused_by_name(
    pretrain: Scenario,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: object,
    difference: str,
) -> None:
    """Prevent a resumed run that trains something else, and a refusal without the values."""
    differences = refusal(pretrain, finished, monkeypatch, f"--{option}", str(value))
    assert difference in differences
    # A model has values that follow from others, such as the size of a head.
    group = option.partition(".")[0]
    assert all(line.startswith(group) for line in differences)


@pytest.mark.slow
def test_changed_data_and_tokenizer_are_refused(
    pretrain: Scenario, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Catch other text, or the same text in other ids."""
    text = tmp_path / "text.jsonl"
    write_atomic(
        text, "".join(f'{{"text": "第{number}个故事，{"很长" * 20}。"}}\n' for number in range(40))
    )
    options = PrepareOptions(workers=1)
    old_data = pretrain.arguments[pretrain.arguments.index("--data") + 1]
    prepare_source("jsonl", [str(text)], tmp_path / "other", Path(old_data), options)
    (line,) = refusal(pretrain, finished, monkeypatch, "--data", str(tmp_path / "other"))
    assert line.startswith(f"data: {old_data} (content ")
    assert f" -> {tmp_path / 'other'} (content " in line
    changed = swap_pieces(Path(old_data), tmp_path / "changed")
    prepare_source("jsonl", [str(text)], tmp_path / "changed-ids", changed, options)
    lines = refusal(pretrain, finished, monkeypatch, "--data", str(tmp_path / "changed-ids"))
    assert [line.partition(":")[0] for line in lines] == ["data", "tokenizer"]


def swap_pieces(original: Path, folder: Path) -> Path:
    """Write the tokenizer of a folder with the pieces of two ids exchanged; return `folder`."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((original / "tokenizer.model").read_bytes())
    one, other = model.pieces[500], model.pieces[501]
    one.piece, other.piece = other.piece, one.piece
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return folder


@pytest.mark.slow
def test_changeable_options_keep_data_order(
    pretrain: Scenario, finished: Path, whole: Path
) -> None:
    """Catch a micro-batch or an interval that changes the order of rows."""
    for step in list_steps(finished):
        if step > 18:
            shutil.rmtree(step_folder(finished, step))
    start = list_steps(finished)[-1]
    changes = {
        "micro_batch": 2,
        "log_every": 1,
        "checkpoint.every": 2,
        "checkpoint.keep": 1,
        "evaluation.every": 5,
        "evaluation.tokens": 100,
        "evaluation.sample_tokens": 0,
    }
    scenario = Scenario(pretrain.module, [*pretrain.arguments, *to_arguments(changes)])
    child = scenario.start(finished)
    assert child.wait() == 0 and f"continues after step {start}" in child.output, child.output
    records = [record for record in comparable_records(finished) if record["kind"] == "train"]
    steps = [record["step"] for record in records if record["step"] > start]
    assert start < 20 and steps == list(range(start + 1, 21))
    last = records[-1]
    expected = [record for record in comparable_records(whole) if record["kind"] == "train"][-1]
    assert (last["tokens"], last["epoch"]) == (expected["tokens"], expected["epoch"])
    # The gradient of the last rows, up to the rounding of another order of summation.
    assert last["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
