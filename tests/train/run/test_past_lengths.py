"""What a run says about its long rows before it starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.files import write_json
from tests.helpers.training import build_spec
from train.options import PretrainOptions
from train.run.initial_checkpoint import InitialCheckpoint
from train.run.past_lengths import advise_on_row_length, describe_pasts, share_behind
from train.run.spec import RunSpec, TrainingPlan

NEW_POSITIONS = "tokens, and the base was trained with 512: it does not know the other positions"


def build_case(
    folder: Path, shard_set: Path, length: int, trained_length: int | None, **changes: Any
) -> RunSpec:
    """Return the spec of a run with rows of a length, from a base that was trained with another."""
    spec = build_spec(folder / "run", shard_set, sequence_length=length, batch_tokens=length)
    config = replace(spec.model_config, max_position_embeddings=1 << 16)
    if trained_length is None:
        return replace(spec, model_config=config, **changes)
    (folder / "base").mkdir()
    values = {**config.to_hf(), "trained_length": trained_length}
    write_json(folder / "base" / "config.json", values)
    base = InitialCheckpoint(folder / "base", "", None)
    return replace(spec, **{"model_config": config, "base": base, **changes})


def build_plan(**changes: Any) -> TrainingPlan:
    """Return a plan of one document of 3,000 tokens and seven of 1,000, in uncut rows."""
    parts = np.array([3000] + [1000] * 7)
    return TrainingPlan(None, 1, 1.0, 1.0, "", **{"document_parts": parts, **changes})  # type: ignore[arg-type]


def test_share_behind_counts_tokens_with_a_past() -> None:
    """Prevents a count of documents, or of the tokens of long documents from their first one on."""
    assert share_behind(np.array([3000] + [1000] * 7), 1024) == (3000 - 1024) / 10_000
    assert share_behind(np.array([10, 10]), 10) == 0.0


@pytest.mark.parametrize(
    ("length", "trained_length", "expected"),
    [
        (1024, None, None),
        (512, 512, None),
        (2048, None, "1,024: 19.8%"),
        (2048, 256, "256: 79.5%, 1,024: 19.8%"),
        (4096, 512, "512: 59.0%, 1,024: 19.8%, 2,048: 9.5%"),
    ],
)
def test_long_rows_have_a_line_about_pasts(
    tmp_path: Path,
    shard_set: Path,
    length: int,
    trained_length: int | None,
    expected: str | None,
) -> None:
    """Prevents a run over 100K positions in which no token has more than a thousand before it."""
    line = describe_pasts(build_case(tmp_path, shard_set, length, trained_length), build_plan())
    assert (line is None) == (expected is None)
    if line is not None and expected is not None:
        assert line.endswith(f"in their document and row: {expected}")


@pytest.mark.parametrize(
    ("length", "trained_length", "changes", "plan", "expected"),
    [
        (512, 512, {}, {}, []),
        (4096, 512, {}, {}, ["rows have 4,096 " + NEW_POSITIONS]),
        (
            512,
            2048,
            {},
            {},
            ["rows have 512 tokens, and the base was trained with 2,048: chat and"],
        ),
        (512, 2048, {"command": "dpo"}, {"document_parts": None}, []),
        (8192, None, {}, {}, ["almost no document fills half of a row (the longest part in one"]),
        (2048, None, {}, {}, []),
        (
            4096,
            512,
            {"command": "sft"},
            {"document_parts": None, "example_lengths": np.array([700, 0])},
            ["the longest example has 700 " + NEW_POSITIONS],
        ),
        (
            4096,
            512,
            {"command": "sft"},
            {"document_parts": None, "example_lengths": np.array([500, 0])},
            [],
        ),
        (
            4096,
            512,
            {"command": "grpo"},
            {"document_parts": None},
            ["rows have 4,096 " + NEW_POSITIONS + "; extend it first, with make pretrain"],
        ),
    ],
)
def test_advice_names_short_documents_and_short_bases(
    tmp_path: Path,
    shard_set: Path,
    length: int,
    trained_length: int | None,
    changes: dict[str, Any],
    plan: dict[str, Any],
    expected: list[str],
) -> None:
    """Prevents positions that nothing was trained for, and advice where nothing is wrong."""
    spec = build_case(tmp_path, shard_set, length, trained_length, **changes)
    lines = advise_on_row_length(spec, build_plan(**plan))
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start) and line.endswith("(docs/long-context.md)")


@pytest.mark.parametrize("rope_scaling", ["yarn", "none"])
def test_extended_run_is_not_told_to_extend(
    tmp_path: Path, shard_set: Path, rope_scaling: str
) -> None:
    """Prevents the advice to do what the run does, also where the base has positions to spare."""
    spec = build_case(tmp_path, shard_set, 4096, 512)
    assert isinstance(spec.options, PretrainOptions)
    model = spec.options.model.model_copy(update={"rope_scaling": rope_scaling})
    spec = replace(spec, options=spec.options.model_copy(update={"model": model}))
    assert advise_on_row_length(spec, build_plan()) == []
