"""The two answers of a pair, and the reasons why a question gives none."""

import pytest

from evaluate.model_answer import ModelAnswer
from evaluate.preferences.choose import (
    EQUAL_TEXTS,
    NO_ROOM,
    NONE_GOOD,
    ONLY_EMPTY,
    SMALL_DIFFERENCE,
    Pair,
    choose_pair,
)
from evaluate.preferences.options import Chosen, MeasureName

REFERENCE = "河上的桥修好了"
LOOP = "桥上有桥，" * 8


def answer(text: str, has_eos: bool = True) -> ModelAnswer:
    return ModelAnswer(text, len(text), has_eos)


def choose(
    *samples: ModelAnswer,
    chosen: Chosen = "sample",
    measure: MeasureName = "rouge",
    least_difference: float = 0.0,
) -> Pair | str:
    return choose_pair(
        samples, REFERENCE, chosen=chosen, measure=measure, least_difference=least_difference
    )


def texts(pair: Pair | str) -> tuple[str, str]:
    assert isinstance(pair, Pair), pair
    assert 0 <= pair.rejected_score < pair.chosen_score <= 1.001
    return pair.chosen.text, pair.rejected.text


def test_best_and_worst_sample_by_each_measure() -> None:
    """Prevents a pair the wrong way round, which teaches the opposite."""
    samples = [
        answer("桥修了"),
        answer("河上的桥修好啦"),
        answer("天气很好，天气很好，大家都说天气很好"),
    ]
    assert texts(choose(*samples)) == (samples[1].text, samples[2].text)
    assert texts(choose(*samples, measure="length")) == (samples[1].text, samples[2].text)
    assert texts(choose(*samples, measure="repetition")) == (samples[0].text, samples[2].text)
    assert choose(*samples, measure="exact") == SMALL_DIFFERENCE
    samples.append(answer(f" {REFERENCE}\n"))
    assert texts(choose(*samples, measure="exact")) == (samples[3].text, samples[0].text)


def test_reference_is_preferred_to_the_worst_sample() -> None:
    """Prevents a reference that is rejected, and a pair of two equal answers."""
    assert texts(choose(answer("桥修了"), chosen="reference")) == (REFERENCE, "桥修了")
    assert choose(answer(REFERENCE + "\n"), chosen="reference") == SMALL_DIFFERENCE
    # Cut just before its end: a worse ending, but the same text.
    cut = answer(REFERENCE, has_eos=False)
    assert choose(cut, chosen="reference", measure="ending") == EQUAL_TEXTS


@pytest.mark.parametrize("bad", [answer(LOOP), answer("桥修了", has_eos=False)])
def test_loops_and_answers_without_end_are_never_preferred(bad: ModelAnswer) -> None:
    """Prevents a model that learns to loop because a loop had the right words in it."""
    good = answer("天气晴朗")
    assert texts(choose(bad, good, measure="ending")) == (good.text, bad.text)
    # By ROUGE the bad one would be the better one.
    assert choose(bad, good) == SMALL_DIFFERENCE
    assert choose(bad, bad) == NONE_GOOD


def test_other_reasons_for_no_pair() -> None:
    """Prevents pairs that the source would leave out, or whose difference is noise."""
    options = {"chosen": "sample", "measure": "rouge", "least_difference": 0.0}
    assert choose_pair(None, REFERENCE, **options) == NO_ROOM  # type: ignore[arg-type]
    assert choose(answer(""), answer(" \n")) == ONLY_EMPTY
    samples = [answer("桥修好了"), answer("桥修了")]
    pair = choose(*samples)
    assert isinstance(pair, Pair)
    difference = pair.chosen_score - pair.rejected_score
    assert isinstance(choose(*samples, least_difference=difference), Pair)
    assert choose(*samples, least_difference=difference + 0.01) == SMALL_DIFFERENCE
