"""The figures of a survey as lines to print and as JSON."""

from collections.abc import Sequence
from typing import Any

from data.lengths.counter import LengthCounter
from data.lengths.survey import QUANTILES, ROW_LENGTHS, Recommendation, Survey
from model.tokenizer.base import Tokenizer


def format_survey(
    survey: Survey,
    recommendation: Recommendation,
    name: str,
    tokenizer: Tokenizer,
    batch_tokens: int,
) -> list[str]:
    """Return the survey of the data called `name` as lines to print."""
    lines = [
        f"{name}: {survey.num_records:,} {survey.noun} an epoch, "
        f"{survey.tokens['whole'].total:,} tokens; tokenizer {tokenizer.fingerprint[:8]} "
        f"({tokenizer.vocab_size:,} ids)"
    ]
    shares = [f"{share:g}" for share in QUANTILES]
    for unit, counters in survey.counters().items():
        rows = [[part, *_format_counter(counter)] for part, counter in counters.items()]
        lines += ["", *_align([[unit, *shares, "mean"], *rows])]
    row_cells = [
        {"row length": f"{length:,}", **survey.format_row(survey.row_figures(length, batch_tokens))}
        for length in ROW_LENGTHS
    ]
    return [
        *lines,
        "",
        *_align([list(row_cells[0]), *(list(cells.values()) for cells in row_cells)]),
        f"(a step has {batch_tokens:,} tokens, or one row if that is longer)",
        "",
        f"recommended row length {recommendation}",
    ]


def describe_survey(
    survey: Survey,
    recommendation: Recommendation,
    name: str,
    tokenizer: Tokenizer,
    batch_tokens: int,
) -> dict[str, Any]:
    """Return all figures of a survey for JSON."""
    return {
        "data": name,
        "tokenizer": tokenizer.fingerprint,
        survey.noun: survey.num_records,
        "lengths": {
            unit: {part: _describe_counter(counter) for part, counter in counters.items()}
            for unit, counters in survey.counters().items()
        },
        "batch_tokens": batch_tokens,
        "rows": {str(length): survey.row_figures(length, batch_tokens) for length in ROW_LENGTHS},
        "recommended": {"length": recommendation.length, "reason": recommendation.reason},
    }


def _describe_counter(counter: LengthCounter) -> dict[str, Any]:
    """Return count, sum and quantiles of lengths."""
    shares = [f"{share:g}" for share in QUANTILES]
    return {
        "count": counter.num_lengths,
        "total": counter.total,
        "quantiles": dict(zip(shares, counter.quantiles(QUANTILES), strict=True)),
    }


def _format_counter(counter: LengthCounter) -> list[str]:
    """Return the quantiles and the mean of lengths as cells of a table."""
    quantiles = [f"{value:,.2f}".removesuffix(".00") for value in counter.quantiles(QUANTILES)]
    return [*quantiles, f"{counter.total / counter.num_lengths:,.1f}"]


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines: the first column to the left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
