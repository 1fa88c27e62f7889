"""Decoding settings as text and in words."""

import pytest

from common.errors import UserError
from evaluate.decoding.options import DEFAULT_SETTINGS
from evaluate.decoding.settings import GREEDY, Decoding, parse_decoding


def test_text_gives_the_options() -> None:
    """Prevents settings that are measured with other values than they name."""
    assert parse_decoding("greedy") == GREEDY == Decoding()
    assert parse_decoding("beams=4, length_penalty=-0.5,no_repeat_ngram=3") == Decoding(
        beams=4, length_penalty=-0.5, no_repeat_ngram=3
    )
    assert parse_decoding("samples=8,temperature=1,sample_seed=3") == Decoding(
        samples=8, temperature=1.0, sample_seed=3
    )


def test_descriptions_tell_settings_apart() -> None:
    """Prevents two settings under one name in results files and in kept answers."""
    texts = [*DEFAULT_SETTINGS, "greedy", "samples=16", "samples=16,sample_seed=1", "samples=8"]
    texts += ["samples=8,no_repeat_ngram=2", "repetition_penalty=1.2", "beams=2"]
    texts += ["samples=8,coverage=1", "samples=8,extracts=true", "novelty_penalty=2"]
    assert len({parse_decoding(text).describe() for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beams", "'beams' is not KEY=VALUE"),
        ("beem=4", "--beem: unknown option; did you mean --beams"),
        ("beams=x", "--beams: 'x' is not valid; expected a whole number"),
        ("beams=4,samples=4", "--beams and --samples are two ways"),
        ("temperature=1", "--temperature is for --samples"),
        ("coverage=1", "--coverage is for --samples"),
        ("extracts=true", "--extracts is for --samples"),
        ("novelty_penalty=-1", "--novelty_penalty: '-1' is not valid"),
        ("length_penalty=2", "--length_penalty is for --beams"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    """Prevents options without effect, and tracebacks."""
    with pytest.raises(UserError, match=message):
        parse_decoding(text)
