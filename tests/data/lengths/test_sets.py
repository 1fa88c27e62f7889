"""Surveys of mixtures: the first epoch of training on the same mixture."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from data.batching.packed_rows import PackedPlan
from data.lengths import batches
from data.lengths.sets import (
    SEED,
    load_common_tokenizer,
    open_sets,
    print_recommendation,
    survey_sets,
)
from model.tokenizer.base import Tokenizer
from tests.helpers.training import write_text_set
from train.options import SftOptions


@pytest.fixture(scope="module")
def project(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working directory in which the sample is prepared, with a folder `text` to read."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(root / "assets" / "sample" / "pretrain" / "text", folder / "text")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("data", ["pclue:1.5+lcsts:0.3", "lcsts:2"])
def test_mixture_is_the_first_epoch_of_training(
    data: str, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prevents weights that count otherwise than in training, or requests of other records."""
    monkeypatch.chdir(project)
    # Several batches, so that records are numbered across them.
    monkeypatch.setattr(batches, "BATCH_RECORDS", 300)
    sets, weights = open_sets(data, None)
    tokenizer, template = load_common_tokenizer(sets, None)
    survey = survey_sets(sets, weights, tokenizer, template)
    for length in (256, 512):
        figures = survey.row_figures(length, batch_tokens=2048)
        examples = [
            shards.kind.examples(shards.load_split("train"), length, tokenizer, template, SEED)
            for shards in sets
        ]
        plan = PackedPlan(examples, weights, seed=SEED, length=length, folder=tmp_path / "plan")
        num_kept = sum(len(plan.row(number)) for number in range(plan.num_rows(0)))
        assert figures["rows"] == plan.num_rows(0)
        assert survey.num_records - figures["left_out"] == num_kept
        whole_positions = survey.tokens["whole"].total - survey.num_records
        assert whole_positions - figures["lost_tokens"] == plan.num_tokens(0)


def test_default_seed_is_that_of_training() -> None:
    """Prevents requests and parts of sets that no run with default options has."""
    assert SftOptions().seed == SEED


@pytest.mark.slow
def test_sets_with_another_tokenizer_are_encoded_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, shared: Path
) -> None:
    """Prevents lengths in the tokens of the set where another tokenizer was asked for."""
    monkeypatch.chdir(project)
    for name in ("lcsts", "text"):
        sets, weights = open_sets(name, None)
        own = survey_sets(sets, weights, *load_common_tokenizer(sets, None))
        (path,) = list((shared / "tokenizer").glob("*.model"))[:1]
        other = survey_sets(sets, weights, *load_common_tokenizer(sets, path))
        assert other.num_records == own.num_records
        # 65,000 ids need far fewer tokens than 4,200 for the same characters.
        assert other.tokens["whole"].total < 0.9 * own.tokens["whole"].total
        values, counts = own.characters["whole"].histogram()
        assert np.array_equal(other.characters["whole"].histogram(), (values, counts))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("lcsts+text", "text and records with answers are not trained on together"),
        ("lcsts+replay:0.1", "--data replay: is the pretraining text of a base"),
        ("lcsts:1e9", "a weight is above 1,000"),
        ("nowhere", "nowhere"),
        ("lcsts:0.0001", "an epoch has no record of it"),
    ],
)
def test_data_that_cannot_be_surveyed_is_refused_in_one_line(
    data: str, message: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a traceback, or figures of a mixture that training refuses."""
    monkeypatch.chdir(project)
    with pytest.raises(UserError, match=message) as refused:
        sets, weights = open_sets(data, None)
        survey_sets(sets, weights, *load_common_tokenizer(sets, None))
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_report_of_a_preparation_recommends_a_row_length(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a line that differs from the survey, and a failure after a long preparation."""
    monkeypatch.chdir(project)
    sets, weights = open_sets("lcsts", None)
    survey = survey_sets(sets, weights, *load_common_tokenizer(sets, None))
    capsys.readouterr()
    print_recommendation(sets[0].folder)
    assert capsys.readouterr().out == f"  recommended row length {survey.recommend()}\n"


def test_set_without_training_split_has_no_recommendation(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents an error after a preparation all of whose records are held out."""
    print_recommendation(write_text_set(tmp_path / "held-out", tokenizer, validation=3))
    assert not capsys.readouterr().out
    print_recommendation(write_text_set(tmp_path / "text", tokenizer, train=3))
    assert capsys.readouterr().out.startswith("  recommended row length 256: has room for 100.0%")
