"""The interface of every tokenizer: text to ids and back.

`model.tokenizer.sentencepiece_tokenizer` implements it for the project's own SentencePiece models,
`model.tokenizer.imported` for the `tokenizer.json` of an imported model.
"""

import abc
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from common.errors import UserError
from common.files import write_atomic

TOKENIZER_FILE = "tokenizer.model"
IMPORTED_TOKENIZER_FILE = "tokenizer_imported.json"
# Precedes a special token in the text of a chat template. Unicode reserves this code point as a
# noncharacter, so it never occurs in valid text.
SPECIAL_TOKEN_MARK = "\ufdd0"
# The character that SentencePiece writes for a space.
METASPACE = "\u2581"
# Start and stop (exclusive) of a range of ids, or of characters.
Span = tuple[int, int]


class Piece(NamedTuple):
    """An entry of the vocabulary."""

    text: str
    """As stored: U+2581 for a space, `<0xE4>` for a byte."""
    score: float
    """SentencePiece merges the pair with the highest score first; 0 in imported tokenizers."""
    kind: int
    """A piece type of SentencePiece, such as NORMAL in `sentencepiece_normalize`."""


class Tokenizer(abc.ABC):
    """Encode text to ids and decode ids to text. Instances can be pickled, for worker processes.

    `eos_id` ends an answer and `eod_id` a document; they differ in some imported tokenizers only.
    """

    file_name: ClassVar[str]  # name of the serialized tokenizer in a folder
    adds_prefix_space = False  # whether `encode` puts a space before every text
    vocab_size: int
    bos_id: int
    eos_id: int
    eod_id: int
    unk_id: int | None

    def __init__(self, serialized: bytes) -> None:
        """Store `serialized`, the contents of a file that `save` writes as `file_name`."""
        self.serialized = serialized

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.serialized,)

    def save(self, folder: Path) -> None:
        """Write the file that `load_tokenizer` reads into a folder."""
        write_atomic(folder / self.file_name, self.serialized)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return the hex sha256 of the serialized tokenizer."""
        return hashlib.sha256(self.serialized).hexdigest()

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without bos and eos.

        A special token that is spelled in the text is encoded as ordinary text. Raises UserError if
        the text holds a lone surrogate.
        """

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str], num_threads: int | None = None) -> list[list[int]]:
        """Return the ids of each text, encoded on `num_threads` cores (default: all)."""

    @abc.abstractmethod
    def encode_continuation(
        self, texts: Sequence[str], num_threads: int | None = None
    ) -> list[list[int]]:
        """Return the ids of texts that continue another text, so without a prefix space.

        A special token that SPECIAL_TOKEN_MARK precedes is encoded as its id. `num_threads` is as
        in `encode_batch`.
        """

    def find_ids_without_token(self, vocab_size: int) -> list[int]:
        """Return the ids below `vocab_size`, that of a model, that stand for no token.

        Many published models have a vocabulary that is padded to a multiple of 64 or 128.
        """
        return list(range(self.vocab_size, vocab_size))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the UTF-8 bytes of ids. The last character may be incomplete.

        Special ids have no bytes, and neither have ids without a token.
        """
        return b"".join([self._bytes_per_id[index] for index in ids if index < self.vocab_size])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special ids, and with U+FFFD for invalid UTF-8."""
        text = self.decode_bytes(ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.adds_prefix_space else text

    @functools.cached_property
    def characters_per_id(self) -> np.ndarray:
        """Return the number of characters that each id adds to the decoded text, int16[vocab_size].

        A byte piece counts 1 if it begins a character and 0 if it continues one, so that the sum
        over `encode(text)` is `len(text)`, plus 1 for a prefix space. Special ids count 0.
        """
        # Every byte of UTF-8 except 0b10xxxxxx begins a character.
        counts = [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self._bytes_per_id]
        return np.array(counts, dtype=np.int16)

    @functools.cached_property
    def pieces(self) -> list[Piece]:
        """Return the vocabulary in the order of ids."""
        return self._build_pieces()

    @abc.abstractmethod
    def _build_pieces(self) -> list[Piece]:
        """Return the vocabulary in the order of ids; `pieces` stores the result."""

    @functools.cached_property
    def _bytes_per_id(self) -> list[bytes]:
        return self._build_bytes_per_id()

    @abc.abstractmethod
    def _build_bytes_per_id(self) -> list[bytes]:
        """Return the UTF-8 that each id adds to decoded text; empty for special ids."""


def encode_utf8(text: str) -> bytes:
    """Return a text as UTF-8. Raises UserError for a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"text holds a lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start + 1}, which cannot be written as UTF-8: clean the text first"
        ) from None
