"""The tokenizer of an imported model: what its `tokenizer.json` says, done by the library that wrote it.

The file behind it, `tokenizer_imported.json`, holds the `tokenizer.json`, its `tokenizer_config.json`, the ids that begin
and end a text, and the words of the chat template that came with it. Texts get the ids that transformers gives them, but for
one thing: text never yields a special id, whatever it spells.
"""

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import read_json, write_json
from model.chat_template.imported_encoding import (
    ConversationEncoder,
    build_backend,
    encode_texts,
    without_prefix_space,
)
from model.chat_template.template import parse_template
from model.tokenizer.base import (
    IMPORTED_TOKENIZER_FILE,
    METASPACE,
    SPECIAL_TOKEN_MARK,
    Piece,
    Span,
    Tokenizer,
    encode_utf8,
)
from model.tokenizer.regex_guard import SlowRegexError, check_regex, iter_regexes
from model.tokenizer.sentencepiece_normalize import BYTE, CONTROL, MAX_PIECE_LENGTH, NORMAL

TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_SUPPORTED_DECODERS = {"ByteLevel", "ByteFallback", "Metaspace", "Replace"}
# Ids for each that is used: more are no vocabulary, and every table of one has a row for each.
_MAX_IDS_PER_TOKEN = 100
# Of characters that no vocabulary has.
_OUT_OF_VOCAB_TEXT = "\U0010fffd\U000e0fff"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class ImportedTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library behind the interface of `Tokenizer`."""

    file_name = IMPORTED_TOKENIZER_FILE

    def __init__(self, serialized: bytes) -> None:
        """`serialized` are the bytes of a `tokenizer_imported.json`: see `imported`."""
        self.serialized = serialized
        fields = json.loads(serialized)
        self.definition: dict[str, Any] = fields["definition"]
        self.tokenizer_config: dict[str, Any] = fields["config"]
        self.template_fields = fields["words"]  # type: ignore[misc]
        self._backend = build_backend(self.definition)
        self._vocab: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocab.values(), default=-1) + 1
        self.bos_id, self.eos_id, self.unk_id = fields["bos_id"], fields["eos_id"], fields["unk_id"]
        # What the library made of the definition: nothing is missing there, and nothing of another type.
        self._added_tokens: dict[int, Any] = self._backend.get_added_tokens_decoder()
        decoder: Any = self._backend.decoder
        self._decoder: dict[str, Any] | None = decoder and json.loads(decoder.__getstate__())
        # Llama 3 ends a document with <|end_of_text|>, which tokenizer_config.json names, and an answer with <|eot_id|>.
        declared = _find_special_id("eos", self.definition, self.tokenizer_config, {})
        self.eod_id = self.eos_id if declared is None else declared
        self.adds_prefix_space = _strips_prefix_space(self._decoder)

    @functools.cached_property
    def canonical_definition(self) -> dict[str, Any]:
        """The `tokenizer.json` as the library writes what it read: nothing is missing there, and nothing of another type."""
        facts: dict[str, Any] = json.loads(self._backend.to_str())
        return facts

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens: what text never yields."""
        added = {each.content: index for index, each in self._added_tokens.items() if each.special}
        known = {index: text for text, index in self._vocab.items()}
        return {**added, **{known[index]: index for index in (self.bos_id, self.eos_id)}}

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        encode_utf8(text)
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], num_threads: int | None = None) -> list[list[int]]:
        """See `Tokenizer.encode_batch`; more than one thread is as many as the library likes."""
        return [each.ids for each in encode_texts(self._backend, texts, num_threads)]

    def encode_continuation(
        self, texts: Sequence[str], num_threads: int | None = None
    ) -> list[list[int]]:
        """See `Tokenizer.encode_within`."""
        # What follows a special token does not follow the text before it.
        parts = [text.partition(SPECIAL_TOKEN_MARK) for text in texts]
        heads = encode_texts(
            self._backend_without_prefix_space, [head for head, _, _ in parts], num_threads
        )
        tails = self._conversation_encoder.encode(
            [mark + tail for _, mark, tail in parts], num_threads
        )
        return [head.ids + ids for head, (ids, _) in zip(heads, tails, strict=True)]

    def encode_conversations(
        self,
        conversations: Sequence[Sequence[str]],
        bos_ids: Sequence[int],
        num_threads: int | None = None,
    ) -> list[tuple[list[int], list[Span]]]:
        """See `Tokenizer.encode_conversations`. Here all that stands between two special tokens is encoded at once, as
        transformers does it: a piece may hold the end of what precedes an answer and the answer's beginning, and is the
        answer's.
        """
        return self._conversation_encoder.encode_conversations(
            conversations, bos_ids, self.eos_id, num_threads
        )

    @functools.cached_property
    def _conversation_encoder(self) -> ConversationEncoder:
        return ConversationEncoder(
            self.canonical_definition, self.special_tokens, self._added_tokens
        )

    @functools.cached_property
    def _backend_without_prefix_space(self) -> Any:
        definition = without_prefix_space(self.canonical_definition)
        return (
            self._backend if definition == self.canonical_definition else build_backend(definition)
        )

    @functools.cached_property
    def pieces(self) -> list[Piece]:
        """The vocabulary, in the order of ids, each with score 0; ids that nothing has are empty control pieces."""
        pieces = [Piece("", 0.0, CONTROL)] * self.vocab_size
        specials = set(self.special_tokens.values())
        fallback = "ByteFallback" in _decoder_types(self._decoder)
        for text, index in self._vocab.items():
            kind = (
                CONTROL
                if index in specials
                else BYTE
                if fallback and _BYTE_PIECE.fullmatch(text)
                else NORMAL
            )
            pieces[index] = Piece(text, 0.0, kind)
        return pieces

    @functools.cached_property
    def _bytes_per_id(self) -> list[bytes]:
        is_byte_level = "ByteLevel" in _decoder_types(self._decoder)
        alphabet = byte_alphabet()
        bytes_per_id = []
        for index, piece in enumerate(self.pieces):
            if piece.kind == CONTROL:
                bytes_per_id.append(b"")
            elif piece.kind == BYTE:
                bytes_per_id.append(bytes([int(piece.text[3:5], 16)]))
            elif is_byte_level and index not in self._added_tokens:
                bytes_per_id.append(
                    b"".join(alphabet.get(char, char.encode()) for char in piece.text)
                )
            else:
                bytes_per_id.append(
                    (piece.text if is_byte_level else piece.text.replace(METASPACE, " ")).encode()
                )
        return bytes_per_id

    @functools.cached_property
    def characters_per_id(self) -> np.ndarray:
        """See `Tokenizer.characters_per_id`; a space that is put before a text counts too."""
        return np.array(
            [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self._bytes_per_id],
            dtype=np.int16,
        )

    def check(self, path: Path) -> None:
        """UserError, naming the file `path`, where this tokenizer cannot do what others are relied on to do."""
        size, used_ids = self.vocab_size, set(self._vocab.values())
        if size > _MAX_IDS_PER_TOKEN * len(used_ids):
            raise UserError(
                f"{path}: {len(used_ids):,} ids reach up to {size - 1:,}: it is damaged"
            )
        if (longest := max(map(len, self._vocab), default=0)) > MAX_PIECE_LENGTH:
            raise UserError(
                f"{path} holds a piece of {longest:,} characters, and none is longer than {MAX_PIECE_LENGTH:,}: it is "
                "damaged"
            )
        if not {self.bos_id, self.eos_id} <= used_ids:
            raise UserError(
                f"{path}: the ids that begin and end a text, {self.bos_id} and {self.eos_id}, are none of its"
            )
        if not _SUPPORTED_DECODERS & _decoder_types(self._decoder):
            raise UserError(
                f"{path}: its decoder is of a kind that is not known here (known are byte-level and "
                "SentencePiece)"
            )
        # A model without an unknown token fails at the first character that it does not know.
        self.encode(_OUT_OF_VOCAB_TEXT)
        specials = set(self.special_tokens.values()) - {self.unk_id}
        for text in self.special_tokens:
            if not text or specials & set(self.encode(text)):
                raise UserError(
                    f"{path}: a text that spells {text!r} would become a special token; such tokenizers cannot "
                    "be used"
                )

    def export(self, folder: Path, chat_template: str | None) -> None:
        """Write the files that it came from; `chat_template`, in Jinja, where it came without one."""
        write_json(folder / TOKENIZER_JSON, self.definition)
        # transformers' LlamaTokenizer would make its own of the vocabulary, with a space where it likes one.
        config = {**self.tokenizer_config, "tokenizer_class": "PreTrainedTokenizerFast"}
        write_json(
            folder / TOKENIZER_CONFIG,
            config if chat_template is None else {**config, "chat_template": chat_template},
        )


