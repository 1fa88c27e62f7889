"""Replay: pretraining text of the base in fine-tuning."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.files import write_checksummed_json
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import ShardSet
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer
from tests.helpers.training import write_fake_run
from train.options import SftOptions
from train.replay import open_replay_set, scale_replay_weights
from train.run.example_data import ExampleData
from train.run.initial_checkpoint import InitialCheckpoint
from train.run.mixture import MixtureSet
from train.sft_run import build_data


@pytest.fixture
def csl(root: Path, tmp_path: Path) -> ShardSet:
    """A little of the sample's CSL."""
    train = root / "assets/sample/summary/csl/train.tsv"
    prepare_groups(
        [SourceGroup("csl", (str(train),))],
        tmp_path / "csl",
        root / "assets/tokenizer",
        PrepareOptions(workers=1, limit=30),
    )
    return ShardSet.open(tmp_path / "csl")


def record(*sets: ShardSet) -> dict[str, Any]:
    """Return the run.json of a run on these sets."""
    return {
        "shards": [str(each.folder) for each in sets],
        "fingerprints": {"data": [{"set": each.fingerprint, "weight": 1.0} for each in sets]},
    }


def write_base(folder: Path, *sets: ShardSet) -> InitialCheckpoint:
    """Write a run on these sets, without weights."""
    checkpoint = write_fake_run(folder, 3)
    write_checksummed_json(folder / "run.json", record(*sets))
    return InitialCheckpoint(checkpoint, "", checkpoint)


@pytest.mark.slow
def test_replay_uses_only_base_pretraining_text(
    csl: ShardSet, shard_set: Path, tmp_path: Path
) -> None:
    """Catch the base's conversations taken for text, and one of the sets of a mixture for all."""
    text = ShardSet.open(shard_set)
    new_run = tmp_path / "new"
    base = write_base(tmp_path / "text", text)
    assert open_replay_set(new_run, base, 0).folder == text.folder
    with pytest.raises(UserError, match="is fine-tuned"):
        open_replay_set(new_run, write_base(tmp_path / "tuned", csl), 0)
    with pytest.raises(UserError, match="2 shard sets: leave replay out"):
        open_replay_set(new_run, write_base(tmp_path / "mixed", text, text), 0)
    with pytest.raises(UserError, match="--base is none"):
        open_replay_set(new_run, InitialCheckpoint(None, "none", None), 0)


@pytest.mark.slow
def test_resumed_run_replays_its_recorded_set(
    csl: ShardSet, shard_set: Path, tmp_path: Path
) -> None:
    """Catch a resumed run that needs its base for replay, and a record that binds too early."""
    text = ShardSet.open(shard_set)
    base = write_base(tmp_path / "base", csl)
    run = tmp_path / "run"
    write_fake_run(run, 5)
    write_checksummed_json(run / "run.json", record(csl, text))
    assert open_replay_set(run, base, 1).folder == text.folder
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="is fine-tuned"):
        open_replay_set(run, base, 1)


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, 1])
def test_replay_of_less_than_a_row_is_refused(
    csl: ShardSet, shard_set: Path, tokenizer: Tokenizer, missing: int
) -> None:
    """Catch replay of nothing, without a word."""
    text = ShardSet.open(shard_set)
    # A row of n positions is n + 1 ids.
    length = text.load_text("train").num_tokens - 1 + missing

    def build() -> ExampleData:
        options = SftOptions(data="x", sequence_length=length, batch_tokens=length)
        sets = (MixtureSet("csl", csl, 1.0), MixtureSet("replay", text, 0.1))
        return build_data(options, sets, tokenizer, Template())

    if missing:
        with pytest.raises(UserError, match=f"nothing to replay: .* a row of {length} tokens"):
            build()
    else:
        assert len(build().example_sets[1].lengths(0)) == 1


@pytest.mark.slow
def test_replay_weight_is_a_share_of_the_other_tokens(
    csl: ShardSet, shard_set: Path, tokenizer: Tokenizer
) -> None:
    """Catch `replay:0.1` that takes a tenth of the pretraining text, however long it is."""
    text = ShardSet.open(shard_set)
    options = SftOptions(data="x", sequence_length=256, batch_tokens=256)
    sets = (MixtureSet("csl", csl, 2.0), MixtureSet("replay", text, 0.1))
    data = build_data(options, sets, tokenizer, Template())
    csl_tokens, text_tokens = (int(each.lengths(0).sum()) for each in data.example_sets)
    assert data.sets == scale_replay_weights(sets, data.example_sets)
    assert data.sets[0].weight == 2.0
    assert data.sets[1].weight * text_tokens == pytest.approx(0.1 * 2.0 * csl_tokens)
