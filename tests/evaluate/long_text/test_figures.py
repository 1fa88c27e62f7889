"""What losses by past say, and the tables of them."""

import numpy as np
import pytest

from evaluate.long_text.figures import LongTextFigures, compute_figures
from evaluate.long_text.page import describe_use, format_figures

PASTS = (64, 128, 256, 512)


def _figures(means: list[float]) -> LongTextFigures:
    """Return figures of documents that differ much, but of which all gain alike, up to noise."""
    rng = np.random.default_rng(0)
    level = rng.normal(4.0, 1.0, size=(30, 1))
    by_past = level + np.array(means) + rng.normal(0.0, 0.01, size=(30, 4))
    by_position = level + np.linspace(1.0, 0.0, 520)
    return compute_figures(PASTS, by_past, by_position, bits=[1.0, 0.9, 0.8, 0.8])


def test_the_use_of_the_past_is_that_of_paired_gains() -> None:
    """Prevents documents of different difficulty from hiding a gain, and noise from being one."""
    figures = _figures([0.3, 0.1, 0.0, 0.0])
    # The intervals of the losses overlap by far.
    assert figures.losses[0][1] < figures.losses[2][2]
    assert figures.useful_past == 256 and figures.harmful_past is None
    assert figures.gains[0][0] == pytest.approx(0.2, abs=0.01)
    assert describe_use(figures) == "each past up to 256 tokens gains over the one before"
    worse = _figures([0.3, 0.1, 0.0, 0.5])
    assert worse.useful_past == 256 and worse.harmful_past == 512
    assert "from 512 tokens on a longer past does harm" in describe_use(worse)
    none = _figures([0.0, 0.0, 0.0, 0.0])
    assert none.useful_past == 64
    assert describe_use(none).startswith("128 tokens of past gain nothing over 64")


def test_positions_are_in_ranges_without_gaps() -> None:
    """Prevents positions that count twice or never, and the loss of the wrong position."""
    figures = _figures([0.0, 0.0, 0.0, 0.0])
    ranges = figures.position_ranges
    assert ranges == [(1, 16), (16, 32), (32, 64), (64, 128), (128, 256), (256, 512), (512, 521)]
    losses = np.linspace(1.0, 0.0, 520)
    level = figures.position_losses[0][0] - losses[:15].mean()
    for (start, stop), (mean, _, _) in zip(ranges, figures.position_losses, strict=True):
        assert mean - level == pytest.approx(losses[start - 1 : stop - 1].mean(), abs=1e-6)
    short = compute_figures((4,), np.ones((2, 1)), np.ones((2, 7)), bits=[1.0])
    assert short.position_ranges == [(1, 8)]
    assert describe_use(short) == "one past: nothing to compare it with"


def test_tables_have_every_past_and_position() -> None:
    """Prevents figures in the columns of others."""
    lines = format_figures(_figures([0.3, 0.1, 0.0, 0.0]))
    assert [line.split()[0] for line in lines[1:5]] == ["64", "128", "256", "512"]
    assert "gain" in lines[0] and "+0.2" in lines[2]
    assert sum("–" in line.split()[0] for line in lines) == 7
