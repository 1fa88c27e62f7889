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
_MODEL_TYPE_BPE = 2
# SentencePiece trains none longer than 512 characters.
MAX_PIECE_LENGTH = 4096
_BYTE_PIECES = {f"<0x{value:02X}>" for value in range(256)}
_NORMALIZER_SETTINGS = {
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "escape_whitespaces": True,
}
_SPECIAL_PIECES = ((UNK_ID, "<unk>", UNKNOWN), (BOS_ID, "<s>", CONTROL), (EOS_ID, "</s>", CONTROL))


@dataclass(frozen=True, slots=True)
class NormalizationChanges:
    """What normalising changed: numbers of pieces, and the switches that were turned, in words."""

    num_pieces: int
    num_tied_scores: int
    num_unreachable: int
    changed_settings: tuple[str, ...]


def normalize_model(serialized: bytes, file_name: str) -> tuple[bytes, NormalizationChanges]:
    """The normalised bytes of a serialised SentencePiece BPE model; those of a normalised one are returned unchanged.

    `file_name` is the file's name for messages. Raises UserError if the bytes are no such model or if it lacks what the
    project relies on: unk 0, bos 1, eos 2, all 256 byte pieces, and no user-defined pieces.
    """
    model = parse_sentencepiece_model(serialized, file_name)
    texts = [piece.piece for piece in model.pieces]
    types = [piece.type for piece in model.pieces]
    scores = [piece.score for piece in model.pieces]
    _check_model(model.trainer_spec.model_type, texts, types, scores, file_name)

    normal = [index for index, kind in enumerate(types) if kind == NORMAL]
    reachable_texts = reachable_pieces({texts[index] for index in normal})
    for index, kind in enumerate(types):
        # That unused pieces do no harm needs that none is built from usable ones.
        if kind == UNUSED and _can_be_built(texts[index], reachable_texts):
            raise UserError(
                f"{file_name}: id {index} is marked unused though merges reach it: use a model without such"
            )
    unreachable = [index for index in normal if texts[index] not in reachable_texts]
    for index in unreachable:
        model.pieces[index].type = types[index] = UNUSED
    _assign_rank_scores(model.pieces, types, scores)
    switches = _reset_normalizer(model)
    tied = len(normal) - len({scores[index] for index in normal})
    changes = NormalizationChanges(len(texts), tied, len(unreachable), switches)
    return model.SerializeToString(deterministic=True), changes


def reachable_pieces(pieces: set[str]) -> set[str]:
    """The pieces that merges can build: single characters, and pieces with a split into two reachable ones."""
    found: set[str] = set()
    for piece in sorted(pieces, key=len):
        if _can_be_built(piece, found):
            found.add(piece)
    return found


def _can_be_built(piece: str, pieces: set[str]) -> bool:
    return len(piece) == 1 or any(
        piece[:cut] in pieces and piece[cut:] in pieces for cut in range(1, len(piece))
    )


def parse_sentencepiece_model(serialized: bytes, file_name: str) -> Any:
    """A serialised SentencePiece model as its protobuf message; UserError, naming `file_name`, if it is none."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(serialized)
        # Fields of other versions (a self-test that no longer holds, extensions) would survive into the result.
        model.DiscardUnknownFields()
        # protobuf hands out a string that is not UTF-8 as bytes.
        whole = all(
            piece.HasField("piece") and isinstance(piece.piece, str) for piece in model.pieces
        )
    except (DecodeError, UnicodeDecodeError):
        whole = False
    if not whole or not model.pieces:
        raise UserError(
            f"{file_name} is not a SentencePiece model, or is damaged: give a tokenizer.model file"
        )
    return model


def _check_model(
    model_type: int, texts: list[str], types: list[int], scores: list[float], file_name: str
) -> None:
    if model_type != _MODEL_TYPE_BPE:
        raise UserError(
            f"{file_name} is a SentencePiece model, but not of type BPE: only BPE models can be used"
        )
    for index, text, kind in _SPECIAL_PIECES:
        if index >= len(texts) or (texts[index], types[index]) != (text, kind):
            raise UserError(
                f"{file_name}: id {index} must be the special piece {text} (unk 0, bos 1, eos 2)"
            )
    if {text for text, kind in zip(texts, types, strict=True) if kind == BYTE} != _BYTE_PIECES:
        raise UserError(
            f"{file_name} has no byte fallback (pieces <0x00> to <0xFF>): train a model with byte_fallback"
        )
    if USER_DEFINED in types:
        index = types.index(USER_DEFINED)
        raise UserError(
            f"{file_name}: id {index} is user-defined, which overrides merges: use a model without such pieces"
        )
    if (
        types.count(UNKNOWN) > 1
        or types.count(BYTE) > 256
        or len(set(texts)) < len(texts)
        or "" in texts
    ):
        raise UserError(f"{file_name} holds an empty piece or one piece twice: it is damaged")
    if any(
        kind in (CONTROL, UNKNOWN) and len(text) == 1
        for text, kind in zip(texts, types, strict=True)
    ):
        raise UserError(
            f"{file_name} has a special piece of one character, which text would turn into: it cannot be used"
        )
    if (longest := max(map(len, texts))) > MAX_PIECE_LENGTH:
        raise UserError(
            f"{file_name} holds a piece of {longest} characters, and none is longer than {MAX_PIECE_LENGTH}: it is damaged"
        )
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise UserError(f"{file_name}: the score of id {index} is not finite: it is damaged")


def _assign_rank_scores(pieces: Any, types: list[int], scores: list[float]) -> None:
    """Number the mergeable pieces from the first merged to the last; those of one type and score by id."""
    ranked = [index for index, kind in enumerate(types) if kind in (NORMAL, UNUSED)]
    ranked.sort(key=lambda index: (types[index], -scores[index]))
    for rank, index in enumerate(ranked):
        if scores[index] != -rank:
            pieces[index].score = -float(rank)


def _reset_normalizer(model: Any) -> tuple[str, ...]:
    normalizer_spec, changes = model.normalizer_spec, []
    for switch, value in _NORMALIZER_SETTINGS.items():
        if getattr(normalizer_spec, switch) != value:
            changes.append(f"{switch} {'on' if value else 'off'}")
        setattr(normalizer_spec, switch, value)
    if (
        normalizer_spec.precompiled_charsmap
        or normalizer_spec.normalization_rule_tsv
        or model.denormalizer_spec.precompiled_charsmap
    ):
        changes.append("normalisation rules off")
    (
        normalizer_spec.name,
        normalizer_spec.precompiled_charsmap,
        normalizer_spec.normalization_rule_tsv,
    ) = "identity", b"", ""
    model.ClearField("denormalizer_spec")
    spec = model.trainer_spec
    spec.treat_whitespace_as_suffix, spec.byte_fallback = False, True
    spec.unk_id, spec.bos_id, spec.eos_id = UNK_ID, BOS_ID, EOS_ID
    spec.unk_piece, spec.bos_piece, spec.eos_piece = "<unk>", "<s>", "</s>"
    return tuple(changes)
