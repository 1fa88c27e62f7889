"""The tables that the command prints: right answers by length, and by length and depth."""

from collections.abc import Mapping

from evaluate.metrics.proportion import compare_with_trivial
from evaluate.needle.cases import part_labels
from evaluate.needle.figures import TRIVIAL_METHODS, LengthFigures


def format_figures(by_length: Mapping[int, LengthFigures]) -> list[str]:
    """Return the lines of one method, for each length in tokens."""
    has_likelihood = any(figures.less_likely is not None for figures in by_length.values())
    last_head = "others less likely" if has_likelihood else "has a value"
    heads = "".join(f"{name:>13}" for name in TRIVIAL_METHODS.values())
    lines = [f"{'tokens':>8}  {'right':>22}{heads}{'values':>9}  {last_head:>22}"]
    for length, figures in by_length.items():
        cells = "".join(f"{100 * figures.trivial[name]:11.1f} %" for name in TRIVIAL_METHODS)
        last = figures.less_likely if figures.less_likely is not None else figures.answered
        verdict = compare_with_trivial(figures.right.to_json(), figures.best_trivial)
        lines.append(
            f"{length:8,}  {figures.right!s:>22}{cells}{figures.mean_values:9.1f}  {last!s:>22}"
            f"  {verdict} the best trivial method"
        )
    lines.append("right answers, %, by the place in the text and by tokens:")
    return [*lines, *_format_cells(by_length)]


def _format_cells(by_length: Mapping[int, LengthFigures]) -> list[str]:
    """Return a table with a row for each part of the text and a column for each length."""
    num_parts = len(next(iter(by_length.values())).cells)
    lines = [" " * 10 + "".join(f"{length:>8,}" for length in by_length)]
    for part, label in enumerate(part_labels(num_parts)):
        rates = [100 * figures.cells[part].rate for figures in by_length.values()]
        lines.append(f"{label:>10}" + "".join(f"{rate:8.1f}" for rate in rates))
    return lines
