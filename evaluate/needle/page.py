"""The page of the figures: a heat map of depth against length for each method, and tables."""

from collections.abc import Mapping
from pathlib import Path

from common.errors import UserError
from evaluate.needle.cases import part_labels
from evaluate.needle.figures import TRIVIAL_METHODS, LengthFigures
from evaluate.report.plots import plot_heat_map
from evaluate.report.render import Block, Cell, Heading, Paragraph, Picture, Table
from evaluate.report.write import write_page

_TITLE = "Needles"
_NOTE = (
    "Rows of the heat map are places in the text, from its beginning to its end, columns are "
    "lengths of the text in tokens. Intervals are Wilson's at 95 %, over texts. A trivial method "
    "answers without reading the question."
)


def write_needle_page(
    out: Path,
    label: str,
    figures: Mapping[str, Mapping[int, LengthFigures]],
    trained_context: int,
) -> None:
    """Write OUT.md, OUT.html and a picture for each method; `figures` are by method and length.

    Raises UserError if they cannot be written.
    """
    blocks: list[Block] = [
        Heading(1, _TITLE),
        Paragraph(label),
        Paragraph(f"The model was trained on {trained_context:,} tokens at a time. {_NOTE}"),
    ]
    for method, by_length in figures.items():
        blocks += _method_blocks(out.name, method, by_length)
    try:
        files = write_page(out, _TITLE, blocks)
    except OSError as error:
        raise UserError(
            f"--page {out}: cannot be written: {error.strerror}; choose another path"
        ) from None
    print(files)


def _method_blocks(
    page_name: str, method: str, by_length: Mapping[int, LengthFigures]
) -> list[Block]:
    """Return a heading, the heat map and the tables of a method."""
    num_parts = len(next(iter(by_length.values())).cells)
    labels = part_labels(num_parts)
    columns = [f"{length:,}" for length in by_length]
    rates = [
        [figures.cells[part].rate for figures in by_length.values()] for part in range(num_parts)
    ]
    cell_rows: list[list[Cell]] = [
        [label, *(str(figures.cells[part]) for figures in by_length.values())]
        for part, label in enumerate(labels)
    ]
    rows: list[list[Cell]] = [["right", *(str(figures.right) for figures in by_length.values())]]
    for name, label in TRIVIAL_METHODS.items():
        shares = [f"{100 * figures.trivial[name]:.1f} %" for figures in by_length.values()]
        rows.append([label, *shares])
    means = [f"{figures.mean_values:.1f}" for figures in by_length.values()]
    rows.append(["values in a text", *means])
    if all(figures.less_likely is not None for figures in by_length.values()):
        shares = [str(figures.less_likely) for figures in by_length.values()]
        rows.append(["other values less likely", *shares])
    picture = plot_heat_map(rates, labels, columns, "place in the text", "tokens")
    return [
        Heading(2, method),
        Picture(
            f"{page_name}-{method}.svg", f"{method}: right answers by place and length", picture
        ),
        Table(["tokens", *columns], rows),
        Table(["place in the text", *columns], cell_rows),
    ]
