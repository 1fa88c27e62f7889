"""The tables of the figures, as printed and on a page with curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError
from evaluate.long_text.figures import Interval, LongTextFigures
from evaluate.report.plots import plot_curves
from evaluate.report.render import Block, Heading, Paragraph, Picture, Table
from evaluate.report.write import write_page

_TITLE = "Use of the past"
# Of the columns that are printed.
_WIDTHS = (13, 30, 14, 16, 32)


def format_figures(figures: LongTextFigures) -> list[str]:
    """Return the lines to print."""
    header, *rows = _past_rows(figures)
    lines = [_format_row(row) for row in (header, *rows)]
    lines.append(describe_use(figures))
    header, *rows = _position_rows(figures)
    return [*lines, *(_format_row(row) for row in (header, *rows))]


def describe_use(figures: LongTextFigures) -> str:
    """Return a sentence that says how far back the model makes use of its past."""
    if len(figures.pasts) == 1:
        return "one past: nothing to compare it with"
    sentence = f"each past up to {figures.useful_past:,} tokens gains over the one before"
    if figures.useful_past == figures.pasts[0]:
        sentence = f"{figures.pasts[1]:,} tokens of past gain nothing over {figures.pasts[0]:,}"
    if figures.harmful_past is not None:
        sentence += f"; from {figures.harmful_past:,} tokens on a longer past does harm"
    return sentence


def _past_rows(figures: LongTextFigures) -> list[list[str]]:
    """Return header and rows of the table by past."""
    rows = [["past", "loss", "perplexity", "bits/character", "gain over the past before"]]
    for number, past in enumerate(figures.pasts):
        loss = figures.losses[number]
        gain = _format_interval(figures.gains[number - 1], "+.4f") if number else ""
        rows.append(
            [
                f"{past:,}",
                _format_interval(loss, ".4f"),
                f"{np.exp(loss[0]):,.2f}",
                f"{figures.bits[number]:.4f}",
                gain,
            ]
        )
    return rows


def _position_rows(figures: LongTextFigures) -> list[list[str]]:
    """Return header and rows of the table by position."""
    rows = [["position", "loss", "perplexity"]]
    for (start, stop), loss in zip(figures.position_ranges, figures.position_losses, strict=True):
        rows.append(
            [
                f"{start:,}–{stop - 1:,}",
                _format_interval(loss, ".4f"),
                f"{np.exp(loss[0]):,.2f}",
            ]
        )
    return rows


def _format_row(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=False))


def _format_interval(interval: Interval, number_format: str) -> str:
    mean, low, high = (format(value, number_format) for value in interval)
    return f"{mean} ({low} – {high})"


def write_long_text_page(out: Path, headline: str, figures: LongTextFigures) -> None:
    """Write OUT.md, OUT.html and two pictures. Raises UserError if they cannot be written."""
    losses = [loss for loss, _, _ in figures.losses]
    by_past = plot_curves(
        [list(zip(figures.pasts, losses, strict=True))],
        "loss of the same tokens",
        "model",
        horizontal="tokens of past",
        doubling=True,
    )
    middles = [(start + stop - 1) // 2 for start, stop in figures.position_ranges]
    by_position = plot_curves(
        [list(zip(middles, (loss for loss, _, _ in figures.position_losses), strict=True))],
        "loss",
        "model",
        horizontal="position",
        doubling=True,
    )
    past_header, *past_rows = _past_rows(figures)
    position_header, *position_rows = _position_rows(figures)
    blocks: list[Block] = [
        Heading(1, _TITLE),
        Paragraph(headline),
        Paragraph(f"{describe_use(figures)}. Intervals are bootstrap intervals over documents."),
        Picture(f"{out.name}-past.svg", "loss of the same tokens by their past", by_past),
        Table(past_header, past_rows),
        Picture(f"{out.name}-position.svg", "loss by position", by_position),
        Table(position_header, position_rows),
    ]
    try:
        print(write_page(out, _TITLE, blocks))
    except OSError as error:
        raise UserError(
            f"--page {out}: cannot be written: {error.strerror}; choose another path"
        ) from None
