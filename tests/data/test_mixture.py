"""The syntax of `--data`: names and weights of a mixture."""

from pathlib import Path

import pytest

from data.mixture import parse_mixture


def test_mixture_syntax_is_parsed() -> None:
    """Catch a path with a colon taken for a weight, or the reverse."""
    assert parse_mixture("sample") == (["sample"], (1.0,))
    assert parse_mixture("wikipedia:0.5+zhihu") == (["wikipedia", "zhihu"], (0.5, 1.0))
    assert parse_mixture("a:b") == (["a:b"], (1.0,))
    for wrong in ("a:0", "a:-1", "a:nan"):
        with pytest.raises(ValueError, match="the weight of a must be above 0"):
            parse_mixture(wrong)
    # The path "" is the working directory, all of which would be read.
    for wrong in ("", "csl+", "+csl", "csl++a"):
        with pytest.raises(ValueError, match="has an empty part"):
            parse_mixture(wrong)


def test_path_that_exists_is_one_name_of_a_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch a file that is looked for without the `:2` at its end, or up to a plus sign."""
    monkeypatch.chdir(tmp_path)
    for name in ("part:2", "a+b:1.txt", "c"):
        Path(name).touch()
    assert parse_mixture("part:2") == (["part:2"], (1.0,))
    assert parse_mixture("part:2:0.5+csl:3") == (["part:2", "csl"], (0.5, 3.0))
    assert parse_mixture("a+b:1.txt") == (["a+b:1.txt"], (1.0,))
    assert parse_mixture("csl+a+b:1.txt:2+c:4") == (["csl", "a+b:1.txt", "c"], (1.0, 2.0, 4.0))


def test_derived_name_is_one_name_of_a_mixture() -> None:
    """Catch a derived name that is cut at a plus sign, or whose weight is taken for an argument."""
    names, weights = parse_mixture("long(a,5):0.5+csl+distractors(b,2,99)")
    assert names == ["long(a,5)", "csl", "distractors(b,2,99)"] and weights == (0.5, 1.0, 1.0)
    with pytest.raises(ValueError, match="takes one set"):
        parse_mixture("csl+long(a+b,5)")
