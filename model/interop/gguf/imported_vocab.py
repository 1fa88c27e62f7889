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
from model.interop.gguf.vocab import Vocabulary, check_merges, is_merged, normal_texts, unused
from model.tokenizer.base import MARK, SPACE, Piece
from model.tokenizer.imported import ImportedTokenizer, byte_alphabet
from model.tokenizer.sentencepiece_normalize import BYTE, CONTROL, NORMAL, USER_DEFINED

Merges = dict[tuple[str, str], int]
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
# Where byte-level tokenizers cut a text before they merge, one expression after another: llama.cpp's name for it.
PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    (_GPT2,): "gpt-2", (_DIGIT, _GPT2): "smollm", (_LLAMA3,): "llama-bpe", (_QWEN2,): "qwen2"}
# The one for which llama.cpp looks up a whole word before it merges.
_WHOLE_WORDS = "llama-bpe"
# How Llama 2's tokenizer.json writes spaces, with and without one in front of every text.
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_SPACE_FIRST = {"type": "Prepend", "prepend": SPACE}


def imported_vocabulary(tokenizer: ImportedTokenizer, size: int) -> Vocabulary:
    """The vocabulary of an imported tokenizer, filled up with unused pieces to `size`. UserError if llama.cpp has no such."""
    model = tokenizer.understood["model"]
    if model["type"] != "BPE":
        raise _unknown(f"its model is {model['type']}, not BPE")
    for key in ("dropout", "end_of_word_suffix"):
        if model.get(key):
            raise _unknown(f"its BPE has {key} {model[key]!r}")
    for each in tokenizer.understood["added_tokens"]:
        if not each["special"] and (each["lstrip"] or each["rstrip"] or each["single_word"]):
            raise _unknown(f"its added token {each['content']!r} takes white space with it, or is found between spaces only")
    merges: Merges = {}
    for pair in model["merges"]:
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        merges.setdefault((left, right), len(merges))
    made = _sentencepiece(tokenizer, merges, size) if model.get("byte_fallback") else _byte_level(tokenizer, merges, size)
    if len({piece.text for piece in made.pieces}) < len(made.pieces):
        raise _unknown("two of its ids have one text")
    return made


def _sentencepiece(tokenizer: ImportedTokenizer, merges: Merges, size: int) -> Vocabulary:
    """As Llama 1 and 2 and TinyLlama have one."""
    space_first, cut = _spaces(tokenizer.understood)
    if tokenizer.understood["model"].get("ignore_merges"):
        raise _unknown("it looks up whole texts before it merges (ignore_merges)")
    if sum(piece.kind == BYTE for piece in tokenizer.pieces) != 256:
        raise _unknown("it has not all of the 256 byte pieces")
    made = []
    for index, piece in enumerate(_pieces(tokenizer, size)):
        # Cut before every space, no piece holds one but in front.
        rank = None if cut and SPACE in piece.text[1:] else _rank(piece.text, merges, tokenizer)
        if piece.kind != NORMAL:
            made.append(piece)
        else:
            made.append(unused(index) if rank is None else piece._replace(score=-float(rank)))
    normal = normal_texts(made)
    made, specials = _marked(made, lambda text: is_merged(text, normal))
    # Tokens that are no special ones are found before anything is merged, here as there.
    check_merges([piece for piece in made if piece.kind != USER_DEFINED])
    return Vocabulary("llama", made, space_first=space_first, specials=specials)


def _byte_level(tokenizer: ImportedTokenizer, merges: Merges, size: int) -> Vocabulary:
    """As GPT-2, Llama 3 and most small Chinese models have one."""
    pre = _pre_tokenizer(tokenizer.understood)
    if not byte_alphabet().keys() <= tokenizer.understood["model"]["vocab"].keys():
        raise _unknown("it has not all of the 256 bytes")
    whole_words = bool(tokenizer.understood["model"].get("ignore_merges"))
    made = []
    for index, piece in enumerate(_pieces(tokenizer, size)):
        kept = piece.kind != NORMAL or whole_words or _rank(piece.text, merges, tokenizer) is not None
        made.append(piece if kept else unused(index))
    if whole_words and pre != _WHOLE_WORDS and (
            word := next((p.text for p in made if p.kind == NORMAL and _rank(p.text, merges, tokenizer) is None), None)):
        raise _unknown(f"it looks up whole words before it merges (ignore_merges), such as {word}, and cuts text as {pre} does")
    made, specials = _marked(made, _word_finder(tokenizer) if pre == _WHOLE_WORDS else lambda text: False)
    return Vocabulary("gpt2", made, pre=pre, merges=[" ".join(pair) for pair in merges], specials=specials)


