"""What a run prints before it starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from data.shards import SPLITS, ShardSet
from tests.helpers.training import StubEvaluator, build_spec
from train.autotune import ComputePlan
from train.run.directory import RunDir
from train.run.start import build_model
from train.run.summary import print_run_summary

PLAN = ComputePlan("cpu", "fp32", False, 1, "chunked")
MANY_EPOCHS = "after 40 epochs the same text teaches almost nothing"
NO_VALIDATION = "no validation data: there will be no validation loss and no best checkpoint"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "has_data", "notes"),
    [
        (40.0, True, []),
        (41.0, True, [MANY_EPOCHS]),
        (1.0, False, [NO_VALIDATION]),
    ],
)
def test_summary_warns_before_the_run(
    tmp_path: Path,
    shard_set: Path,
    capsys: pytest.CaptureFixture[str],
    epochs: float,
    has_data: bool,
    notes: list[str],
) -> None:
    """Prevent a run in vain: a small corpus read a thousand times, or no loss on held-out text."""
    spec = build_spec(tmp_path / "run", shard_set)
    spec = replace(spec, evaluator=StubEvaluator(6, has_data=has_data))
    plan = replace(spec.data.plan(tmp_path / "plan"), epochs=epochs)
    model = build_model(spec, None)
    print_run_summary(spec, RunDir(spec.folder), model, plan, PLAN, 2 * 10**9, "use less")
    printed = capsys.readouterr().out
    assert "about 2.0 GB of memory\n          use less\n" in printed
    assert [note for note in (MANY_EPOCHS, NO_VALIDATION) if note in printed] == notes
    tokens = [ShardSet.open(shard_set).load_text(split).num_tokens for split in SPLITS]
    assert "{:,} tokens an epoch, {:,} held out; ".format(*tokens) in printed
    assert "model     tiny: " in printed and f"run       {spec.folder} (new)" in printed
