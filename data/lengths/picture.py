"""The picture of a survey: how many examples have which length, and how many a row holds whole."""

import io

import numpy as np

from data.lengths.survey import ROW_LENGTHS, Survey

NUM_BARS = 80
# The picture ends at this quantile of the lengths, but not before the recommended row length, and
# at the longest row.
SHOWN_SHARE = 0.995


def plot_lengths(survey: Survey, recommended: int) -> bytes:
    """Return an SVG of the tokens of whole records, with a red line at the recommended row length.

    Above is a histogram, below the share of records that a row of each length holds whole. In the
    SVG they are groups with the ids `histogram` and `coverage`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    counter = survey.tokens["whole"]
    quantile = round(counter.quantiles([SHOWN_SHARE])[0])
    # A margin, so that a line at the end is not hidden by the frame.
    last = 1.05 * min(max(quantile, recommended), ROW_LENGTHS[-1])
    lengths, counts = counter.histogram()
    edges = np.linspace(0, last, NUM_BARS + 1)
    bars, _ = np.histogram(lengths, bins=edges, weights=counts)
    # A row of n positions holds n + 1 ids.
    row_lengths = lengths - 1
    is_shown = row_lengths <= last
    coverage = (np.cumsum(counts) / counts.sum())[is_shown].tolist()
    # Letters that are drawn as paths need no fonts. The ids in an SVG are hashes: with a fixed
    # salt, and without a date, the same lengths give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "lengths"}):
        figure = Figure(figsize=(9, 6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.stairs(bars, edges, fill=True, gid="histogram")
        upper.set_ylabel(survey.noun)
        values = [0.0, *coverage]
        lower.step(
            [0, *row_lengths[is_shown], last], [*values, values[-1]], where="post", gid="coverage"
        )
        lower.set_ylabel("share that a row holds whole")
        lower.set_xlabel("tokens")
        lower.set_xlim(0, last)
        lower.set_ylim(0, 1.02)
        for axes in (upper, lower):
            axes.grid(alpha=0.3)
            for length in ROW_LENGTHS:
                if length <= last:
                    axes.axvline(
                        length,
                        color="C3" if length == recommended else "0.5",
                        linestyle="-" if length == recommended else ":",
                        linewidth=1.2,
                        gid=f"row-{length}" if axes is lower else None,
                    )
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()