def _pieces(tokenizer: ImportedTokenizer, size: int) -> Iterable[Piece]:
    """The pieces with the types that llama.cpp gives them: what is found in text as it stands is user-defined."""
    found = {each["id"] for each in tokenizer.understood["added_tokens"] if not each["special"]}
    for index in range(size):
        piece = tokenizer.pieces[index] if index < tokenizer.vocabulary_size else Piece("", 0.0, CONTROL)
        yield unused(index) if not piece.text else piece._replace(kind=USER_DEFINED) if index in found else piece


def _marked(pieces: list[Piece], spelled: Callable[[str], bool]) -> tuple[list[Piece], dict[str, str]]:
    """The pieces, with other names for special tokens that a text would become when it is `spelled`; and all their names."""
    names = {piece.text: piece.text + MARK * spelled(piece.text) for piece in pieces if piece.kind == CONTROL}
    return [piece._replace(text=names[piece.text]) if piece.kind == CONTROL else piece for piece in pieces], names


def _rank(text: str, merges: Merges, tokenizer: ImportedTokenizer) -> int | None:
    """The rank of the merge that ends in this piece, 0 for a character; None where its text becomes something else."""
    parts, rank = list(text), 0
    vocabulary = tokenizer.understood["model"]["vocab"]
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


def _word_finder(tokenizer: ImportedTokenizer) -> Callable[[str], bool]:
    """What says whether byte-level pre-tokenizing cuts a text nowhere."""
    import tokenizers

    # Made once: Llama 3 has 256 special tokens to ask about, and a vocabulary that takes a second to read.
    cut = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.understood)).pre_tokenizer
    assert cut is not None  # byte-level has one
    return lambda text: len(cut.pre_tokenize_str(text)) == 1


def _spaces(definition: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a space is put before every text, and whether text is cut at spaces."""
    normalizers = _parts(definition.get("normalizer"), "normalizers")
    cuts = _parts(definition.get("pre_tokenizer"), "pretokenizers")
    if not cuts and normalizers in ([_SPACES], [_SPACE_FIRST, _SPACES]):
        return normalizers[0] == _SPACE_FIRST, False
    if not normalizers and len(cuts) == 1 and cuts[0]["type"] == "Metaspace" and cuts[0].get("replacement") == SPACE:
        if (scheme := cuts[0].get("prepend_scheme", "always")) == "never":
            return False, bool(cuts[0].get("split", True))
        raise _unknown(f"it puts a space before some texts and not before others (Metaspace, prepend_scheme {scheme})")
    raise _unknown(f"with byte fallback it has {_named('normalizer', normalizers)} and {_named('pre-tokenizer', cuts)}")


def _pre_tokenizer(definition: dict[str, Any]) -> str:
    """llama.cpp's name for how text is cut."""
    if normalizers := _parts(definition.get("normalizer"), "normalizers"):
        raise _unknown(f"it is byte-level with {_named('normalizer', normalizers)}")
    cuts = _parts(definition.get("pre_tokenizer"), "pretokenizers")
    last = cuts[-1] if cuts else {}
    expressions = [_expression(each) for each in cuts[:-1]]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True) or None in expressions:
        raise _unknown(f"it has {_named('pre-tokenizer', cuts)}"
                       f"{', which puts a space before every text' if last.get('add_prefix_space') else ''}")
    found = tuple(each for each in expressions if each is not None) + ((_GPT2,) if last.get("use_regex", True) else ())
    if found not in PRE_TOKENIZERS:
        raise _unknown(f"it cuts text by {' and then '.join(found) or 'nothing'}")
    return PRE_TOKENIZERS[found]


def _expression(cut: dict[str, Any]) -> str | None:
    """The regular expression by which a part of a pre-tokenizer makes words; None where it does something else."""
    if cut["type"] == "Digits" and cut.get("individual_digits"):
        return _DIGIT
    kept = (cut.get("behavior"), cut.get("invert")) in (("Isolated", False), ("Removed", True))
    return cut["pattern"].get("Regex") if cut["type"] == "Split" and kept else None


def _parts(part: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, which may be a sequence of others."""
    if part is None:
        return []
    return [each for inner in part[inside] for each in _parts(inner, inside)] if part["type"] == "Sequence" else [part]


def _named(what: str, parts: list[dict[str, Any]]) -> str:
    return f"the {what} {' + '.join(each['type'] for each in parts)}" if parts else f"no {what}"


def _unknown(found: str) -> UserError:
    return UserError(f"this imported tokenizer cannot be exported as GGUF: {found}, for which llama.cpp has no like that gives "
                     "the same ids; use --format hf")
