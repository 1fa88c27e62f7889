"""Choose the two answers of a preference pair from the samples for a question."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from evaluate.metrics.answer_measures import (
    AnswerMeasure,
    ending,
    exact,
    few_repetitions,
    has_good_end,
    length_ratio,
    rouge_l,
)
from evaluate.model_answer import ModelAnswer
from evaluate.preferences.options import Chosen, MeasureName

# Why a question gives no pair.
NO_ROOM = "no room for an answer in the context"
ONLY_EMPTY = "only empty samples"
NONE_GOOD = "no sample that ended by itself without a loop"
SMALL_DIFFERENCE = "scores do not differ enough"
EQUAL_TEXTS = "equal answers"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers and their scores, from 0 to 1; the preferred one has the higher score."""

    chosen: ModelAnswer
    rejected: ModelAnswer
    chosen_score: float
    rejected_score: float


def choose_pair(
    samples: Sequence[ModelAnswer] | None,
    reference: str,
    *,
    chosen: Chosen,
    measure: MeasureName,
    least_difference: float,
) -> Pair | str:
    """Return the pair of a question, or the reason why it gives none.

    `samples` is None if the prompt leaves no room for an answer; `reference` is the true answer.
    Of equal scores the first sample has the better place.
    """
    if samples is None:
        return NO_ROOM
    # An empty answer is nothing that could be read as a worse one.
    samples = [sample for sample in samples if sample.text.strip()]
    if not samples:
        return ONLY_EMPTY
    score = MEASURES[measure]
    scored = [(score(sample, reference), sample) for sample in samples]
    if chosen == "reference":
        true_answer = ModelAnswer(reference, num_tokens=0, has_eos=True)
        candidates = [(score(true_answer, reference), true_answer)]
    else:
        candidates = [(value, sample) for value, sample in scored if has_good_end(sample)]
    if not candidates:
        return NONE_GOOD
    best_score, best = max(candidates, key=itemgetter(0))
    worst_score, worst = min(scored, key=itemgetter(0))
    if best_score <= worst_score or best_score - worst_score < least_difference:
        return SMALL_DIFFERENCE
    if best.text.strip() == worst.text.strip():
        return EQUAL_TEXTS
    return Pair(best, worst, best_score, worst_score)


# The score of an answer beside the reference answer, from 0 to 1, higher is better.
MEASURES: dict[MeasureName, AnswerMeasure] = {
    "rouge": rouge_l,
    "exact": exact,
    "length": length_ratio,
    "repetition": few_repetitions,
    "ending": ending,
}
