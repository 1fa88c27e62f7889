"""The vocabulary of a GGUF file, built so that llama.cpp gives the ids of `Tokenizer.encode`.

llama.cpp looks up tokens by their text and ignores their type: its `llama` vocabulary also merges
text into unused pieces, and its programs search a whole rendered conversation for special tokens.
So a token that text must never be encoded as gets a name that does not occur in text: `<unused_ID>`
for an unused piece, `</s>` + U+FDD0 for `</s>` (as in `model.tokenizer.hf_json`).
"""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from common.errors import UserError
from model.tokenizer.base import SPECIAL_TOKEN_MARK, Piece, Tokenizer
from model.tokenizer.sentencepiece_normalize import CONTROL, NORMAL, UNKNOWN, UNUSED

if TYPE_CHECKING:
    from gguf import GGUFWriter


@dataclass(frozen=True)
class GGUFVocabulary:
    """The tokenizer entries of a GGUF file."""

    # `llama` is SentencePiece's BPE by scores, `gpt2` byte-level BPE by merges.
    tokenizer_model: Literal["llama", "gpt2"]
    pieces: list[Piece]
    # llama.cpp's name of the regular expressions that split text before merging.
    pre_tokenizer: str = "default"
    merges: list[str] = field(default_factory=list)  # by rank
    adds_space_prefix: bool = False
    # Name of a special token of an imported tokenizer → its name in the file.
    special_token_names: dict[str, str] = field(default_factory=dict)

    def rename_special_tokens(self, text: str) -> str:
        """Replace special tokens in a chat template by their names in the GGUF file."""
        if not self.special_token_names:
            return text
        # Longest first: one name may be a prefix of another.
        names = sorted(self.special_token_names, key=len, reverse=True)
        pattern = "|".join(map(re.escape, names))
        return re.sub(pattern, lambda match: self.special_token_names[match[0]], text)


def build_native_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> GGUFVocabulary:
    """Build the vocabulary of a SentencePiece tokenizer, padded to `vocab_size`.

    Raises UserError if llama.cpp would give other ids.
    """
    # The embedding may have more rows than the tokenizer has ids.
    padding = [unused_piece(index) for index in range(tokenizer.vocab_size, vocab_size)]
    pieces = [_to_gguf_piece(index, piece) for index, piece in enumerate(tokenizer.pieces)]
    pieces += padding
    check_merges(pieces)
    return GGUFVocabulary("llama", pieces)


def unused_piece(index: int) -> Piece:
    """Return a piece for the id `index` that no text is encoded as."""
    return Piece(f"<unused_{index}>", -float(index), UNUSED)


def _to_gguf_piece(index: int, piece: Piece) -> Piece:
    """Return a piece, renamed if it must never match input text.

    llama.cpp ignores the types of pieces: it would encode text as unused or special ones.
    """
    if piece.kind == UNUSED:
        return piece._replace(text=unused_piece(index).text)
    if piece.kind in (CONTROL, UNKNOWN):
        return piece._replace(text=piece.text + SPECIAL_TOKEN_MARK)
    return piece


def check_merges(pieces: list[Piece]) -> None:
    """Raise UserError if llama.cpp's `llama` vocabulary could encode text as a special piece.

    Only normal pieces may be reachable (`is_reachable`).
    """
    normal = normal_texts(pieces)
    for index, piece in enumerate(pieces):
        if piece.kind != NORMAL and is_reachable(piece.text, normal):
            raise UserError(
                f"id {index}, {piece.text}, is not a normal piece, but llama.cpp would merge text "
                "into it: this tokenizer cannot be exported as GGUF; use --format hf"
            )


def normal_texts(pieces: list[Piece]) -> set[str]:
    """Return the texts of the normal pieces."""
    return {piece.text for piece in pieces if piece.kind == NORMAL}


def is_reachable(piece_text: str, normal_pieces: set[str]) -> bool:
    """Return whether llama.cpp's `llama` vocabulary could encode text as a piece of this text.

    llama.cpp splits a text into characters, joins two neighbors as long as their text together is
    that of a piece of any type, and looks up the ids of what is left (`llm_tokenizer_spm_session`).
    So it finds a piece of one character, and one of two parts that are each a character or the
    result of an earlier merge. Such results are normal pieces, as `check_merges` makes sure;
    `normal_pieces` are the texts of all of them. SPECIAL_TOKEN_MARK is no part, because it does not
    occur in text.
    """

    def is_part(part: str) -> bool:
        return part in normal_pieces or (len(part) == 1 and part != SPECIAL_TOKEN_MARK)

    splits = range(1, len(piece_text))
    return is_part(piece_text) or any(
        is_part(piece_text[:at]) and is_part(piece_text[at:]) for at in splits
    )


def write_vocabulary(
    writer: "GGUFWriter",
    vocabulary: GGUFVocabulary,
    tokenizer: Tokenizer,
    stop_ids: tuple[int, ...],
    *,
    adds_bos: bool,
) -> list[int]:
    """Write the vocabulary and the special ids; return the stop ids that the format has no key for.

    `stop_ids` are those of the model; `adds_bos` says whether llama.cpp puts a bos before texts.
    """
    writer.add_tokenizer_model(vocabulary.tokenizer_model)
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list([piece.text for piece in vocabulary.pieces])
    if vocabulary.tokenizer_model == "llama":
        writer.add_token_scores([piece.score for piece in vocabulary.pieces])
    # SentencePiece's piece types and llama.cpp's token types have the same numbers.
    writer.add_token_types([piece.kind for piece in vocabulary.pieces])
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(tokenizer.bos_id)
    if tokenizer.unk_id is not None:
        writer.add_unk_token_id(tokenizer.unk_id)
    # llama.cpp stops at any "end of generation" id. The format has keys for three of them: end of
    # text, end of turn and end of message.
    eog_ids = list(dict.fromkeys((tokenizer.eod_id, *stop_ids)))
    add_eog_methods = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add_eog_id, token_id in zip(add_eog_methods, eog_ids, strict=False):
        add_eog_id(token_id)
    # `adds_bos` follows the chat template: a model whose conversations begin with bos was trained
    # with bos before documents, too. If llama.cpp and the template both write bos, its server and
    # llama-cpp-python drop one of the two; the template for Ollama omits it.
    writer.add_add_bos_token(adds_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.adds_space_prefix)
    return eog_ids[len(add_eog_methods) :]
