"""Curves over training steps, figures with their intervals, and heat maps, as SVG pictures."""

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

# With matplotlib's ten default colors in each of four line styles, up to forty curves look
# different.
LINE_STYLES = ("-", "--", ":", "-.")
# Longer curves have no markers at their points. Without a marker, a curve of a single point would
# be invisible.
MAX_MARKED_POINTS = 60


def plot_curves(
    curves: Sequence[Sequence[tuple[int, float]]],
    label: str,
    curve_name: str = "run",
    *,
    horizontal: str = "step",
    doubling: bool = False,
) -> bytes:
    """Plot curves of (step, value) points in one pair of axes, one per run; return the SVG.

    NaN and infinite values are gaps, and an empty curve is left out. `label` names the vertical
    axis. The legend has the numbers of the runs, from 1, because fonts for their names may be
    missing. The line of a run is a group with the id `run-1`, `run-2` … in the SVG. `curve_name` is
    an ASCII word for what the curves belong to instead of runs. `horizontal` names the other axis,
    which with `doubling` has powers of two at equal distances.
    """
    picture = io.BytesIO()
    with _axes(height=4.5, picture=picture) as axes:
        for index, curve in enumerate(curves):
            if curve:
                steps = [step for step, _ in curve]
                values = [value if math.isfinite(value) else math.nan for _, value in curve]
                axes.plot(
                    steps,
                    values,
                    color=f"C{index % 10}",
                    linestyle=LINE_STYLES[index // 10 % len(LINE_STYLES)],
                    linewidth=1.3,
                    marker="o" if len(curve) <= MAX_MARKED_POINTS else "",
                    markersize=3,
                    label=f"{curve_name} {index + 1}",
                    gid=f"{curve_name}-{index + 1}",
                )
        axes.set_xlabel(horizontal)
        if doubling:
            axes.set_xscale("log", base=2)
        axes.set_ylabel(label, parse_math=False)
    return picture.getvalue()


def plot_intervals(
    labels: Sequence[str], intervals_by_run: Sequence[Sequence[tuple[float, float, float] | None]]
) -> bytes:
    """Plot figures with their intervals, one row for each label; return the SVG.

    `intervals_by_run` has (middle, low, high) of each label for each run, None if a run lacks it.
    The legend has the numbers of the runs, from 1.
    """
    picture = io.BytesIO()
    with _axes(height=1.5 + 0.25 * len(labels), picture=picture) as axes:
        for index, intervals in enumerate(intervals_by_run):
            # The runs stand one below the other within a row.
            shift = 0.6 * ((index + 0.5) / len(intervals_by_run) - 0.5)
            drawn = [(row, *interval) for row, interval in enumerate(intervals) if interval]
            if not drawn:
                continue
            rows, middles, lows, highs = zip(*drawn, strict=True)
            widths = [
                [max(middle - low, 0.0) for middle, low in zip(middles, lows, strict=True)],
                [max(high - middle, 0.0) for middle, high in zip(middles, highs, strict=True)],
            ]
            axes.errorbar(
                middles,
                [row + shift for row in rows],
                xerr=widths,
                fmt="o",
                markersize=3,
                linewidth=1.0,
                color=f"C{index % 10}",
                label=f"run {index + 1}",
                gid=f"run-{index + 1}",
            )
        axes.set_yticks(range(len(labels)), labels, parse_math=False)
        axes.set_ylim(len(labels) - 0.5, -0.5)
    return picture.getvalue()


def plot_heat_map(
    rates: Sequence[Sequence[float]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    vertical: str,
    horizontal: str,
) -> bytes:
    """Plot rates from 0 to 1, a row of cells for each row label; return the SVG.

    The first row is at the top. Each cell has its rate in percent. `vertical` and `horizontal` name
    the axes. All texts are ASCII or of characters that every font has.
    """
    import matplotlib
    from matplotlib.figure import Figure

    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "heat map"}):
        width = 2.5 + 0.8 * len(column_labels)
        figure = Figure(figsize=(width, 1.2 + 0.4 * len(row_labels)), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(rates, vmin=0, vmax=1, cmap="RdYlBu", aspect="auto")
        axes.set_xticks(range(len(column_labels)), column_labels, parse_math=False)
        axes.set_yticks(range(len(row_labels)), row_labels, parse_math=False)
        axes.set_xlabel(horizontal)
        axes.set_ylabel(vertical)
        for row, row_rates in enumerate(rates):
            for column, rate in enumerate(row_rates):
                axes.text(column, row, f"{100 * rate:.0f}", ha="center", va="center")
        figure.colorbar(image, format=lambda rate, _: f"{100 * rate:.0f} %")
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()


@contextlib.contextmanager
def _axes(height: float, picture: io.BytesIO) -> Iterator[Any]:
    """Yield the axes of a figure of `height` inches; write it to `picture` as an SVG at the end."""
    # Imported here because matplotlib loads slowly, and a report may have no pictures.
    import matplotlib
    from matplotlib.figure import Figure

    # Letters that are drawn as paths need no fonts to show the picture. The ids in an SVG are
    # hashes: with a fixed salt, and without a date, the same figures give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "curves"}):
        figure = Figure(figsize=(9, height), layout="constrained")
        axes = figure.add_subplot()
        yield axes
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper")
        figure.savefig(picture, format="svg", metadata={"Date": None})
