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
from model.chat_template.template import template_from
from model.tokenizer.base import IMPORTED, MARK, SPACE, Piece, Span, Tokenizer, utf8
from model.chat_template.imported_encoding import FramedTokenizer, backend, encodings, spaceless
from model.tokenizer.sentencepiece_normalize import BYTE, CONTROL, LONGEST, NORMAL
from model.tokenizer.regex_guard import SlowPattern, check_pattern, patterns

DEFINITION, CONFIG = "tokenizer.json", "tokenizer_config.json"
_KNOWN_DECODERS = {"ByteLevel", "ByteFallback", "Metaspace", "Replace"}
# Ids for each that is used: more are no vocabulary, and every table of one has a row for each.
_SPARSEST = 100
# Of characters that no vocabulary has.
_RARE = "\U0010fffd\U000e0fff"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class ImportedTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library behind the interface of `Tokenizer`."""

    file = IMPORTED

    def __init__(self, serialized: bytes) -> None:
        """`serialized` are the bytes of a `tokenizer_imported.json`: see `imported`."""
        self.serialized = serialized
        facts = json.loads(serialized)
        self.definition: dict[str, Any] = facts["definition"]
        self.config: dict[str, Any] = facts["config"]
        self.words = facts["words"]  # type: ignore[misc]
        self._fast = backend(self.definition)
        self._vocabulary: dict[str, int] = self._fast.get_vocab(with_added_tokens=True)
        self.vocabulary_size = max(self._vocabulary.values(), default=-1) + 1
        self.bos_id, self.eos_id, self.unk_id = facts["bos_id"], facts["eos_id"], facts["unk_id"]
        # What the library made of the definition: nothing is missing there, and nothing of another type.
        self._added: dict[int, Any] = self._fast.get_added_tokens_decoder()
        decoder: Any = self._fast.decoder
        self._decoder: dict[str, Any] | None = decoder and json.loads(decoder.__getstate__())
        # Llama 3 ends a document with <|end_of_text|>, which tokenizer_config.json names, and an answer with <|eot_id|>.
        declared = _special_id("eos", self.definition, self.config, {})
        self.document_end_id = self.eos_id if declared is None else declared
        self.leading_space = _strips(self._decoder)

    @functools.cached_property
    def understood(self) -> dict[str, Any]:
        """The `tokenizer.json` as the library writes what it read: nothing is missing there, and nothing of another type."""
        facts: dict[str, Any] = json.loads(self._fast.to_str())
        return facts

    @functools.cached_property
    def specials(self) -> dict[str, int]:
        """The special tokens: what text never yields."""
        added = {each.content: index for index, each in self._added.items() if each.special}
        known = {index: text for text, index in self._vocabulary.items()}
        return {**added, **{known[index]: index for index in (self.bos_id, self.eos_id)}}

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        utf8(text)
        return self._fast.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """See `Tokenizer.encode_batch`; more than one thread is as many as the library likes."""
        return [each.ids for each in encodings(self._fast, texts, threads)]

    def encode_within(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """See `Tokenizer.encode_within`."""
        # What follows a special token does not follow the text before it.
        parts = [text.partition(MARK) for text in texts]
        heads = encodings(self._spaceless, [head for head, _, _ in parts], threads)
        tails = self._framed.encode([mark + tail for _, mark, tail in parts], threads)
        return [head.ids + ids for head, (ids, _) in zip(heads, tails, strict=True)]

    def encode_conversations(
        self, conversations: Sequence[Sequence[str]], start: Sequence[int], threads: int | None = None
    ) -> list[tuple[list[int], list[Span]]]:
        """See `Tokenizer.encode_conversations`. Here all that stands between two special tokens is encoded at once, as
        transformers does it: a piece may hold the end of what precedes an answer and the answer's beginning, and is the
        answer's.
        """
        return self._framed.encode_conversations(conversations, start, self.eos_id, threads)

    @functools.cached_property
    def _framed(self) -> FramedTokenizer:
        return FramedTokenizer(self.understood, self.specials, self._added)

    @functools.cached_property
    def _spaceless(self) -> Any:
        definition = spaceless(self.understood)
        return self._fast if definition == self.understood else backend(definition)

    @functools.cached_property
    def pieces(self) -> list[Piece]:
        """The vocabulary, in the order of ids, each with score 0; ids that nothing has are empty control pieces."""
        found = [Piece("", 0.0, CONTROL)] * self.vocabulary_size
        specials = set(self.specials.values())
        fallback = "ByteFallback" in _types(self._decoder)
        for text, index in self._vocabulary.items():
            kind = CONTROL if index in specials else BYTE if fallback and _BYTE_PIECE.fullmatch(text) else NORMAL
            found[index] = Piece(text, 0.0, kind)
        return found

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        byte_level = "ByteLevel" in _types(self._decoder)
        alphabet = byte_alphabet()
        found = []
        for index, piece in enumerate(self.pieces):
            if piece.kind == CONTROL:
                found.append(b"")
            elif piece.kind == BYTE:
                found.append(bytes([int(piece.text[3:5], 16)]))
            elif byte_level and index not in self._added:
                found.append(b"".join(alphabet.get(char, char.encode()) for char in piece.text))
            else:
                found.append((piece.text if byte_level else piece.text.replace(SPACE, " ")).encode())
        return found

    @functools.cached_property
    def characters_per_id(self) -> np.ndarray:
        """See `Tokenizer.characters_per_id`; a space that is put before a text counts too."""
        return np.array([sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self._bytes], dtype=np.int16)

    def check(self, name: Path) -> None:
        """UserError, naming the file `name`, where this tokenizer cannot do what others are relied on to do."""
        size, known = self.vocabulary_size, set(self._vocabulary.values())
        if size > _SPARSEST * len(known):
            raise UserError(f"{name}: {len(known):,} ids reach up to {size - 1:,}: it is damaged")
        if (longest := max(map(len, self._vocabulary), default=0)) > LONGEST:
            raise UserError(f"{name} holds a piece of {longest:,} characters, and none is longer than {LONGEST:,}: it is "
                            "damaged")
        if not {self.bos_id, self.eos_id} <= known:
            raise UserError(f"{name}: the ids that begin and end a text, {self.bos_id} and {self.eos_id}, are none of its")
        if not _KNOWN_DECODERS & _types(self._decoder):
            raise UserError(f"{name}: its decoder is of a kind that is not known here (known are byte-level and "
                            "SentencePiece)")
        # A model without an unknown token fails at the first character that it does not know.
        self.encode(_RARE)
        specials = set(self.specials.values()) - {self.unk_id}
        for text in self.specials:
            if not text or specials & set(self.encode(text)):
                raise UserError(f"{name}: a text that spells {text!r} would become a special token; such tokenizers cannot "
                                "be used")

    def export(self, folder: Path, chat_template: str | None) -> None:
        """Write the files that it came from; `chat_template`, in Jinja, where it came without one."""
        write_json(folder / DEFINITION, self.definition)
        # transformers' LlamaTokenizer would make its own of the vocabulary, with a space where it likes one.
        config = {**self.config, "tokenizer_class": "PreTrainedTokenizerFast"}
        write_json(folder / CONFIG, config if chat_template is None else {**config, "chat_template": chat_template})


def imported(folder: Path, config: dict[str, Any]) -> ImportedTokenizer:
    """The tokenizer of a folder with a `tokenizer.json`; `config` is the model's. Without the words of a template.

    UserError if it cannot be used.
    """
    file = folder / DEFINITION
    definition = read_json(file)
    said = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if not isinstance(definition, dict) or not isinstance(said, dict):
        raise UserError(f"{file} is not a tokenizer as the tokenizers library writes it, or its {CONFIG} is damaged")
    bos, eos, unk = (_special_id(name, definition, said, config) for name in ("bos", "eos", "unk"))
    if eos is None:
        raise UserError(f"{file}: neither {CONFIG} nor config.json says which id ends a text (eos_token)")
    # What models without a bos were trained with between texts is the eos.
    return built(definition, said, eos if bos is None else bos, eos, unk, {}, file)


def built(
    definition: dict[str, Any], config: dict[str, Any], bos: int, eos: int, unk: int | None, words: dict[str, Any], name: Path
) -> ImportedTokenizer:
    """The tokenizer of these facts, which came from the file `name` and those beside it. UserError as of `opened`."""
    facts = {"definition": definition, "config": config, "bos_id": bos, "eos_id": eos, "unk_id": unk, "words": words}
    return opened(_encoded(facts, name), name)


def opened(serialized: bytes, name: Path) -> ImportedTokenizer:
    """The tokenizer of the bytes of a `tokenizer_imported.json`, whoever wrote them.

    UserError, naming the file `name`, if they are none, if it cannot decode, or if text would yield special ids.
    """
    try:
        _check_facts(json.loads(serialized), name)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be read as JSON: {error}") from None
    try:
        tokenizer = ImportedTokenizer(serialized)
        tokenizer.check(name)
    except Exception as error:
        # The library raises Exception itself.
        if type(error) is not Exception:
            raise
        raise UserError(f"{name} cannot be read: {error}") from None
    return tokenizer


def _check_facts(facts: Any, name: Path) -> None:
    kinds = {"definition": (dict,), "config": (dict,), "words": (dict,), "bos_id": (int,), "eos_id": (int,),
             "unk_id": (int, type(None))}
    if not isinstance(facts, dict) or not facts.keys() >= kinds.keys() or any(
            type(facts[key]) not in expected for key, expected in kinds.items()):
        raise UserError(f"{name} is not a tokenizer that was imported: expected {', '.join(kinds)}")
    _encoded(facts["config"], name)  # what is exported; the library looks at the definition itself
    model = facts["definition"].get("model")
    if isinstance(model, dict) and "merges" in model and model.get("continuing_subword_prefix"):
        # The library cuts so many bytes off pieces, in the middle of a character too, which ends the process.
        raise UserError(f"{name}: its BPE has a continuing_subword_prefix; such tokenizers cannot be used")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict) and len(set(map(str, vocabulary.values()))) < len(vocabulary):
        # Which of the two an id stands for changes from one reading to the next.
        raise UserError(f"{name}: two pieces of its vocabulary have one id: it is damaged")
    if isinstance(model, dict) and model.get("dropout"):
        raise UserError(f"{name}: its BPE leaves merges out by chance (dropout), so that a text would have other ids each "
                        "time: set it to null")
    for pattern in patterns(facts["definition"]):
        try:
            check_pattern(pattern)
        except SlowPattern as why:
            raise UserError(f"{name}: its regular expression {pattern[:200]!r} could take for ever: {why}; such tokenizers "
                            "cannot be used") from None
    if facts["words"]:
        template_from(facts["words"], name)
        if not isinstance(facts["config"].get("chat_template"), str):
            raise UserError(f"{name} has the words of a chat template, and not the chat_template itself: it is damaged")


def _encoded(value: dict[str, Any], name: Path) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}, or a file of the tokenizer beside it, holds half a character (a lone surrogate)") from None


def _special_id(name: str, definition: dict[str, Any], said: dict[str, Any], config: dict[str, Any]) -> int | None:
    token = said.get(f"{name}_token")
    text = token.get("content") if isinstance(token, dict) else token
    added = definition.get("added_tokens")
    for each in added if isinstance(added, list) else ():
        if isinstance(each, dict) and text is not None and each.get("content") == text and type(each.get("id")) is int:
            return int(each["id"])
    index = config.get(f"{name}_token_id")
    first = index[0] if isinstance(index, list) and index else index
    return first if type(first) is int else None


def _types(part: dict[str, Any] | None) -> set[str]:
    """The kinds of a decoder, which may be a sequence of others."""
    return {str(part["type"])}.union(*(_types(inner) for inner in part.get("decoders", ()))) if part else set()


def _strips(decoder: dict[str, Any] | None) -> bool:
    """Whether decoding takes away a space at the start, because encoding puts one there."""
    parts = decoder.get("decoders", [decoder]) if decoder else []
    return any(part["type"] == "Strip" and part["start"] == 1 for part in parts) or any(
        part["type"] == "Metaspace" and part["prepend_scheme"] != "never" for part in parts)


def byte_alphabet() -> dict[str, bytes]:
    """The character by which byte-level BPE writes each byte (Radford et al. 2019): itself where it is visible."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{chr(byte): bytes([byte]) for byte in visible},
            **{chr(256 + place): bytes([byte]) for place, byte in enumerate(hidden)}}