def load_hf_tokenizer(folder: Path, model_config: dict[str, Any]) -> ImportedTokenizer:
    """The tokenizer of a folder with a `tokenizer.json`; `model_config` is the model's. Without the words of a template.

    UserError if it cannot be used.
    """
    file = folder / TOKENIZER_JSON
    definition = read_json(file)
    tokenizer_config = (
        read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    )
    if not isinstance(definition, dict) or not isinstance(tokenizer_config, dict):
        raise UserError(
            f"{file} is not a tokenizer as the tokenizers library writes it, or its {TOKENIZER_CONFIG} is damaged"
        )
    bos, eos, unk = (
        _find_special_id(name, definition, tokenizer_config, model_config)
        for name in ("bos", "eos", "unk")
    )
    if eos is None:
        raise UserError(
            f"{file}: neither {TOKENIZER_CONFIG} nor config.json says which id ends a text (eos_token)"
        )
    # What models without a bos were trained with between texts is the eos.
    return build_imported_tokenizer(
        definition, tokenizer_config, eos if bos is None else bos, eos, unk, {}, file
    )


def build_imported_tokenizer(
    definition: dict[str, Any],
    tokenizer_config: dict[str, Any],
    bos_id: int,
    eos_id: int,
    unk_id: int | None,
    template_fields: dict[str, Any],
    path: Path,
) -> ImportedTokenizer:
    """The tokenizer of these facts, which came from the file `path` and those beside it. UserError as of `opened`."""
    facts = {
        "definition": definition,
        "config": tokenizer_config,
        "bos_id": bos_id,
        "eos_id": eos_id,
        "unk_id": unk_id,
        "words": template_fields,
    }
    return parse_imported_tokenizer(_encode_json(facts, path), path)


