"""The picture of lengths: drawn to scale, and the same bytes every time."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from data.lengths.picture import plot_lengths
from data.lengths.survey import TextSurvey
from tests.helpers.reports import group_vertices


@pytest.mark.slow
@pytest.mark.parametrize("longest", [40, 3000, 10**9])
def test_curve_is_the_share_of_records_that_fit(longest: int) -> None:
    """Prevents a curve that is not the share of records, and a picture too large to open."""
    survey = TextSurvey()
    lengths = np.random.default_rng(0).integers(2, longest, 20_000)
    survey.tokens["whole"].add(lengths, np.ones(len(lengths), np.int64))
    recommended = survey.recommend().length
    picture = plot_lengths(survey, recommended)
    assert picture == plot_lengths(survey, recommended) and len(picture) < 1_000_000
    svg = ET.fromstring(picture)
    curve = group_vertices(svg, "coverage")
    for row_length in (256, recommended):
        # The line goes from the bottom of the axes, at 0, to the top, at 1.02.
        (place, bottom), (_, top) = group_vertices(svg, f"row-{row_length}")
        # The curve is a staircase: the height at a place is that of the last vertex before it.
        height = curve[curve[:, 0] <= place + 0.01][-1, 1]
        share = (bottom - height) / (bottom - top) * 1.02
        assert share == pytest.approx(np.mean(lengths <= row_length + 1), abs=0.01)
