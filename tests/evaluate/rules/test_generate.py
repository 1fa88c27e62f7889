"""Items are reproducible, and those of training share nothing with those of tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from evaluate.rules.families import FAMILIES
from evaluate.rules.generate import DIFFICULTIES, draw_items
from evaluate.rules.item import RULE_FORMS


@pytest.mark.slow
def test_a_seed_gives_the_same_items_in_another_process(root: Path) -> None:
    """Items that depend on the hashes of strings, which differ from process to process."""
    program = (
        "from evaluate.rules.families import FAMILIES\n"
        "from evaluate.rules.generate import draw_items\n"
        "print([draw_items(family, 5, 2, 7, 'test') for family in FAMILIES])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed},
            cwd=root,
            capture_output=True,
            check=True,
            text=True,
            encoding="utf-8",
        ).stdout
        for hash_seed in ("1", "2")
    ]
    here = [draw_items(family, 5, 2, 7, "test") for family in FAMILIES]
    assert outputs == [f"{here}\n"] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_items_are_the_first_ones(family: str) -> None:
    """A second method that is asked about other items than the first."""
    items = draw_items(family, 30, 1, 3, "test")
    assert draw_items(family, 10, 1, 3, "test") == items[:10]
    assert draw_items(family, 30, 1, 4, "test") != items


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_training_and_test_share_no_values(family: str) -> None:
    """A model that is tested on numbers or words that it was trained on, by another seed."""
    items = {
        split: [
            item
            for seed in (0, 1)
            for difficulty in DIFFICULTIES
            for item in draw_items(family, 60, difficulty, seed, split)
        ]
        for split in ("train", "test")
    }
    values = {split: {item.values for item in members} for split, members in items.items()}
    assert len(values["train"]) > 30
    assert not values["train"] & values["test"]
    # Nor is a question with one of its rules the same, where the values of the other differ.
    for form in RULE_FORMS:
        asked = {
            split: {(item.question, item.passage(form)) for item in members}
            for split, members in items.items()
        }
        assert not asked["train"] & asked["test"]


@pytest.mark.parametrize("family", FAMILIES)
def test_new_values_come_before_other_words_for_the_same(family: str) -> None:
    """Prevents a count of items most of which ask the same, and intervals that are too narrow."""
    items = draw_items(family, 24, 1, 0, "test")
    assert len({item.values for item in items[:16]}) == 16


def test_a_family_with_too_few_items_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless loop for a count that a family does not have."""
    few = draw_items("cipher", 3, 1, 0, "test")
    monkeypatch.setitem(FAMILIES, "cipher", lambda rng, difficulty: rng.choice([*few, None]))
    assert len(draw_items("cipher", 3, 1, 0, "test")) == 3
    with pytest.raises(UserError, match="--count 4: cipher has only about 3 different items"):
        draw_items("cipher", 4, 1, 0, "test")
