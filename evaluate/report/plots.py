"""Curves over training steps as SVG pictures."""

import io
import math
from collections.abc import Sequence

# Ten colors in each of four styles: up to forty runs are distinct.
LINE_STYLES = ("-", "--", ":", "-.")
# Markers for short curves only: without one, a curve of a single point is invisible.
MAX_MARKED_POINTS = 60


def plot_curves(curves: Sequence[Sequence[tuple[int, float]]], label: str) -> bytes:
    """Plot one curve per run in one pair of axes, and return the SVG.

    NaN and infinite values are gaps; an empty curve is left out.
    `label` names the vertical axis. Runs appear by number, from 1, because fonts for their names
    may be missing. The line of a run is a group with the id `run-1`, `run-2` … in the SVG.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # Letters as paths need no fonts. A fixed salt and no date make the bytes reproducible.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "curves"}):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.add_subplot()
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
                    label=f"run {index + 1}",
                    gid=f"run-{index + 1}",
                )
        axes.set_xlabel("step")
        axes.set_ylabel(label, parse_math=False)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper")
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()
