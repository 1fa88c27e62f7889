"""Coverage is what a text says of the rest of an article."""

import pytest

from data.from_text.coverage import count_characters, coverage


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("小马", 3 / 8),  # twice more the one, once more the other
        ("小马，小马！", 3 / 8),  # said twice, and marks
        ("河A", 1 / 8),  # A is there once more as a
        ("羊，。", 0.0),  # not in the article; marks do not count
        ("", 0.0),
    ],
)
def test_coverage_counts_repeated_letters(text: str, expected: float) -> None:
    """Prevents marks that count, text that covers itself, and letters that count twice."""
    assert coverage(text, count_characters("小马过，小 A 马小。a")) == pytest.approx(expected)


def test_article_without_letters() -> None:
    """Prevents a division by zero."""
    assert coverage("小马", count_characters("……")) == 0.0
