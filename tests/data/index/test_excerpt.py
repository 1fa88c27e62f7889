"""Excerpts of passages."""

from hypothesis import given
from hypothesis import strategies as st

from data.index.excerpt import find_excerpt

TEXT = "前面说的是别的事情。" * 20 + "西湖在杭州的西边。" + "后面说的也是别的事情。" * 20


def test_excerpt_is_what_was_searched_for() -> None:
    """Prevents the beginning of a long passage in place of what the question asks for."""
    excerpt = find_excerpt(TEXT, "西湖在哪里？", 30)
    assert "西湖在杭州的西边。" in excerpt
    assert excerpt[0] == excerpt[-1] == "…" and len(excerpt) == 30


def test_script_does_not_matter() -> None:
    """Prevents an excerpt from elsewhere for a question in the other script."""
    assert "广州的塔" in find_excerpt(TEXT + "广州的塔。", "廣州的塔", 20)


def test_short_passage_is_shown_whole() -> None:
    """Prevents marks of omission where nothing is left out."""
    assert find_excerpt(" 西湖\n在杭州。 ", "塔", 30) == "西湖 在杭州。"


@given(st.text("天地人 \n。", max_size=60), st.text("天地人", max_size=5), st.integers(4, 30))
def test_excerpt_is_a_part_of_the_passage(text: str, query: str, length: int) -> None:
    """Prevents invented, cut or too many characters at the ends of a passage."""
    excerpt = find_excerpt(text, query, length)
    line = " ".join(text.split())
    assert len(excerpt) <= length and excerpt.strip("…") in line
    assert excerpt.startswith("…") or line.startswith(excerpt.strip("…"))
    assert excerpt.endswith("…") or line.endswith(excerpt.strip("…"))
