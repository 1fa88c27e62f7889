"""Normalize a SentencePiece BPE model so that every BPE implementation gives the same ids.

SentencePiece merges the adjacent pair whose concatenation has the best score, the leftmost of equal
ones. Hugging Face's `tokenizers` merges by a ranked list of pairs, and only pairs of which both
halves have ids. The two agree on every text if

- no two pieces have the same score. Normalization breaks ties by id;
- a piece that cannot be built by merging other pieces is never the result of a merge. SentencePiece
  may build it from characters that are not pieces. So normalization marks it UNUSED and gives it
  one of the lowest scores: SentencePiece merges unused pieces, too, and splits them again at the
  end, which is harmless only if no merge of a usable piece is left by then;
- nothing is added to the text or removed from it (dummy prefix, whitespace, normalization rules).

Ids do not change.
"""

import math
from dataclasses import dataclass
from typing import Any

from common.errors import UserError

UNK_ID = 0
BOS_ID = 1
EOS_ID = 2
# The piece types of sentencepiece_model.proto.
NORMAL = 1
UNKNOWN = 2
CONTROL = 3
USER_DEFINED = 4
UNUSED = 5
BYTE = 6
_MODEL_TYPE_BPE = 2
# In characters. SentencePiece trains pieces of up to 512.
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
    """What normalization changed in a model."""

    num_pieces: int
    """Size of the vocabulary."""
    num_tied_scores: int
    """Pieces whose score equaled that of a piece before."""
    num_unreachable: int
    """Pieces that merges of other pieces cannot build."""
    changed_settings: tuple[str, ...]
    """A phrase for each setting, such as `add_dummy_prefix off`."""


def normalize_model(serialized: bytes, file_name: str) -> tuple[bytes, NormalizationChanges]:
    """Return a serialized SentencePiece BPE model in normalized form, and what was changed.

    In normalized form, unreachable pieces are marked unused, scores are minus the ranks of the
    pieces, and SentencePiece's own normalization of text is switched off; see the docstring of the
    module. A model in this form is returned unchanged. `file_name` is for messages. Raises
    UserError if the bytes are not such a model, or if the project cannot use it: it needs unk 0,
    bos 1, eos 2 and all 256 byte pieces, and no user-defined pieces.
    """
    model = parse_sentencepiece_model(serialized, file_name)
    texts = [piece.piece for piece in model.pieces]
    types = [piece.type for piece in model.pieces]
    scores = [piece.score for piece in model.pieces]
    _check_model(model.trainer_spec.model_type, texts, types, scores, file_name)

    normal_ids = [index for index, kind in enumerate(types) if kind == NORMAL]
    reachable_texts = reachable_pieces({texts[index] for index in normal_ids})
    for index, kind in enumerate(types):
        # See the docstring of the module: unused pieces must not be results of merges.
        if kind == UNUSED and _can_be_built(texts[index], reachable_texts):
            raise UserError(
                f"{file_name}: id {index} is marked unused though merges reach it: use another "
                "model"
            )
    unreachable_ids = [index for index in normal_ids if texts[index] not in reachable_texts]
    for index in unreachable_ids:
        model.pieces[index].type = types[index] = UNUSED
    _assign_rank_scores(model.pieces, types, scores)
    changed_settings = _reset_normalizer(model)
    # `scores` still holds the original scores.
    num_distinct_scores = len({scores[index] for index in normal_ids})
    changes = NormalizationChanges(
        num_pieces=len(texts),
        num_tied_scores=len(normal_ids) - num_distinct_scores,
        num_unreachable=len(unreachable_ids),
        changed_settings=changed_settings,
    )
    return model.SerializeToString(deterministic=True), changes


def reachable_pieces(pieces: set[str]) -> set[str]:
    """Return the pieces that merges can build: characters, and pairs of such pieces."""
    reachable: set[str] = set()
    # Sorted by length, so that both halves are decided before their concatenation.
    for piece in sorted(pieces, key=len):
        if _can_be_built(piece, reachable):
            reachable.add(piece)
    return reachable


def _can_be_built(piece: str, pieces: set[str]) -> bool:
    """Return whether a piece is a single character or a concatenation of two of `pieces`."""
    if len(piece) == 1:
        return True
    # A loop, because `any` of a generator takes twice as long, for each of 65,000 pieces.
    for split in range(1, len(piece)):
        if piece[:split] in pieces and piece[split:] in pieces:
            return True
    return False


