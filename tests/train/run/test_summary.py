"""What a run prints before it starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from data.derivations.distractors import DERIVATION
from data.kinds import conversations
from data.records import Conversation, Turn
from data.shards import SPLITS, ShardSet
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer
from tests.helpers.training import StubEvaluator, build_spec
from train.autotune import ComputePlan
from train.options import SftOptions
from train.run.directory import RunDir
from train.run.example_data import ExampleData
from train.run.mixture import MixtureSet
from train.run.start import build_model
from train.run.summary import advise_on_passages, print_run_summary

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


@pytest.mark.parametrize(("length", "is_told"), [(2048, False), (150, True)])
def test_rows_without_room_for_all_passages_are_told(
    tmp_path: Path, shard_set: Path, tokenizer: Tokenizer, length: int, is_told: bool
) -> None:
    """Prevents a model that was to read among eight passages, and never saw as many in training."""
    records = [
        Conversation(
            (Turn(f"第{number}个村子有几口井？", f"有{number}口井。"),),
            f"第{number}个村子在河的东边，有{number}口井。",
        )
        for number in range(20)
    ]
    stored = conversations.KIND.encode_records(tokenizer, Template(), records)
    arguments = {"passages": 8, "tokens": None}
    examples = DERIVATION.examples(stored, length, tokenizer, Template(), 0, arguments)
    sets = (MixtureSet("distractors(wells,8)", ShardSet.open(shard_set), 1.0),)
    data = ExampleData(SftOptions(), sets, Template(), [examples])
    lines = advise_on_passages(replace(build_spec(tmp_path / "run", shard_set), data=data))
    assert len(lines) == is_told
    assert all("distractors(wells,8): " in line and "of 8 other passages" in line for line in lines)
