"""The tokenizer of an imported model, run by the `tokenizers` library that wrote it.

`tokenizer_imported.json` holds the model's `tokenizer.json`, its `tokenizer_config.json`, and the
ids of bos, eos and unk. Texts get the ids that transformers gives them, with one exception: a
special token that is spelled in a text is encoded as ordinary text.
"""

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_json
from model.tokenizer.base import (
    IMPORTED_TOKENIZER_FILE,
    METASPACE,
    SPECIAL_TOKEN_MARK,
    Piece,
    Tokenizer,
    encode_utf8,
)
from model.tokenizer.hf_backend import (
    MarkedText,
    MarkedTokenBackend,
    build_backend,
    encode_with_backend,
    without_prefix_space,
)
from model.tokenizer.sentencepiece_normalize import BYTE, CONTROL, MAX_PIECE_LENGTH, NORMAL

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_SUPPORTED_DECODERS = {"ByteLevel", "ByteFallback", "Metaspace", "Replace"}
# Tables such as `pieces` have a row for every id, so a few ids up to billions would exhaust the
# memory.
_MAX_IDS_PER_TOKEN = 100
# Two characters that are in no vocabulary: a private one, and an unassigned one.
_OUT_OF_VOCAB_TEXT = "\U0010fffd\U000e0fff"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
# The fields of `tokenizer_imported.json` and their types. Files of earlier versions also have the
# field `words` with the chat template, which is in `template.json` now.
_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "definition": (dict,),
    "config": (dict,),
    "bos_id": (int,),
    "eos_id": (int,),
    "unk_id": (int, type(None)),
}


class ImportedTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library behind the interface of `Tokenizer`."""

    file_name = IMPORTED_TOKENIZER_FILE

    def __init__(self, serialized: bytes) -> None:
        """Load the bytes of a `tokenizer_imported.json`; `parse_imported_tokenizer` checks them."""
        super().__init__(serialized)
        fields = json.loads(serialized)
        self.definition: dict[str, Any] = fields["definition"]
        self.tokenizer_config: dict[str, Any] = fields["config"]
        self._backend = build_backend(self.definition)
        self._vocab: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocab.values(), default=-1) + 1
        self.bos_id = fields["bos_id"]
        self.eos_id = fields["eos_id"]
        self.unk_id = fields["unk_id"]
        # Read from the backend rather than from the definition, because the backend fills in
        # missing fields.
        self._added_tokens: dict[int, Any] = self._backend.get_added_tokens_decoder()
        decoder: Any = self._backend.decoder
        self._decoder: dict[str, Any] | None = decoder and json.loads(decoder.__getstate__())
        # Llama 3 ends a document with <|end_of_text|>, the eos_token of tokenizer_config.json, and
        # an answer with <|eot_id|>.
        eod_id = _find_special_id("eos", self.definition, self.tokenizer_config, {})
        self.eod_id = self.eos_id if eod_id is None else eod_id
        self.adds_prefix_space = _strips_prefix_space(self._decoder)

    @functools.cached_property
    def canonical_definition(self) -> dict[str, Any]:
        """Return the `tokenizer.json` as `tokenizers` writes it, complete and with valid types."""
        definition: dict[str, Any] = json.loads(self._backend.to_str())
        return definition

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """Return the ids of special tokens by name. `encode` never returns any of them."""
        tokens = {
            token.content: index for index, token in self._added_tokens.items() if token.special
        }
        # bos and eos are special even if the definition does not declare them so.
        texts = {index: text for text, index in self._vocab.items()}
        tokens[texts[self.bos_id]] = self.bos_id
        tokens[texts[self.eos_id]] = self.eos_id
        return tokens

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        encode_utf8(text)
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str], num_threads: int | None = None) -> list[list[int]]:
        """See `Tokenizer.encode_batch`; above 1, `tokenizers` chooses the number of threads."""
        encodings = encode_with_backend(self._backend, texts, num_threads)
        return [encoding.ids for encoding in encodings]

    def encode_continuation(
        self, texts: Sequence[str], num_threads: int | None = None
    ) -> list[list[int]]:
        """See `Tokenizer.encode_continuation`."""
        # Only the part before the first special token continues the preceding text. After a special
        # token, a tokenizer may add a prefix space.
        parts = [text.partition(SPECIAL_TOKEN_MARK) for text in texts]
        heads = encode_with_backend(
            self._backend_without_prefix_space, [head for head, _, _ in parts], num_threads
        )
        tails = self.encode_marked([mark + tail for _, mark, tail in parts], num_threads)
        return [head.ids + tail.ids for head, tail in zip(heads, tails, strict=True)]

    def encode_marked(
        self, texts: Sequence[str], num_threads: int | None = None
    ) -> list[MarkedText]:
        """Return ids and offsets of texts in which SPECIAL_TOKEN_MARK precedes special tokens."""
        return self._marked_backend.encode_batch(texts, num_threads)

    @functools.cached_property
    def marked_special_tokens(self) -> dict[int, str]:
        """Return SPECIAL_TOKEN_MARK + name of each special token, by id."""
        return {index: SPECIAL_TOKEN_MARK + text for text, index in self.special_tokens.items()}

    @functools.cached_property
    def _marked_backend(self) -> MarkedTokenBackend:
        """Return a second backend, for texts with marked special tokens, built on first use."""
        return MarkedTokenBackend(
            self.canonical_definition, self.special_tokens, self._added_tokens
        )

    @functools.cached_property
    def _backend_without_prefix_space(self) -> Any:
        """Return a backend that puts no space before texts, which is often the same one."""
        definition = without_prefix_space(self.canonical_definition)
        if definition == self.canonical_definition:
            return self._backend
        return build_backend(definition)

    def find_ids_without_token(self, vocab_size: int) -> list[int]:
        """See `Tokenizer.find_ids_without_token`. Padding may also precede added tokens."""
        return sorted(set(range(vocab_size)) - set(self._vocab.values()))

    def _build_pieces(self) -> list[Piece]:
        """Return the vocabulary, with scores of 0; ids without a token are empty control pieces."""
        pieces = [Piece("", 0.0, CONTROL)] * self.vocab_size
        special_ids = set(self.special_tokens.values())
        has_byte_fallback = "ByteFallback" in _decoder_types(self._decoder)
        for text, index in self._vocab.items():
            kind = NORMAL
            if index in special_ids:
                kind = CONTROL
            elif has_byte_fallback and _BYTE_PIECE.fullmatch(text):
                kind = BYTE
            pieces[index] = Piece(text, 0.0, kind)
        return pieces

    def _build_bytes_per_id(self) -> list[bytes]:
        """See `Tokenizer._build_bytes_per_id`."""
        is_byte_level = "ByteLevel" in _decoder_types(self._decoder)
        alphabet = byte_alphabet()
        bytes_per_id = []
        for index, piece in enumerate(self.pieces):
            if piece.kind == CONTROL:
                piece_bytes = b""
            elif piece.kind == BYTE:
                piece_bytes = bytes([int(piece.text[3:5], 16)])
            elif not is_byte_level:  # SentencePiece-style
                piece_bytes = piece.text.replace(METASPACE, " ").encode()
            elif index in self._added_tokens:  # stored as text, not in the byte alphabet
                piece_bytes = piece.text.encode()
            else:  # one character for each byte
                piece_bytes = b"".join(alphabet.get(char, char.encode()) for char in piece.text)
            bytes_per_id.append(piece_bytes)
        return bytes_per_id

    def check(self, path: Path) -> None:
        """Raise UserError, naming `path`, if the rest of the project could not use the tokenizer.

        Its ids and the length of its pieces must be within limits, and bos and eos in its
        vocabulary. It must decode every id, encode every text, and never encode user text as
        special tokens. If it cannot encode every text, the error is the plain `Exception` of
        `tokenizers`, for which `parse_imported_tokenizer` raises a UserError.
        """
        used_ids = set(self._vocab.values())
        if self.vocab_size > _MAX_IDS_PER_TOKEN * len(used_ids):
            raise UserError(
                f"{path}: {len(used_ids):,} tokens have ids up to {self.vocab_size - 1:,}: the "
                "file is damaged"
            )
        longest = max(map(len, self._vocab), default=0)
        if longest > MAX_PIECE_LENGTH:
            raise UserError(
                f"{path} holds a piece of {longest:,} characters; the limit is "
                f"{MAX_PIECE_LENGTH:,}: the file is damaged"
            )
        if not {self.bos_id, self.eos_id} <= used_ids:
            raise UserError(
                f"{path}: bos id {self.bos_id} or eos id {self.eos_id} is not in its vocabulary"
            )
        if not _SUPPORTED_DECODERS & _decoder_types(self._decoder):
            raise UserError(
                f"{path}: its decoder is not supported; expected a byte-level or a SentencePiece "
                "tokenizer"
            )
        # Without an unknown token or byte fallback, `tokenizers` raises an Exception at a character
        # outside the vocabulary.
        self.encode(_OUT_OF_VOCAB_TEXT)
        # User text may be encoded as the unknown token.
        special_ids = set(self.special_tokens.values()) - {self.unk_id}
        for text in self.special_tokens:
            if not text or special_ids & set(self.encode(text)):
                raise UserError(
                    f"{path}: user text {text!r} would be encoded as a special token: this "
                    "tokenizer cannot be used"
                )

    def with_chat_template(self, source: str, eos_id: int, path: Path) -> "ImportedTokenizer":
        """Return a copy with a Jinja chat template, whose answers end with `eos_id`.

        `path` is for messages. Raises UserError as `parse_imported_tokenizer` does.
        """
        config = {**self.tokenizer_config, "chat_template": source}
        return build_imported_tokenizer(
            self.definition, config, self.bos_id, eos_id, self.unk_id, path
        )

    def export(self, folder: Path, chat_template: str) -> None:
        """Write `tokenizer.json`, and `tokenizer_config.json` with a Jinja chat template."""
        write_json(folder / TOKENIZER_JSON, self.definition)
        # The original class, such as LlamaTokenizer, may rebuild the tokenizer from the vocabulary
        # and place spaces differently.
        config = {
            **self.tokenizer_config,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": chat_template,
        }
        write_json(folder / TOKENIZER_CONFIG, config)


def load_hf_tokenizer(folder: Path, model_config: dict[str, Any]) -> ImportedTokenizer:
    """Load the tokenizer of a folder in Hugging Face format.

    `model_config` is the content of its `config.json`. Raises UserError if the tokenizer cannot be
    used.
    """
    file = folder / TOKENIZER_JSON
    definition = read_json(file)
    tokenizer_config = {}
    if (folder / TOKENIZER_CONFIG).is_file():
        tokenizer_config = read_json(folder / TOKENIZER_CONFIG)
    if not isinstance(definition, dict) or not isinstance(tokenizer_config, dict):
        raise UserError(
            f"{file} is not a tokenizer of the tokenizers library, or the {TOKENIZER_CONFIG} "
            "beside it is damaged"
        )
    bos_id, eos_id, unk_id = (
        _find_special_id(role, definition, tokenizer_config, model_config)
        for role in ("bos", "eos", "unk")
    )
    if eos_id is None:
        raise UserError(
            f"{file}: neither {TOKENIZER_CONFIG} (eos_token) nor config.json (eos_token_id) names "
            "the token that ends a text"
        )
    if bos_id is None:
        # Models without a bos were trained with the eos between texts.
        bos_id = eos_id
    return build_imported_tokenizer(definition, tokenizer_config, bos_id, eos_id, unk_id, file)


def build_imported_tokenizer(
    definition: dict[str, Any],
    tokenizer_config: dict[str, Any],
    bos_id: int,
    eos_id: int,
    unk_id: int | None,
    path: Path,
) -> ImportedTokenizer:
    """Build a tokenizer from a `tokenizer.json` and a `tokenizer_config.json`.

    `path` is the file named in messages. Raises UserError as `parse_imported_tokenizer` does.
    """
    fields = {
        "definition": definition,
        "config": tokenizer_config,
        "bos_id": bos_id,
        "eos_id": eos_id,
        "unk_id": unk_id,
    }
    return parse_imported_tokenizer(_encode_json(fields, path), path)


def parse_imported_tokenizer(serialized: bytes, path: Path) -> ImportedTokenizer:
    """Load and check the bytes of a `tokenizer_imported.json`, which may come from anybody.

    Raises UserError that names `path` if they are malformed, or if the tokenizer cannot decode or
    encodes user text to special tokens.
    """
    try:
        _check_fields(json.loads(serialized), path)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    try:
        tokenizer = ImportedTokenizer(serialized)
        tokenizer.check(path)
    except Exception as error:
        # `tokenizers` raises plain `Exception`. A subclass is a UserError or a bug.
        if type(error) is not Exception:
            raise
        raise UserError(f"{path} cannot be read: {error}") from None
    return tokenizer


def _check_fields(fields: Any, path: Path) -> None:
    """Raise UserError for fields that `tokenizers` would accept wrongly, or crash on."""
    if not isinstance(fields, dict) or any(
        key not in fields or type(fields[key]) not in types for key, types in _FIELD_TYPES.items()
    ):
        raise UserError(f"{path} is not an imported tokenizer: expected {', '.join(_FIELD_TYPES)}")
    # Exports write the config, so a lone surrogate in it is an error now rather than then. In the
    # definition `tokenizers` finds lone surrogates itself.
    _encode_json(fields["config"], path)
    model = fields["definition"].get("model")
    # `tokenizers` refuses such a definition with a clear message.
    if not isinstance(model, dict):
        return
    if "merges" in model and model.get("continuing_subword_prefix"):
        # `tokenizers` cuts as many bytes off pieces as the prefix has, which can split a character
        # and abort the process.
        raise UserError(f"{path}: BPE with a continuing_subword_prefix is not supported")
    vocab = model.get("vocab")
    if isinstance(vocab, dict) and len(set(map(str, vocab.values()))) < len(vocab):
        # Which of the two tokens the id is decoded to would change from one load to the next.
        raise UserError(f"{path}: two vocabulary entries share an id: the file is damaged")
    if model.get("dropout"):
        raise UserError(
            f"{path}: BPE dropout is set, so a text would get random ids: set dropout to null"
        )


def _encode_json(value: dict[str, Any], path: Path) -> bytes:
    """Return a value as JSON in UTF-8. Raises UserError if it holds a lone surrogate."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path}, or another tokenizer file beside it, holds a lone surrogate (half a "
            "character)"
        ) from None