def parse_imported_tokenizer(serialized: bytes, path: Path) -> ImportedTokenizer:
    """The tokenizer of the bytes of a `tokenizer_imported.json`, whoever wrote them.

    UserError, naming the file `path`, if they are none, if it cannot decode, or if text would yield special ids.
    """
    try:
        _check_fields(json.loads(serialized), path)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    try:
        tokenizer = ImportedTokenizer(serialized)
        tokenizer.check(path)
    except Exception as error:
        # The library raises Exception itself.
        if type(error) is not Exception:
            raise
        raise UserError(f"{path} cannot be read: {error}") from None
    return tokenizer


def _check_fields(fields: Any, path: Path) -> None:
    kinds = {
        "definition": (dict,),
        "config": (dict,),
        "words": (dict,),
        "bos_id": (int,),
        "eos_id": (int,),
        "unk_id": (int, type(None)),
    }
    if (
        not isinstance(fields, dict)
        or not fields.keys() >= kinds.keys()
        or any(type(fields[key]) not in expected for key, expected in kinds.items())
    ):
        raise UserError(f"{path} is not a tokenizer that was imported: expected {', '.join(kinds)}")
    _encode_json(
        fields["config"], path
    )  # what is exported; the library looks at the definition itself
    model = fields["definition"].get("model")
    if isinstance(model, dict) and "merges" in model and model.get("continuing_subword_prefix"):
        # The library cuts so many bytes off pieces, in the middle of a character too, which ends the process.
        raise UserError(
            f"{path}: its BPE has a continuing_subword_prefix; such tokenizers cannot be used"
        )
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict) and len(set(map(str, vocabulary.values()))) < len(vocabulary):
        # Which of the two an id stands for changes from one reading to the next.
        raise UserError(f"{path}: two pieces of its vocabulary have one id: it is damaged")
    if isinstance(model, dict) and model.get("dropout"):
        raise UserError(
            f"{path}: its BPE leaves merges out by chance (dropout), so that a text would have other ids each "
            "time: set it to null"
        )
    for pattern in iter_regexes(fields["definition"]):
        try:
            check_regex(pattern)
        except SlowRegexError as why:
            raise UserError(
                f"{path}: its regular expression {pattern[:200]!r} could take for ever: {why}; such tokenizers "
                "cannot be used"
            ) from None
    if fields["words"]:
        parse_template(fields["words"], path)
        if not isinstance(fields["config"].get("chat_template"), str):
            raise UserError(
                f"{path} has the words of a chat template, and not the chat_template itself: it is damaged"
            )


def _encode_json(value: dict[str, Any], path: Path) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path}, or a file of the tokenizer beside it, holds half a character (a lone surrogate)"
        ) from None


def _find_special_id(
    role: str,
    definition: dict[str, Any],
    tokenizer_config: dict[str, Any],
    model_config: dict[str, Any],
) -> int | None:
    token = tokenizer_config.get(f"{role}_token")
    text = token.get("content") if isinstance(token, dict) else token
    added = definition.get("added_tokens")
    for each in added if isinstance(added, list) else ():
        if (
            isinstance(each, dict)
            and text is not None
            and each.get("content") == text
            and type(each.get("id")) is int
        ):
            return int(each["id"])
    index = model_config.get(f"{role}_token_id")
    first = index[0] if isinstance(index, list) and index else index
    return first if type(first) is int else None


def _decoder_types(decoder: dict[str, Any] | None) -> set[str]:
    """The kinds of a decoder, which may be a sequence of others."""
    return (
        {str(decoder["type"])}.union(
            *(_decoder_types(inner) for inner in decoder.get("decoders", ()))
        )
        if decoder
        else set()
    )


def _strips_prefix_space(decoder: dict[str, Any] | None) -> bool:
    """Whether decoding takes away a space at the start, because encoding puts one there."""
    parts = decoder.get("decoders", [decoder]) if decoder else []
    return any(part["type"] == "Strip" and part["start"] == 1 for part in parts) or any(
        part["type"] == "Metaspace" and part["prepend_scheme"] != "never" for part in parts
    )


def byte_alphabet() -> dict[str, bytes]:
    """The character by which byte-level BPE writes each byte (Radford et al. 2019): itself where it is visible."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {
        **{chr(byte): bytes([byte]) for byte in visible},
        **{chr(256 + place): bytes([byte]) for place, byte in enumerate(hidden)},
    }