def parse_sentencepiece_model(serialized: bytes, file_name: str) -> Any:
    """Return a serialized SentencePiece model as its protobuf message.

    Raises UserError, naming `file_name`, if it cannot be parsed.
    """
    # Imported here so that commands that load no tokenizer start without them.
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(serialized)
        # Otherwise unknown fields would be copied to the normalized model: extensions, and the
        # self-test of older versions, texts with their pieces, which normalization may change.
        model.DiscardUnknownFields()
        # protobuf returns a string that is not UTF-8 as bytes.
        is_valid = all(
            piece.HasField("piece") and isinstance(piece.piece, str) for piece in model.pieces
        )
    except (DecodeError, UnicodeDecodeError):
        is_valid = False
    if not is_valid or not model.pieces:
        raise UserError(
            f"{file_name} is not a SentencePiece model, or is damaged: give a tokenizer.model file"
        )
    return model


def _check_model(
    model_type: int, texts: list[str], types: list[int], scores: list[float], file_name: str
) -> None:
    """Raise UserError if the model is damaged, or if the project cannot use it.

    `texts`, `types` and `scores` are those of its pieces, by id.
    """
    if model_type != _MODEL_TYPE_BPE:
        raise UserError(
            f"{file_name} is a SentencePiece model, but not of type BPE: only BPE models can be "
            "used"
        )
    for index, text, kind in _SPECIAL_PIECES:
        if index >= len(texts) or (texts[index], types[index]) != (text, kind):
            raise UserError(
                f"{file_name}: id {index} must be the special piece {text} (unk 0, bos 1, eos 2)"
            )
    if {text for text, kind in zip(texts, types, strict=True) if kind == BYTE} != _BYTE_PIECES:
        raise UserError(
            f"{file_name} has no byte fallback (pieces <0x00> to <0xFF>): train a model with "
            "byte_fallback"
        )
    if USER_DEFINED in types:
        raise UserError(
            f"{file_name}: id {types.index(USER_DEFINED)} is user-defined, which overrides merges: "
            "use a model without such pieces"
        )
    has_duplicates = (
        len(set(texts)) < len(texts) or types.count(UNKNOWN) > 1 or types.count(BYTE) > 256
    )
    if has_duplicates or "" in texts:
        raise UserError(f"{file_name} holds an empty piece or one piece twice: it is damaged")
    # Merging starts from single characters, which get the id of their piece, whatever its type.
    for text, kind in zip(texts, types, strict=True):
        if kind in (CONTROL, UNKNOWN) and len(text) == 1:
            raise UserError(
                f"{file_name} has a special piece of one character, {text!r}, which text would be "
                "encoded to: it cannot be used"
            )
    longest = max(map(len, texts))
    if longest > MAX_PIECE_LENGTH:
        raise UserError(
            f"{file_name} holds a piece of {longest} characters; the limit is {MAX_PIECE_LENGTH}: "
            "it is damaged"
        )
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise UserError(f"{file_name}: the score of id {index} is not finite: it is damaged")


def _assign_rank_scores(pieces: Any, types: list[int], scores: list[float]) -> None:
    """Replace the scores of normal and unused pieces by minus their ranks, in place.

    The order is: normal pieces before unused ones, then the highest score first, then by id.
    """
    ranked = [index for index, kind in enumerate(types) if kind in (NORMAL, UNUSED)]
    # NORMAL < UNUSED, and sorting is stable.
    ranked.sort(key=lambda index: (types[index], -scores[index]))
    for rank, index in enumerate(ranked):
        # An equal score is not written, so that a normalized model keeps its bytes.
        if scores[index] != -rank:
            pieces[index].score = -float(rank)


def _reset_normalizer(model: Any) -> tuple[str, ...]:
    """Switch off SentencePiece's normalization of text, and declare the special pieces, in place.

    Return a phrase for each changed setting of the normalization, such as `add_dummy_prefix off`.
    """
    normalizer = model.normalizer_spec
    changes = []
    for setting, value in _NORMALIZER_SETTINGS.items():
        if getattr(normalizer, setting) != value:
            changes.append(f"{setting} {'on' if value else 'off'}")
        setattr(normalizer, setting, value)
    if (
        normalizer.precompiled_charsmap
        or normalizer.normalization_rule_tsv
        or model.denormalizer_spec.precompiled_charsmap
    ):
        changes.append("normalization rules off")
    normalizer.name = "identity"
    normalizer.precompiled_charsmap = b""
    normalizer.normalization_rule_tsv = ""
    model.ClearField("denormalizer_spec")
    # SentencePiece and converters find the special pieces by these settings of training.
    # `_check_model` has verified that the pieces are the ones named here, so no id changes. The
    # whitespace suffix has no effect without a dummy prefix.
    trainer = model.trainer_spec
    trainer.treat_whitespace_as_suffix = False
    trainer.byte_fallback = True
    trainer.unk_id = UNK_ID
    trainer.bos_id = BOS_ID
    trainer.eos_id = EOS_ID
    trainer.unk_piece = "<unk>"
    trainer.bos_piece = "<s>"
    trainer.eos_piece = "</s>"
    return tuple(changes)
