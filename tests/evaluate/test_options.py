"""The options and help texts of the evaluation commands, which import no measurement code."""

from typing import Any, get_args

from data.shards import SPLITS
from evaluate import perplexity, repetition
from evaluate.kinds.base import MAX_ROW_TOKENS
from evaluate.metrics.baselines import BASELINES
from evaluate.metrics.language_model import WINDOW_TOKENS
from evaluate.metrics.repetition import MIN_LOOP_CHARACTERS, MIN_LOOP_REPEATS
from evaluate.metrics.rouge_table import CASE_LABELS
from evaluate.options import PerplexityOptions, RougeOptions


def literal_values(annotation: Any) -> set[str]:
    """Return the values of a Literal, or of a union with one."""
    values = set()
    for item in get_args(annotation):
        values |= literal_values(item) if get_args(item) else {item}
    return values - {type(None)}


def test_choices_are_those_of_the_measurements() -> None:
    """Prevents a baseline, a letter case or a split that the command line does not know."""
    assert literal_values(RougeOptions.model_fields["baseline"].annotation) == set(BASELINES)
    assert literal_values(RougeOptions.model_fields["case"].annotation) == set(CASE_LABELS)
    assert literal_values(PerplexityOptions.model_fields["split"].annotation) == set(SPLITS)


def test_help_states_the_constants_of_the_measurements() -> None:
    """Prevents help with another window, row or loop length than the code has."""
    assert f"windows of {WINDOW_TOKENS} tokens" in perplexity.DESCRIPTION
    assert f"{MAX_ROW_TOKENS:,} tokens" in perplexity.DESCRIPTION.replace("\n", " ")
    text = " ".join(repetition.DESCRIPTION.split())
    assert f"at least {MIN_LOOP_REPEATS} times" in text
    assert f"at least {MIN_LOOP_CHARACTERS} characters" in text
