"""A tokenizer as llama.cpp knows one, made so that llama.cpp gives the ids of `Tokenizer.encode`.

llama.cpp finds its tokens by their texts, whatever their type: the merges of its `llama` vocabulary make unused pieces too,
and its programs look for special tokens in a whole rendered conversation. So what text must never become gets a text that
no text makes: an unused piece is `<unused_ID>`, `</s>` is `</s>` and U+FDD0 where text would spell it, as in
`model.tokenizer.hf_json`.
"""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from common.errors import UserError
from model.chat_template.template import template_for_tokenizer
from model.tokenizer.base import SPECIAL_TOKEN_MARK, Piece, Tokenizer
from model.tokenizer.imported import ImportedTokenizer
from model.tokenizer.sentencepiece_normalize import CONTROL, NORMAL, UNKNOWN, UNUSED

if TYPE_CHECKING:
    from gguf import GGUFWriter


@dataclass(frozen=True)
class GGUFVocabulary:
    """What a GGUF file says of a tokenizer. `tokenizer_model` is `llama`, SentencePiece's BPE by scores, or `gpt2`, BPE by merges."""

    tokenizer_model: Literal["llama", "gpt2"]
    pieces: list[Piece]
    pre_tokenizer: str = "default"  # how text is cut before merging, by llama.cpp's name for it
    merges: list[str] = field(default_factory=list)  # the best first
    adds_space_prefix: bool = False  # whether every text is given a space in front
    special_token_names: dict[str, str] = field(
        default_factory=dict
    )  # of an imported tokenizer, and what they are called in the file

    def rename_special_tokens(self, text: str) -> str:
        """Words of a template, with special tokens by the names that they have in the file."""
        names = "|".join(map(re.escape, sorted(self.special_token_names, key=len, reverse=True)))
        return (
            re.sub(names, lambda found: self.special_token_names[found[0]], text) if names else text
        )


def build_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> GGUFVocabulary:
    """The vocabulary of a tokenizer, filled up with unused pieces to the `vocab_size` of the embedding.

    UserError where llama.cpp could not be made to give the same ids.
    """
    if isinstance(tokenizer, ImportedTokenizer):
        from model.interop.gguf.imported_vocab import build_imported_vocabulary

        return build_imported_vocabulary(tokenizer, vocab_size)
    return GGUFVocabulary("llama", build_native_pieces(tokenizer, vocab_size))


def build_native_pieces(tokenizer: Tokenizer, vocab_size: int) -> list[Piece]:
    """The pieces of a tokenizer of the project's own kind as llama.cpp gives its ids, filled up to `vocab_size`."""
    filling = [
        Piece("", -float(index), UNUSED) for index in range(tokenizer.vocab_size, vocab_size)
    ]
    made = [
        _to_gguf_piece(index, piece) for index, piece in enumerate([*tokenizer.pieces, *filling])
    ]
    check_merges(made)
    return made


def unused_piece(index: int) -> Piece:
    """The piece of an id that no text makes; `index` is its id."""
    return Piece(f"<unused_{index}>", -float(index), UNUSED)


def _to_gguf_piece(index: int, piece: Piece) -> Piece:
    if piece.kind == UNUSED:
        return piece._replace(text=unused_piece(index).text)
    return (
        piece._replace(text=piece.text + SPECIAL_TOKEN_MARK)
        if piece.kind in (CONTROL, UNKNOWN)
        else piece
    )


def check_merges(pieces: list[Piece]) -> None:
    """UserError where llama.cpp's `llama` vocabulary would merge text into a piece that is no normal one.

    It joins two neighbours, characters or pieces, whenever their text together is that of any piece. So that only normal
    pieces come about, no other text may be two such parts.
    """
    normal = normal_texts(pieces)
    for index, piece in enumerate(pieces):
        if piece.kind != NORMAL and is_merge_result(piece.text, normal):
            raise UserError(
                f"id {index}, {piece.text}, is no normal piece, but llama.cpp would merge text into it: "
                "this tokenizer cannot be exported as GGUF"
            )


def normal_texts(pieces: list[Piece]) -> set[str]:
    """The texts of the normal pieces."""
    return {piece.text for piece in pieces if piece.kind == NORMAL}


def is_merge_result(text: str, normal_pieces: set[str]) -> bool:
    """Whether two neighbours, each a character or a normal piece, have this text together, or a piece alone has."""
    parts = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
    return text in normal_pieces or any(
        all(len(part) == 1 or part in normal_pieces for part in pair) for pair in parts
    )


def write_vocabulary(
    writer: "GGUFWriter",
    vocabulary: GGUFVocabulary,
    tokenizer: Tokenizer,
    stop_ids: tuple[int, ...],
) -> list[int]:
    """Write the vocabulary and the ids that begin and end a text; the ids in `stop_ids` that there is no key for."""
    writer.add_tokenizer_model(vocabulary.tokenizer_model)
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list([piece.text for piece in vocabulary.pieces])
    if vocabulary.tokenizer_model == "llama":
        writer.add_token_scores([piece.score for piece in vocabulary.pieces])
    writer.add_token_types([piece.kind for piece in vocabulary.pieces])
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(tokenizer.bos_id)
    if tokenizer.unk_id is not None:
        writer.add_unk_token_id(tokenizer.unk_id)
    # The end of a document, of a turn and of a message to a tool, in llama.cpp's words: it stops at any of them.
    eog_ids = list(dict.fromkeys((tokenizer.eod_id, *stop_ids)))
    for write, index in zip(
        (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id),
        eog_ids,
        strict=False,
    ):
        write(index)
    # A text begins with <bos> where conversations do, as documents and conversations of training did. Where a chat template
    # writes it too, llama.cpp's server and llama-cpp-python keep one of the two; Ollama's template leaves it out.
    writer.add_add_bos_token(bool(template_for_tokenizer(tokenizer).bos_ids(tokenizer)))
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.adds_space_prefix)
    return eog_ids[3:]
