"""Hostile tokenizers: any bytes or values load, or give one line."""

import copy
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from model.interop.gguf.export import build_vocabulary
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer
from model.tokenizer.imported import parse_imported_tokenizer
from tests.helpers import hf_checkpoints
from tests.reliability.test_hostile_metadata import REMOVED, VALUES, _places

QUICK = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@given(at=st.integers(0, 10**6), noise=st.binary(min_size=1, max_size=40))
@settings(QUICK, max_examples=20)
def test_corrupted_tokenizer_gives_one_line_error_or_loads(
    tmp_path: Path, tokenizer: Tokenizer, at: int, noise: bytes
) -> None:
    """Prevents a crash for random changes to a SentencePiece model."""
    data = bytearray(tokenizer.serialized)
    # Half of the noise in the last kilobytes, where the settings are, the rest anywhere.
    at = at % len(data) if at % 2 else len(data) - 1 - at % 2000
    data[at : at + len(noise)] = noise
    (tmp_path / "tokenizer.model").write_bytes(bytes(data))
    try:
        loaded = load_tokenizer(tmp_path)
    except UserError as error:
        assert str(tmp_path) in str(error)
    else:
        assert loaded.decode(loaded.encode("你好，world")) is not None


@given(data=st.binary(max_size=300))
@QUICK
def test_random_bytes_are_rejected_as_tokenizer(tmp_path: Path, data: bytes) -> None:
    """Prevents an error that does not name the folder."""
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        load_tokenizer(tmp_path)


@pytest.mark.slow
def test_huge_piece_is_handled_quickly(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Prevents quadratic work: every split of a piece of millions of characters."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(tokenizer.serialized)
    model.pieces[-1].piece = "长" * 3_000_000
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="holds a piece of 3000000 characters"):
        load_tokenizer(tmp_path)


TEXTS = ["从前有座山，山上有座庙。", "hello world 123 'tis", "庙里有个和尚 讲故事"] * 5


def imported_fields(kind: str, **changes: Any) -> dict[str, Any]:
    """Return the fields of a small `tokenizer_imported.json`."""
    backend = (
        hf_checkpoints.train_byte_level_bpe(TEXTS, vocab_size=320)
        if kind == "byte_level"
        else hf_checkpoints.train_sentencepiece_bpe(TEXTS, add_prefix_space=True, vocab_size=400)
    )
    ids = {"bos_id": 1, "eos_id": 2, "unk_id": 0}
    return {"definition": json.loads(backend.to_str()), "config": {}, **ids, **changes}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_arbitrary_imported_tokenizer_values_export_or_give_one_line_error(kind: str) -> None:
    """Prevents a KeyError from the GGUF export for fields that the library fills in."""
    original, num_loaded = imported_fields(kind), 0
    # Every fourth change. Four does not divide the number of values: all of them occur.
    assert len(VALUES) % 4
    changes = list(itertools.product(_places(original["definition"]), VALUES))[::4]
    for place, new in changes:
        value = copy.deepcopy(original)
        *before, last = ("definition", *place)
        node: Any = value
        for key in before:
            node = node[key]
        node[last] = new
        if new is REMOVED:
            del node[last]
        try:
            tokenizer = parse_imported_tokenizer(json.dumps(value).encode(), Path("x.json"))
            assert len(tokenizer.characters_per_id) == tokenizer.vocab_size
            build_vocabulary(tokenizer, tokenizer.vocab_size + 3)
            num_loaded += 1
        except UserError as error:
            assert "\n" not in str(error), (place, new)
    assert num_loaded > len(changes) // 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"continuing_subword_prefix": "##"}}, "BPE with a continuing_subword_prefix"),
        ({"model": {"dropout": 0.5}}, "BPE dropout is set"),
        (
            {"model": {"vocab": {"a": 0, "b": 1, "c": 1}}},
            "two vocabulary entries share an id",
        ),
        (
            {
                "added_tokens": [
                    {
                        "id": 320,
                        "content": "x" * 40_000,
                        "single_word": False,
                        "lstrip": False,
                        "rstrip": False,
                        "normalized": False,
                        "special": False,
                    }
                ]
            },
            "holds a piece of 40,000 characters",
        ),
    ],
)
def test_library_crashes_and_overflows_give_one_line_error(
    changes: dict[str, Any], message: str
) -> None:
    """Prevents aborts inside the library, ambiguous ids and overflowing tables."""
    definition = imported_fields("byte_level")["definition"]
    changed = {
        key: {**(definition[key] or {}), **value} if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=rf"^x\.json:? .*{message}"):
        parse_imported_tokenizer(
            json.dumps(
                imported_fields("byte_level", definition={**definition, **changed})
            ).encode(),
            Path("x.json"),
        )
