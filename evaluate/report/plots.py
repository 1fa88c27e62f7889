"""Curves over training steps as SVG pictures."""

import io
import math
from collections.abc import Sequence

# With matplotlib's ten default colors in each of four line styles, up to forty curves look
# different.
LINE_STYLES = ("-", "--", ":", "-.")
# Longer curves have no markers at their points. Without a marker, a curve of a single point would
# be invisible.
MAX_MARKED_POINTS = 60


def plot_curves(
    curves: Sequence[Sequence[tuple[int, float]]], label: str, curve_name: str = "run"
) -> bytes:
    """Plot curves of (step, value) points in one pair of axes, one per run; return the SVG.

    NaN and infinite values are gaps, and an empty curve is left out. `label` names the vertical
    axis. The legend has the numbers of the runs, from 1, because fonts for their names may be
    missing. The line of a run is a group with the id `run-1`, `run-2` … in the SVG. `curve_name` is
    an ASCII word for what the curves belong to instead of runs.
    """
    # Imported here because matplotlib loads slowly, and a report may have no curves.
    import matplotlib
    from matplotlib.figure import Figure

    # Letters that are drawn as paths need no fonts to show the picture. The ids in an SVG are
    # hashes: with a fixed salt, and without a date, the same curves give the same bytes.
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
                    label=f"{curve_name} {index + 1}",
                    gid=f"{curve_name}-{index + 1}",
                )
        axes.set_xlabel("step")
        axes.set_ylabel(label, parse_math=False)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper")
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()