def _find_special_id(
    role: str,
    definition: dict[str, Any],
    tokenizer_config: dict[str, Any],
    model_config: dict[str, Any],
) -> int | None:
    """Return the id of the special token of a role ("bos", "eos" or "unk"), or None.

    The name of the token in `tokenizer_config.json` is looked up in the `tokenizer.json`; if that
    fails, `config.json` may have the id.
    """
    # A name, or the fields of an AddedToken.
    token = tokenizer_config.get(f"{role}_token")
    text = token.get("content") if isinstance(token, dict) else token
    added_tokens = definition.get("added_tokens")
    if text is not None and isinstance(added_tokens, list):
        for added_token in added_tokens:
            is_named = isinstance(added_token, dict) and added_token.get("content") == text
            if is_named and type(added_token.get("id")) is int:
                return int(added_token["id"])
    token_id = model_config.get(f"{role}_token_id")
    # Of several eos ids the first ends a text; see `LlamaConfig`.
    if isinstance(token_id, list) and token_id:
        token_id = token_id[0]
    # type(), because a bool is an instance of int.
    return token_id if type(token_id) is int else None


def _decoder_types(decoder: dict[str, Any] | None) -> set[str]:
    """Return the types of a decoder and of the decoders inside it."""
    if not decoder:
        return set()
    inner_types = (_decoder_types(inner) for inner in decoder.get("decoders", ()))
    return {str(decoder["type"])}.union(*inner_types)


def _strips_prefix_space(decoder: dict[str, Any] | None) -> bool:
    """Return whether decoding removes a leading space, and encoding therefore adds one."""
    parts = decoder.get("decoders", [decoder]) if decoder else []
    for part in parts:
        if part["type"] == "Strip" and part["start"] == 1:
            return True
        if part["type"] == "Metaspace" and part["prepend_scheme"] != "never":
            return True
    return False


def byte_alphabet() -> dict[str, bytes]:
    """Return the byte that each character in the pieces of byte-level BPE represents.

    In the vocabulary of GPT-2 (Radford et al. 2019) a printable byte is written as the character of
    the same code point, the others in their order as U+0100 onwards.
    """
    # The printable characters of ASCII and Latin-1.
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    alphabet = {chr(byte): bytes([byte]) for byte in visible}
    for offset, byte in enumerate(hidden):
        alphabet[chr(0x100 + offset)] = bytes([byte])
    return alphabet
