"""The GGUF vocabulary of an imported tokenizer: SentencePiece-style and byte-level BPE.

A `tokenizer.json` merges by a ranked list of pairs. llama.cpp's `llama` vocabulary merges by
scores: it joins any two neighbors whose text is a piece, the highest score first. The two can agree
because BPE is deterministic: the text of a piece always goes through the same merges. Therefore

- a piece whose own text is not encoded as that piece alone is unreachable, and is marked unused;
- a reachable piece has exactly one derivation, and its score is minus the rank of the last merge.

llama.cpp's `gpt2` vocabulary, for byte-level BPE, has the merges themselves, and llama.cpp's name
for the pre-tokenizer.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from common.errors import UserError
from model.interop.gguf.vocab import (
    GGUFVocabulary,
    check_merges,
    is_reachable,
    normal_texts,
    unused_piece,
)
from model.tokenizer.base import METASPACE, SPECIAL_TOKEN_MARK, Piece
from model.tokenizer.imported import ImportedTokenizer, byte_alphabet
from model.tokenizer.sentencepiece_normalize import BYTE, CONTROL, NORMAL, USER_DEFINED

# (left, right) → position in the list of merges; lower ranks are merged first.
MergeRanks = dict[tuple[str, str], int]
_CONTRACTION_REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_NON_WORD_REGEX = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGIT_REGEX = r"\p{N}"
_GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_REGEX = _CONTRACTION_REGEX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _NON_WORD_REGEX
_QWEN2_REGEX = _CONTRACTION_REGEX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _NON_WORD_REGEX
# The regular expressions that split text, applied in turn → llama.cpp's name for them.
PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    (_GPT2_REGEX,): "gpt-2",
    (_DIGIT_REGEX, _GPT2_REGEX): "smollm",
    (_LLAMA3_REGEX,): "llama-bpe",
    (_QWEN2_REGEX,): "qwen2",
}
# The pre-tokenizer for which llama.cpp looks up a whole word before it merges (ignore_merges).
_WHOLE_WORD_PRE_TOKENIZER = "llama-bpe"
# The normalizer steps with which Llama 2's tokenizer.json writes spaces.
_REPLACE_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE}
_PREPEND_SPACE = {"type": "Prepend", "prepend": METASPACE}
# (behavior, invert) of a Split pre-tokenizer that keeps the matches as words.
_SPLITS_INTO_MATCHES = {("Isolated", False), ("Removed", True)}


def build_imported_vocabulary(tokenizer: ImportedTokenizer, vocab_size: int) -> GGUFVocabulary:
    """Build the vocabulary of an imported tokenizer, padded to `vocab_size` with unused pieces.

    Raises UserError if llama.cpp has no tokenizer that gives the same ids.
    """
    definition = tokenizer.canonical_definition
    model = definition["model"]
    if model["type"] != "BPE":
        raise _unsupported_error(f"its model is {model['type']}, not BPE")
    for key in ("dropout", "end_of_word_suffix"):
        if model.get(key):
            raise _unsupported_error(f"its BPE has {key} {model[key]!r}")
    for token in definition["added_tokens"]:
        if not token["special"] and (token["lstrip"] or token["rstrip"] or token["single_word"]):
            raise _unsupported_error(
                f"its added token {token['content']!r} strips white space or matches whole words "
                "only"
            )
    # `tokenizers` writes each merge once, as a pair. Of a merge that the original file lists twice,
    # it keeps the last rank, where llama.cpp would keep the first.
    merges: MergeRanks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
    if model.get("byte_fallback"):
        vocabulary = _build_sentencepiece_vocabulary(tokenizer, merges, vocab_size)
    else:
        vocabulary = _build_byte_level_vocabulary(tokenizer, merges, vocab_size)
    if len({piece.text for piece in vocabulary.pieces}) < len(vocabulary.pieces):
        raise _unsupported_error("two of its ids have the same text")
    return vocabulary


def _build_sentencepiece_vocabulary(
    tokenizer: ImportedTokenizer, merges: MergeRanks, vocab_size: int
) -> GGUFVocabulary:
    """Build a `llama` vocabulary, the kind of Llama 1 and 2 and TinyLlama."""
    definition = tokenizer.canonical_definition
    adds_space_prefix, splits_at_spaces = _parse_space_handling(definition)
    if definition["model"].get("ignore_merges"):
        raise _unsupported_error("it looks up whole texts before it merges (ignore_merges)")
    if sum(piece.kind == BYTE for piece in tokenizer.pieces) != 256:
        raise _unsupported_error("it does not have all of the 256 byte pieces")
    pieces = []
    for index, piece in enumerate(_iter_typed_pieces(tokenizer, vocab_size)):
        if piece.kind == NORMAL:
            rank = _last_merge_rank(piece.text, merges, definition["model"]["vocab"])
            # If text is split at spaces, a piece with a space inside is never the result.
            is_never_whole = splits_at_spaces and METASPACE in piece.text[1:]
            if rank is None or is_never_whole:
                piece = unused_piece(index)
            else:
                piece = piece._replace(score=-float(rank))
        pieces.append(piece)
    normal = normal_texts(pieces)
    pieces, names = _rename_special_tokens(pieces, lambda text: is_reachable(text, normal))
    # Both implementations find user-defined tokens before they merge.
    check_merges([piece for piece in pieces if piece.kind != USER_DEFINED])
    return GGUFVocabulary(
        "llama", pieces, adds_space_prefix=adds_space_prefix, special_token_names=names
    )


def _build_byte_level_vocabulary(
    tokenizer: ImportedTokenizer, merges: MergeRanks, vocab_size: int
) -> GGUFVocabulary:
    """Build a `gpt2` vocabulary, the kind of GPT-2, Llama 3 and most small Chinese models."""
    definition = tokenizer.canonical_definition
    pre_tokenizer = _identify_pre_tokenizer(definition)
    vocab = definition["model"]["vocab"]
    if not byte_alphabet().keys() <= vocab.keys():
        raise _unsupported_error("it does not have all of the 256 bytes")
    ignores_merges = bool(definition["model"].get("ignore_merges"))
    looks_up_words = pre_tokenizer == _WHOLE_WORD_PRE_TOKENIZER
    pieces = []
    for index, piece in enumerate(_iter_typed_pieces(tokenizer, vocab_size)):
        if piece.kind == NORMAL and _last_merge_rank(piece.text, merges, vocab) is None:
            # Merges do not build this piece. It is found only by looking up a whole word, which
            # the tokenizer does if it ignores merges, and llama.cpp for one pre-tokenizer.
            if not ignores_merges:
                piece = unused_piece(index)
            elif not looks_up_words:
                raise _unsupported_error(
                    "it looks up whole words before it merges (ignore_merges), such as "
                    f"{piece.text}, and splits text as {pre_tokenizer} does"
                )
        pieces.append(piece)
    # No merge builds the name of a special token, so llama.cpp can find it in text only by looking
    # up a whole word.
    is_found_in_text = _build_single_word_check(definition) if looks_up_words else _never
    pieces, names = _rename_special_tokens(pieces, is_found_in_text)
    return GGUFVocabulary(
        "gpt2",
        pieces,
        pre_tokenizer=pre_tokenizer,
        merges=[" ".join(pair) for pair in merges],
        special_token_names=names,
    )


def _iter_typed_pieces(tokenizer: ImportedTokenizer, vocab_size: int) -> Iterator[Piece]:
    """Yield the pieces with llama.cpp's types: added tokens that are not special are user-defined.

    Ids without text are unused pieces.
    """
    added_tokens = tokenizer.canonical_definition["added_tokens"]
    user_defined_ids = {token["id"] for token in added_tokens if not token["special"]}
    for index in range(vocab_size):
        if index >= tokenizer.vocab_size or not tokenizer.pieces[index].text:
            yield unused_piece(index)
        elif index in user_defined_ids:
            yield tokenizer.pieces[index]._replace(kind=USER_DEFINED)
        else:
            yield tokenizer.pieces[index]


def _rename_special_tokens(
    pieces: list[Piece], is_found_in_text: Callable[[str], bool]
) -> tuple[list[Piece], dict[str, str]]:
    """Append SPECIAL_TOKEN_MARK to the special tokens that llama.cpp would find in text.

    `is_found_in_text(name)` returns whether it would find the token of that name. Returns the
    pieces, and a dict of the new names of all special tokens by their old names.
    """
    names = {}
    renamed = []
    for piece in pieces:
        if piece.kind == CONTROL:
            mark = SPECIAL_TOKEN_MARK if is_found_in_text(piece.text) else ""
            names[piece.text] = piece.text + mark
            piece = piece._replace(text=names[piece.text])
        renamed.append(piece)
    return renamed, names


def _last_merge_rank(text: str, merges: MergeRanks, vocab: dict[str, int]) -> int | None:
    """Return the rank of the last merge when BPE encodes the text of a piece; 0 for a character.

    Returns None if the text is not encoded as one piece, so that the piece is unreachable.
    """
    # BPE by its definition: start from characters, and merge the pair of the lowest rank until one
    # piece is left.
    parts = list(text)
    if any(part not in vocab for part in parts):
        return None
    rank = 0
    while len(parts) > 1:
        ranks = [merges.get(pair, len(merges)) for pair in zip(parts, parts[1:], strict=False)]
        rank = min(ranks)
        if rank == len(merges):
            return None
        # Of equal ranks the leftmost pair is merged.
        position = ranks.index(rank)
        parts[position : position + 2] = [parts[position] + parts[position + 1]]
    return rank


def _build_single_word_check(definition: dict[str, Any]) -> Callable[[str], bool]:
    """Return a function that tells whether pre-tokenization leaves a text as one word."""
    # Imported here because only imported models need it.
    import tokenizers

    # Loaded only once, because Llama 3 has 256 special tokens to check, and loading its vocabulary
    # takes a second.
    pre_tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition)).pre_tokenizer
    assert pre_tokenizer is not None  # byte-level has one
    return lambda text: len(pre_tokenizer.pre_tokenize_str(text)) == 1


def _never(text: str) -> bool:
    """Return False, as a check of `_rename_special_tokens`."""
    return False


def _parse_space_handling(definition: dict[str, Any]) -> tuple[bool, bool]:
    """Return whether a space is put before every text, and whether text is split at spaces.

    Raises UserError if the normalizer and the pre-tokenizer do anything else.
    """
    normalizers = _flatten_sequence(definition.get("normalizer"), "normalizers")
    pre_tokenizers = _flatten_sequence(definition.get("pre_tokenizer"), "pretokenizers")
    if not pre_tokenizers and normalizers == [_REPLACE_SPACES]:
        return False, False
    if not pre_tokenizers and normalizers == [_PREPEND_SPACE, _REPLACE_SPACES]:
        return True, False
    if not normalizers and len(pre_tokenizers) == 1:
        metaspace = pre_tokenizers[0]
        if metaspace["type"] == "Metaspace" and metaspace.get("replacement") == METASPACE:
            scheme = metaspace.get("prepend_scheme", "always")
            if scheme == "never":
                return False, bool(metaspace.get("split", True))
            raise _unsupported_error(
                "it puts a space before some texts and not before others (Metaspace, "
                f"prepend_scheme {scheme})"
            )
    raise _unsupported_error(
        f"with byte fallback it has {_describe_components('normalizer', normalizers)} and "
        f"{_describe_components('pre-tokenizer', pre_tokenizers)}"
    )


def _identify_pre_tokenizer(definition: dict[str, Any]) -> str:
    """Return llama.cpp's name of the pre-tokenizer with the same regular expressions.

    Raises UserError if llama.cpp has no such pre-tokenizer.
    """
    if normalizers := _flatten_sequence(definition.get("normalizer"), "normalizers"):
        raise _unsupported_error(
            f"it is byte-level with {_describe_components('normalizer', normalizers)}"
        )
    components = _flatten_sequence(definition.get("pre_tokenizer"), "pretokenizers")
    byte_level = components[-1] if components else {}
    regexes = [_split_regex(component) for component in components[:-1]]
    if byte_level.get("add_prefix_space"):
        raise _unsupported_error(
            f"it has {_describe_components('pre-tokenizer', components)}, which puts a space "
            "before every text"
        )
    if byte_level.get("type") != "ByteLevel" or None in regexes:
        raise _unsupported_error(f"it has {_describe_components('pre-tokenizer', components)}")
    # By default ByteLevel also splits by the expression of GPT-2.
    if byte_level.get("use_regex", True):
        regexes.append(_GPT2_REGEX)
    # None was ruled out above; this is for the type checker.
    split_regexes = tuple(regex for regex in regexes if regex is not None)
    if split_regexes not in PRE_TOKENIZERS:
        raise _unsupported_error(
            f"it splits text by {' and then '.join(split_regexes) or 'nothing'}"
        )
    return PRE_TOKENIZERS[split_regexes]


def _split_regex(pre_tokenizer: dict[str, Any]) -> str | None:
    """Return the regular expression that a pre-tokenizer splits by, or None for other kinds."""
    if pre_tokenizer["type"] == "Digits" and pre_tokenizer.get("individual_digits"):
        return _DIGIT_REGEX
    mode = (pre_tokenizer.get("behavior"), pre_tokenizer.get("invert"))
    if pre_tokenizer["type"] == "Split" and mode in _SPLITS_INTO_MATCHES:
        regex: str | None = pre_tokenizer["pattern"].get("Regex")
        return regex
    return None


def _flatten_sequence(component: dict[str, Any] | None, list_key: str) -> list[dict[str, Any]]:
    """Return a normalizer or pre-tokenizer as a flat list of components.

    `list_key` is the key of the components of a Sequence, which may contain others.
    """
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    flat = []
    for inner in component[list_key]:
        flat += _flatten_sequence(inner, list_key)
    return flat


def _describe_components(kind: str, components: list[dict[str, Any]]) -> str:
    """Return a phrase such as `the normalizer Prepend + Replace` for a message."""
    if not components:
        return f"no {kind}"
    return f"the {kind} {' + '.join(component['type'] for component in components)}"


def _unsupported_error(reason: str) -> UserError:
    """Return the error of a tokenizer that llama.cpp cannot reproduce; `reason` is a clause."""
    return UserError(
        f"this imported tokenizer cannot be exported as GGUF: {reason}; llama.cpp has no tokenizer "
        "that gives the same ids: use --format hf"
    )
