"""The tokenizer of an imported model as llama.cpp knows one: the two kinds of BPE that it can do alike.

A `tokenizer.json` merges the pairs of a list, the best first; what it makes of a piece's own text it makes of that text
wherever the piece's ends stay ends. So a piece that its own text does not become, no text becomes, and of the ways to put a
piece together one alone is ever gone. llama.cpp's `llama` vocabulary, which joins whatever two neighbours spell a piece, the
best score first, therefore does the same once the first kind of piece is out of its way and the rank of that one way is the
other kind's score.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

from common.errors import UserError
from model.interop.gguf.vocab import (
    GGUFVocabulary,
    check_merges,
    is_merge_result,
    normal_texts,
    unused_piece,
)
from model.tokenizer.base import METASPACE, SPECIAL_TOKEN_MARK, Piece
from model.tokenizer.imported import ImportedTokenizer, byte_alphabet
from model.tokenizer.sentencepiece_normalize import BYTE, CONTROL, NORMAL, USER_DEFINED

MergeRanks = dict[tuple[str, str], int]
_CONTRACTION_REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_NON_WORD_REGEX = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGIT_REGEX = r"\p{N}"
_GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_REGEX = _CONTRACTION_REGEX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _NON_WORD_REGEX
_QWEN2_REGEX = _CONTRACTION_REGEX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _NON_WORD_REGEX
# Where byte-level tokenizers cut a text before they merge, one expression after another: llama.cpp's name for it.
PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    (_GPT2_REGEX,): "gpt-2",
    (_DIGIT_REGEX, _GPT2_REGEX): "smollm",
    (_LLAMA3_REGEX,): "llama-bpe",
    (_QWEN2_REGEX,): "qwen2",
}
# The one for which llama.cpp looks up a whole word before it merges.
_WHOLE_WORD_PRE_TOKENIZER = "llama-bpe"
# How Llama 2's tokenizer.json writes spaces, with and without one in front of every text.
_REPLACE_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE}
_PREPEND_SPACE = {"type": "Prepend", "prepend": METASPACE}


def build_imported_vocabulary(tokenizer: ImportedTokenizer, vocab_size: int) -> GGUFVocabulary:
    """The vocabulary of an imported tokenizer, filled up with unused pieces to `vocab_size`. UserError if llama.cpp has no such."""
    model = tokenizer.canonical_definition["model"]
    if model["type"] != "BPE":
        raise _unsupported_error(f"its model is {model['type']}, not BPE")
    for key in ("dropout", "end_of_word_suffix"):
        if model.get(key):
            raise _unsupported_error(f"its BPE has {key} {model[key]!r}")
    for each in tokenizer.canonical_definition["added_tokens"]:
        if not each["special"] and (each["lstrip"] or each["rstrip"] or each["single_word"]):
            raise _unsupported_error(
                f"its added token {each['content']!r} takes white space with it, or is found between spaces only"
            )
    merges: MergeRanks = {}
    for pair in model["merges"]:
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        merges.setdefault((left, right), len(merges))
    made = (
        _build_sentencepiece_vocabulary(tokenizer, merges, vocab_size)
        if model.get("byte_fallback")
        else _build_byte_level_vocabulary(tokenizer, merges, vocab_size)
    )
    if len({piece.text for piece in made.pieces}) < len(made.pieces):
        raise _unsupported_error("two of its ids have one text")
    return made


def _build_sentencepiece_vocabulary(
    tokenizer: ImportedTokenizer, merges: MergeRanks, vocab_size: int
) -> GGUFVocabulary:
    """As Llama 1 and 2 and TinyLlama have one."""
    adds_space_prefix, splits_at_spaces = _parse_space_handling(tokenizer.canonical_definition)
    if tokenizer.canonical_definition["model"].get("ignore_merges"):
        raise _unsupported_error("it looks up whole texts before it merges (ignore_merges)")
    if sum(piece.kind == BYTE for piece in tokenizer.pieces) != 256:
        raise _unsupported_error("it has not all of the 256 byte pieces")
    pieces = []
    for index, piece in enumerate(_iter_typed_pieces(tokenizer, vocab_size)):
        # Cut before every space, no piece holds one but in front.
        rank = (
            None
            if splits_at_spaces and METASPACE in piece.text[1:]
            else _final_merge_rank(piece.text, merges, tokenizer)
        )
        if piece.kind != NORMAL:
            pieces.append(piece)
        else:
            pieces.append(
                unused_piece(index) if rank is None else piece._replace(score=-float(rank))
            )
    normal = normal_texts(pieces)
    pieces, specials = _rename_special_tokens(pieces, lambda text: is_merge_result(text, normal))
    # Tokens that are no special ones are found before anything is merged, here as there.
    check_merges([piece for piece in pieces if piece.kind != USER_DEFINED])
    return GGUFVocabulary(
        "llama", pieces, adds_space_prefix=adds_space_prefix, special_token_names=specials
    )


def _build_byte_level_vocabulary(
    tokenizer: ImportedTokenizer, merges: MergeRanks, vocab_size: int
) -> GGUFVocabulary:
    """As GPT-2, Llama 3 and most small Chinese models have one."""
    pre_tokenizer = _identify_pre_tokenizer(tokenizer.canonical_definition)
    if not byte_alphabet().keys() <= tokenizer.canonical_definition["model"]["vocab"].keys():
        raise _unsupported_error("it has not all of the 256 bytes")
    ignores_merges = bool(tokenizer.canonical_definition["model"].get("ignore_merges"))
    pieces = []
    for index, piece in enumerate(_iter_typed_pieces(tokenizer, vocab_size)):
        kept = (
            piece.kind != NORMAL
            or ignores_merges
            or _final_merge_rank(piece.text, merges, tokenizer) is not None
        )
        pieces.append(piece if kept else unused_piece(index))
    if (
        ignores_merges
        and pre_tokenizer != _WHOLE_WORD_PRE_TOKENIZER
        and (
            word := next(
                (
                    p.text
                    for p in pieces
                    if p.kind == NORMAL and _final_merge_rank(p.text, merges, tokenizer) is None
                ),
                None,
            )
        )
    ):
        raise _unsupported_error(
            f"it looks up whole words before it merges (ignore_merges), such as {word}, and cuts text as {pre_tokenizer} does"
        )
    pieces, specials = _rename_special_tokens(
        pieces,
        _build_single_word_check(tokenizer)
        if pre_tokenizer == _WHOLE_WORD_PRE_TOKENIZER
        else lambda text: False,
    )
    return GGUFVocabulary(
        "gpt2",
        pieces,
        pre_tokenizer=pre_tokenizer,
        merges=[" ".join(pair) for pair in merges],
        special_token_names=specials,
    )


def _iter_typed_pieces(tokenizer: ImportedTokenizer, vocab_size: int) -> Iterable[Piece]:
    """The pieces with the types that llama.cpp gives them: what is found in text as it stands is user-defined."""
    found = {
        each["id"] for each in tokenizer.canonical_definition["added_tokens"] if not each["special"]
    }
    for index in range(vocab_size):
        piece = tokenizer.pieces[index] if index < tokenizer.vocab_size else Piece("", 0.0, CONTROL)
        yield (
            unused_piece(index)
            if not piece.text
            else piece._replace(kind=USER_DEFINED)
            if index in found
            else piece
        )


def _rename_special_tokens(
    pieces: list[Piece], is_spelled_by_text: Callable[[str], bool]
) -> tuple[list[Piece], dict[str, str]]:
    """The pieces, with other names for special tokens that a text would become when it is `is_spelled_by_text`; and all their names."""
    names = {
        piece.text: piece.text + SPECIAL_TOKEN_MARK * is_spelled_by_text(piece.text)
        for piece in pieces
        if piece.kind == CONTROL
    }
    return [
        piece._replace(text=names[piece.text]) if piece.kind == CONTROL else piece
        for piece in pieces
    ], names


def _final_merge_rank(text: str, merges: MergeRanks, tokenizer: ImportedTokenizer) -> int | None:
    """The rank of the merge that ends in this piece, 0 for a character; None where its text becomes something else."""
    parts, rank = list(text), 0
    vocabulary = tokenizer.canonical_definition["model"]["vocab"]
    if any(part not in vocabulary for part in parts):
        return None
    while len(parts) > 1:
        ranks = [merges.get(pair, len(merges)) for pair in zip(parts, parts[1:], strict=False)]
        rank = min(ranks)
        if rank == len(merges):
            return None
        place = ranks.index(rank)
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    return rank


def _build_single_word_check(tokenizer: ImportedTokenizer) -> Callable[[str], bool]:
    """What says whether byte-level pre-tokenizing cuts a text nowhere."""
    import tokenizers

    # Made once: Llama 3 has 256 special tokens to ask about, and a vocabulary that takes a second to read.
    cut = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.canonical_definition)).pre_tokenizer
    assert cut is not None  # byte-level has one
    return lambda text: len(cut.pre_tokenize_str(text)) == 1


def _parse_space_handling(definition: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a space is put before every text, and whether text is cut at spaces."""
    normalizers = _flatten_sequence(definition.get("normalizer"), "normalizers")
    pre_tokenizers = _flatten_sequence(definition.get("pre_tokenizer"), "pretokenizers")
    if not pre_tokenizers and normalizers in ([_REPLACE_SPACES], [_PREPEND_SPACE, _REPLACE_SPACES]):
        return normalizers[0] == _PREPEND_SPACE, False
    if (
        not normalizers
        and len(pre_tokenizers) == 1
        and pre_tokenizers[0]["type"] == "Metaspace"
        and pre_tokenizers[0].get("replacement") == METASPACE
    ):
        if (scheme := pre_tokenizers[0].get("prepend_scheme", "always")) == "never":
            return False, bool(pre_tokenizers[0].get("split", True))
        raise _unsupported_error(
            f"it puts a space before some texts and not before others (Metaspace, prepend_scheme {scheme})"
        )
    raise _unsupported_error(
        f"with byte fallback it has {_describe_components('normalizer', normalizers)} and {_describe_components('pre-tokenizer', pre_tokenizers)}"
    )


