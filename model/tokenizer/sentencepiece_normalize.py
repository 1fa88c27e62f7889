"""Normalise a SentencePiece BPE model, so that one text gives one sequence of ids in every implementation of BPE.

SentencePiece merges the adjacent pair whose concatenation has the best score, ties by position; the fast tokenizers
merge by a list of pairs, and only pairs whose two halves have ids. The two agree on every text when

- no two pieces have the same score (ties are broken here by id);
- a piece that cannot be built from pieces is never the result of a merge. SentencePiece may build it from characters
  that are no pieces themselves, so it is marked UNUSED, and it gets the lowest scores: SentencePiece does merge unused
  pieces and splits them again afterwards, which is harmless only when no merge of a usable piece is left;
- nothing is added to the text or taken from it (dummy prefix, whitespace, normalisation rules).

No id changes.
"""

import math
from dataclasses import dataclass
from typing import Any

from common.errors import UserError

UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
# The piece types of sentencepiece_model.proto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_BPE = 2
# SentencePiece trains none longer than 512 characters.
LONGEST = 4096
_BYTES = {f"<0x{value:02X}>" for value in range(256)}
_SWITCHES = {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "escape_whitespaces": True}
_SPECIALS = ((UNK_ID, "<unk>", UNKNOWN), (BOS_ID, "<s>", CONTROL), (EOS_ID, "</s>", CONTROL))


@dataclass(frozen=True, slots=True)
class Changes:
    """What normalising changed: numbers of pieces, and the switches that were turned, in words."""

    pieces: int
    tied_scores: int
    unreachable: int
    switches: tuple[str, ...]


def normalise(serialized: bytes, name: str) -> tuple[bytes, Changes]:
    """The normalised bytes of a serialised SentencePiece BPE model; those of a normalised one are returned unchanged.

    `name` is the file's name for messages. Raises UserError if the bytes are no such model or if it lacks what the
    project relies on: unk 0, bos 1, eos 2, all 256 byte pieces, and no user-defined pieces.
    """
    model = parse(serialized, name)
    texts = [piece.piece for piece in model.pieces]
    types = [piece.type for piece in model.pieces]
    scores = [piece.score for piece in model.pieces]
    _check(model.trainer_spec.model_type, texts, types, scores, name)

    normal = [index for index, kind in enumerate(types) if kind == NORMAL]
    usable = reachable({texts[index] for index in normal})
    for index, kind in enumerate(types):
        # That unused pieces do no harm needs that none is built from usable ones.
        if kind == UNUSED and _is_built(texts[index], usable):
            raise UserError(f"{name}: id {index} is marked unused though merges reach it: use a model without such")
    unreachable = [index for index in normal if texts[index] not in usable]
    for index in unreachable:
        model.pieces[index].type = types[index] = UNUSED
    _rank(model.pieces, types, scores)
    switches = _set_switches(model)
    tied = len(normal) - len({scores[index] for index in normal})
    changes = Changes(len(texts), tied, len(unreachable), switches)
    return model.SerializeToString(deterministic=True), changes


def reachable(pieces: set[str]) -> set[str]:
    """The pieces that merges can build: single characters, and pieces with a split into two reachable ones."""
    found: set[str] = set()
    for piece in sorted(pieces, key=len):
        if _is_built(piece, found):
            found.add(piece)
    return found


def _is_built(piece: str, pieces: set[str]) -> bool:
    return len(piece) == 1 or any(piece[:cut] in pieces and piece[cut:] in pieces for cut in range(1, len(piece)))


def parse(serialized: bytes, name: str) -> Any:
    """A serialised SentencePiece model as its protobuf message; UserError, naming `name`, if it is none."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(serialized)
        # Fields of other versions (a self-test that no longer holds, extensions) would survive into the result.
        model.DiscardUnknownFields()
        # protobuf hands out a string that is not UTF-8 as bytes.
        whole = all(piece.HasField("piece") and isinstance(piece.piece, str) for piece in model.pieces)
    except (DecodeError, UnicodeDecodeError):
        whole = False
    if not whole or not model.pieces:
        raise UserError(f"{name} is not a SentencePiece model, or is damaged: give a tokenizer.model file")
    return model


def _check(model_type: int, texts: list[str], types: list[int], scores: list[float], name: str) -> None:
    if model_type != _BPE:
        raise UserError(f"{name} is a SentencePiece model, but not of type BPE: only BPE models can be used")
    for index, text, kind in _SPECIALS:
        if index >= len(texts) or (texts[index], types[index]) != (text, kind):
            raise UserError(f"{name}: id {index} must be the special piece {text} (unk 0, bos 1, eos 2)")
    if {text for text, kind in zip(texts, types, strict=True) if kind == BYTE} != _BYTES:
        raise UserError(f"{name} has no byte fallback (pieces <0x00> to <0xFF>): train a model with byte_fallback")
    if USER_DEFINED in types:
        index = types.index(USER_DEFINED)
        raise UserError(f"{name}: id {index} is user-defined, which overrides merges: use a model without such pieces")
    if types.count(UNKNOWN) > 1 or types.count(BYTE) > 256 or len(set(texts)) < len(texts) or "" in texts:
        raise UserError(f"{name} holds an empty piece or one piece twice: it is damaged")
    if any(kind in (CONTROL, UNKNOWN) and len(text) == 1 for text, kind in zip(texts, types, strict=True)):
        raise UserError(f"{name} has a special piece of one character, which text would turn into: it cannot be used")
    if (longest := max(map(len, texts))) > LONGEST:
        raise UserError(f"{name} holds a piece of {longest} characters, and none is longer than {LONGEST}: it is damaged")
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise UserError(f"{name}: the score of id {index} is not finite: it is damaged")


def _rank(pieces: Any, types: list[int], scores: list[float]) -> None:
    """Number the mergeable pieces from the first merged to the last; those of one type and score by id."""
    ranked = [index for index, kind in enumerate(types) if kind in (NORMAL, UNUSED)]
    ranked.sort(key=lambda index: (types[index], -scores[index]))
    for rank, index in enumerate(ranked):
        if scores[index] != -rank:
            pieces[index].score = -float(rank)


def _set_switches(model: Any) -> tuple[str, ...]:
    rules, turned = model.normalizer_spec, []
    for switch, value in _SWITCHES.items():
        if getattr(rules, switch) != value:
            turned.append(f"{switch} {'on' if value else 'off'}")
        setattr(rules, switch, value)
    if rules.precompiled_charsmap or rules.normalization_rule_tsv or model.denormalizer_spec.precompiled_charsmap:
        turned.append("normalisation rules off")
    rules.name, rules.precompiled_charsmap, rules.normalization_rule_tsv = "identity", b"", ""
    model.ClearField("denormalizer_spec")
    spec = model.trainer_spec
    spec.treat_whitespace_as_suffix, spec.byte_fallback = False, True
    spec.unk_id, spec.bos_id, spec.eos_id = UNK_ID, BOS_ID, EOS_ID
    spec.unk_piece, spec.bos_piece, spec.eos_piece = "<unk>", "<s>", "</s>"
    return tuple(turned)
