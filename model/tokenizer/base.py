"""Text to ids and back: one sequence of ids for a text, whoever asks.

The file behind a `Tokenizer` is a SentencePiece BPE model, normalised (see `model.tokenizer.sentencepiece_normalize`); that of an imported
model may be another (`model.tokenizer.imported`), behind the same interface. With a model of the project's own kind every str
without U+2581 and without lone surrogates comes back from its ids exactly; U+2581 is how the model writes a space, so
it comes back as one.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from common.errors import UserError
from common.files import read_limited, write_atomic
from common.machine import num_cores
from model.tokenizer.sentencepiece_normalize import (
    BYTE,
    CONTROL,
    UNKNOWN,
    NormalizationChanges,
    normalize_model,
    parse_sentencepiece_model,
)

TOKENIZER_FILE = "tokenizer.model"
IMPORTED_TOKENIZER_FILE = "tokenizer_imported.json"
# Before a special token in the words of a template; one of the code points that Unicode keeps out of text for such use.
SPECIAL_TOKEN_MARK = "\ufdd0"
METASPACE = "\u2581"
# Start and stop of a stretch of ids.
Span = tuple[int, int]


class Piece(NamedTuple):
    """One id of a vocabulary: its text as stored (U+2581 for a space), its score, its type in SentencePiece's terms."""

    text: str
    score: float
    kind: int


class Tokenizer:
    """A normalised SentencePiece BPE model. Instances can be sent to other processes.

    `eos_id` ends an answer, `eod_id` a document: other ids only in some imported tokenizers.
    """

    file_name = TOKENIZER_FILE  # what it is called in a folder
    adds_prefix_space = False  # whether a space that the text does not have comes first in its ids
    template_fields: ClassVar[dict[str, Any]] = {}  # of the template that came with it, if one did

    def __init__(self, serialized: bytes) -> None:
        """`serialized` are normalised bytes: use `Tokenizer.load` for files."""
        import sentencepiece

        self.serialized = serialized
        self._model = sentencepiece.SentencePieceProcessor()
        self._model.LoadFromSerializedProto(serialized)
        self.vocab_size: int = self._model.get_piece_size()
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        self.eod_id = self.eos_id
        self.unk_id: int = self._model.unk_id()

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Load a SentencePiece file, stock or normalised, or a folder that holds `tokenizer.model` or an imported tokenizer.

        A stock file is normalised on the way. UserError if there is no such file or it is not a usable BPE model.
        """
        if (path / IMPORTED_TOKENIZER_FILE).is_file() and not (path / TOKENIZER_FILE).is_file():
            from model.tokenizer.imported import parse_imported_tokenizer

            return parse_imported_tokenizer(
                read_limited(path / IMPORTED_TOKENIZER_FILE), path / IMPORTED_TOKENIZER_FILE
            )
        return Tokenizer(read_normalized_model(path)[0])

    def save(self, folder: Path) -> None:
        """Write the file that `load` takes into a folder."""
        write_atomic(folder / self.file_name, self.serialized)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.serialized,)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hex sha256 of the normalised bytes."""
        return hashlib.sha256(self.serialized).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without bos and eos; a literal `</s>` stays text. UserError for a lone surrogate."""
        return self._model.encode(encode_utf8(text))

    def encode_batch(self, texts: Sequence[str], num_threads: int | None = None) -> list[list[int]]:
        """The ids of each text, encoded on `num_threads` cores (default: all this process may use)."""
        return self._model.encode(
            [encode_utf8(text) for text in texts], num_threads=num_threads or num_cores()
        )

    def encode_continuation(
        self, texts: Sequence[str], num_threads: int | None = None
    ) -> list[list[int]]:
        """The ids of parts of a conversation as they are behind others: no space comes first that a text does not have.

        Special tokens in them have `MARK` before them.
        """
        return self.encode_batch(texts, num_threads)

    def encode_conversations(
        self,
        conversations: Sequence[Sequence[str]],
        bos_ids: Sequence[int],
        num_threads: int | None = None,
    ) -> list[tuple[list[int], list[Span]]]:
        """The ids of conversations, and the span of each answer with its eos.

        A conversation is given as its texts: what precedes an answer, and the answer, in turns; one that ends before an
        answer is a prompt. `bos_ids` are the ids before its first text, special ones. Here each text is encoded by itself.
        """
        encoded = iter(
            self.encode_batch([text for texts in conversations for text in texts], num_threads)
        )
        return [
            self._join_segments([next(encoded) for _ in texts], bos_ids) for texts in conversations
        ]

    def _join_segments(
        self, segments: Sequence[list[int]], bos_ids: Sequence[int]
    ) -> tuple[list[int], list[Span]]:
        ids, spans = list(bos_ids), []
        for index, part in enumerate(segments):
            if index % 2:
                spans.append((len(ids), len(ids) + len(part) + 1))
            ids += [*part, self.eos_id] if index % 2 else part
        return ids, spans

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The UTF-8 of ids, which may end inside a character; special ids contribute nothing."""
        return b"".join([self._bytes_per_id[index] for index in ids])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special ids contribute nothing, bytes that form no character become U+FFFD."""
        text = self.decode_bytes(ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.adds_prefix_space else text

    @functools.cached_property
    def characters_per_id(self) -> np.ndarray:
        """int16[vocabulary_size]: the characters (Python's `len`) that an id adds to the decoded text.

        A byte piece counts 1 if it begins a character and 0 if it continues one, so the sum over `encode(text)` is
        `len(text)`. Special ids count 0.
        """
        return np.array(
            [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self._bytes_per_id],
            dtype=np.int16,
        )

    @functools.cached_property
    def pieces(self) -> list[Piece]:
        """The vocabulary, in the order of ids."""
        return [
            Piece(item.piece, item.score, item.type)
            for item in parse_sentencepiece_model(self.serialized, TOKENIZER_FILE).pieces
        ]

    @functools.cached_property
    def _bytes_per_id(self) -> list[bytes]:
        """What each id contributes to the decoded UTF-8."""
        return [_piece_bytes(piece) for piece in self.pieces]


def read_normalized_model(path: Path) -> tuple[bytes, NormalizationChanges]:
    """The normalised bytes of what `Tokenizer.load` would load, and what normalising changed."""
    file = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        data = read_limited(file)
    except FileNotFoundError:
        raise UserError(
            f"{file} does not exist: give a SentencePiece model or a folder that holds {TOKENIZER_FILE}"
        ) from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    return normalize_model(data, str(file))


def _piece_bytes(piece: Piece) -> bytes:
    if piece.kind in (CONTROL, UNKNOWN):
        return b""
    return (
        bytes([int(piece.text[3:5], 16)])
        if piece.kind == BYTE
        else piece.text.replace(METASPACE, " ").encode()
    )


def encode_utf8(text: str) -> bytes:
    """The text as UTF-8. UserError for a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"text holds a lone surrogate U+{ord(text[error.start]):04X} at character {error.start + 1}, which is no "
            "character and has no UTF-8: clean the text first"
        ) from None
