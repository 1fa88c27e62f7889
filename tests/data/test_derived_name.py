"""The names of derived sets: `long(wikipedia,4096)`."""

from pathlib import Path

import pytest

from data.derived_name import DerivedName, parse_derived_name


def test_name_has_a_derivation_a_source_and_arguments() -> None:
    """Catch a plain name taken for a derived one, and a name that is not read back as written."""
    name = parse_derived_name("long(wikipedia, 4096)")
    assert name == DerivedName("long", "wikipedia", ("4096",)) == parse_derived_name(str(name))
    assert str(name) == "long(wikipedia,4096)"
    assert name.label("wikipedia-b38becd1") == "long-4096-wikipedia-b38becd1"
    # Paths may be longer than the name of a file: each is six digits then.
    name = DerivedName("titles", "zhihu", tuple(f"/data/{'测试' * 60}/{n}.tsv" for n in range(5)))
    assert len(name.label("zhihu-b38becd1").encode()) < 80
    # Different arguments are different names.
    names = [
        DerivedName("titles", "a", arguments) for arguments in (("b/c",), ("b-c",), ("b", "c"))
    ]
    assert len({name.label("a") for name in names}) == 3
    for plain in (
        "wikipedia",
        "csl:0.5",
        "long",
        "long(a,5)+long(b,5)",
        "/tmp/long(a,5)",
        "long(a",
    ):
        assert parse_derived_name(plain) is None


def test_paths_are_sources_with_their_commas_and_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch a path cut at a comma or refused as a mixture, and a file taken for a derivation."""
    monkeypatch.chdir(tmp_path)
    for file in ("a+b,1.jsonl", "long(c,5)"):
        Path(file).touch()
    assert parse_derived_name("long(a+b,1.jsonl,5)") == DerivedName("long", "a+b,1.jsonl", ("5",))
    assert parse_derived_name("long(long(c,5),6)") == DerivedName("long", "long(c,5)", ("6",))
    assert parse_derived_name("long(c,5)") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "lang(csl,5)",
            "lang is no derivation; there are after_chat, conversations_as_text, decontaminated",
        ),
        ("long()", "names no data"),
        ("long(,5)", "names no data"),
        ("long(a+b,5)", r"takes one set: long\(a,5\)\+long\(b,5\)$"),
        ("distractors(long(a,5),2)", "its source is derived, too: prepare that"),
    ],
)
def test_mistake_in_a_name_is_named(name: str, message: str) -> None:
    """Catch a mistake that is only found after minutes of preparation, or in the wrong words."""
    with pytest.raises(ValueError, match=message):
        parse_derived_name(name)