def _identify_pre_tokenizer(definition: dict[str, Any]) -> str:
    """llama.cpp's name for how text is cut."""
    if normalizers := _flatten_sequence(definition.get("normalizer"), "normalizers"):
        raise _unsupported_error(
            f"it is byte-level with {_describe_components('normalizer', normalizers)}"
        )
    cuts = _flatten_sequence(definition.get("pre_tokenizer"), "pretokenizers")
    last = cuts[-1] if cuts else {}
    expressions = [_split_regex(each) for each in cuts[:-1]]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True) or None in expressions:
        raise _unsupported_error(
            f"it has {_describe_components('pre-tokenizer', cuts)}"
            f"{', which puts a space before every text' if last.get('add_prefix_space') else ''}"
        )
    found = tuple(each for each in expressions if each is not None) + (
        (_GPT2_REGEX,) if last.get("use_regex", True) else ()
    )
    if found not in PRE_TOKENIZERS:
        raise _unsupported_error(f"it cuts text by {' and then '.join(found) or 'nothing'}")
    return PRE_TOKENIZERS[found]


def _split_regex(pre_tokenizer: dict[str, Any]) -> str | None:
    """The regular expression by which a part of a pre-tokenizer makes words; None where it does something else."""
    if pre_tokenizer["type"] == "Digits" and pre_tokenizer.get("individual_digits"):
        return _DIGIT_REGEX
    kept = (pre_tokenizer.get("behavior"), pre_tokenizer.get("invert")) in (
        ("Isolated", False),
        ("Removed", True),
    )
    return (
        pre_tokenizer["pattern"].get("Regex") if pre_tokenizer["type"] == "Split" and kept else None
    )


def _flatten_sequence(component: dict[str, Any] | None, list_key: str) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, which may be a sequence of others."""
    if component is None:
        return []
    return (
        [each for inner in component[list_key] for each in _flatten_sequence(inner, list_key)]
        if component["type"] == "Sequence"
        else [component]
    )


def _describe_components(kind: str, components: list[dict[str, Any]]) -> str:
    return (
        f"the {kind} {' + '.join(each['type'] for each in components)}"
        if components
        else f"no {kind}"
    )


def _unsupported_error(reason: str) -> UserError:
    return UserError(
        f"this imported tokenizer cannot be exported as GGUF: {reason}, for which llama.cpp has no like that gives "
        "the same ids; use --format hf"
    )
