"""Hostile tokenizers: any bytes in place of a SentencePiece model are one line, or a tokenizer."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from model.tokenizer import Tokenizer

QUICK = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(at=st.integers(0, 10**6), noise=st.binary(min_size=1, max_size=40))
@QUICK
def test_any_damage_to_a_tokenizer_is_one_line_or_a_tokenizer(
    tmp_path: Path, tokenizer: Tokenizer, at: int, noise: bytes
) -> None:
    data = bytearray(tokenizer.serialized)
    # Half of the noise in the last kilobytes, where the settings are, the rest anywhere.
    at = at % len(data) if at % 2 else len(data) - 1 - at % 2000
    data[at : at + len(noise)] = noise
    (tmp_path / "tokenizer.model").write_bytes(bytes(data))
    try:
        loaded = Tokenizer.load(tmp_path)
    except UserError as error:
        assert str(tmp_path) in str(error)
    else:
        assert loaded.decode(loaded.encode("你好，world")) is not None


@given(data=st.binary(max_size=300))
@QUICK
def test_random_bytes_are_no_tokenizer(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        Tokenizer.load(tmp_path)


def test_a_piece_of_megabytes_does_not_take_hours(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Every cut of every piece is looked at: ten million cuts of ten megabytes each."""
    from sentencepiece import sentencepiece_model_pb2

    held = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    held.ParseFromString(tokenizer.serialized)
    held.pieces[-1].piece = "长" * 3_000_000
    (tmp_path / "tokenizer.model").write_bytes(held.SerializeToString())
    with pytest.raises(UserError, match="holds a piece of 3000000 characters"):
        Tokenizer.load(tmp_path)
