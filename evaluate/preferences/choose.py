"""Choose the two answers of a preference pair from the samples for a question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter

from evaluate.metrics.repetition import is_looping, measure_repetition
from evaluate.metrics.rouge import compute_rouge
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


def has_good_end(answer: ModelAnswer) -> bool:
    """Return whether an answer ended by itself and has no loop."""
    return answer.has_eos and not is_looping(answer.text)


def _rouge(answer: ModelAnswer, reference: str) -> float:
    return float(compute_rouge(answer.text, reference, case="lower")["l"].f)


def _exact(answer: ModelAnswer, reference: str) -> float:
    return float(answer.text.strip() == reference.strip())


def _length(answer: ModelAnswer, reference: str) -> float:
    """Return the shorter length over the longer one, in characters."""
    lengths = sorted([len(answer.text.strip()), len(reference.strip())])
    return lengths[0] / lengths[1]


def _repetition(answer: ModelAnswer, _reference: str) -> float:
    return 1 - measure_repetition([answer.text]).repeated_4grams


def _ending(answer: ModelAnswer, _reference: str) -> float:
    return float(has_good_end(answer))


# The score of an answer beside the reference answer, from 0 to 1, higher is better.
MEASURES: dict[MeasureName, Callable[[ModelAnswer, str], float]] = {
    "rouge": _rouge,
    "exact": _exact,
    "length": _length,
    "repetition": _repetition,
    "ending": _ending,
}
