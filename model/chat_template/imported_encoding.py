"""Conversations in the ids of an imported tokenizer: one text, split at the special tokens of the template and nowhere else.

transformers renders a conversation into one text and encodes that. What a tokenizer does at the beginning of a text, such as
Llama 2's space, it then does at the beginning of all or behind each special token, never between a question and its answer;
and a piece may hold the end of the one and the beginning of the other. The library that made the tokenizer does the same
here, but for one thing: a special token is one where the template's words have it, with MARK before it, and text elsewhere.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from model.tokenizer.base import MARK, Span, utf8

Offsets = list[tuple[int, int]]
# What says that parts of pre-tokenizers put no space before a text.
_SPACELESS: dict[str, dict[str, Any]] = {"Metaspace": {"prepend_scheme": "never"}, "ByteLevel": {"add_prefix_space": False}}


class FramedTokenizer:
    """The tokenizer of a `tokenizer.json` for texts in which special tokens have MARK before them."""

    def __init__(self, definition: Mapping[str, Any], specials: Mapping[str, int], added: Mapping[int, Any]) -> None:
        """`added` are the library's own facts of added tokens, by id: which of `specials` take white space with them."""
        import tokenizers

        # Post-processors add nothing here, and one of them moves the offsets of pieces.
        self._fast = backend({**definition, "post_processor": None})
        # Tokens that are special would be text like those whose names they are.
        # (Not whether they must be words of their own: beside a letter a template's would be text.)
        flags = ({key: getattr(added[index], key) for key in ("lstrip", "rstrip")} if index in added else {}
                 for index in specials.values())
        self._fast.add_tokens([tokenizers.AddedToken(MARK + text, normalized=False, special=False, **each)
                               for text, each in zip(specials, flags, strict=True)])
        self._ids = {self._fast.token_to_id(MARK + text): index for text, index in specials.items()}
        self._names = {index: MARK + text for text, index in specials.items()}

    def encode(self, texts: Sequence[str], threads: int | None) -> list[tuple[list[int], Offsets]]:
        """The ids of each text, and where in it each of them comes from (characters)."""
        return [([self._ids.get(index, index) for index in each.ids], each.offsets)
                for each in encodings(self._fast, texts, threads)]

    def encode_conversations(
        self, conversations: Sequence[Sequence[str]], start: Sequence[int], end: int, threads: int | None
    ) -> list[tuple[list[int], list[Span]]]:
        """See `Tokenizer.encode_conversations`; `end` is the id behind each answer."""
        rendered = [self._rendered(texts, start, end) for texts in conversations]
        made = self.encode([text for text, _ in rendered], threads)
        return [(ids, [self._span(ids, offsets, place) for place in places])
                for (ids, offsets), (_, places) in zip(made, rendered, strict=True)]

    def _rendered(self, texts: Sequence[str], start: Sequence[int], end: int) -> tuple[str, list[Span]]:
        """A conversation as one text, and where in it each answer stands with its end (characters)."""
        parts = ["".join(self._names[index] for index in start)]
        length, places = len(parts[0]), []
        for index, text in enumerate(texts):
            part = text + self._names[end] if index % 2 else text
            if index % 2:
                places.append((length, length + len(part)))
            parts.append(part)
            length += len(part)
        return "".join(parts), places

    def _span(self, ids: Sequence[int], offsets: Offsets, place: Span) -> Span:
        """The ids that come from a stretch of the text, also those that come from what is before it too."""
        first = bisect_right(offsets, place[0], key=lambda each: each[1])
        # A special token that takes the white space behind it is still no part of what follows.
        first += offsets[first][0] < place[0] and ids[first] in self._names
        return first, bisect_left(offsets, place[1], key=lambda each: each[0])


def backend(definition: Mapping[str, Any]) -> Any:
    """The library's tokenizer of a `tokenizer.json`, to which special tokens in texts are text."""
    import tokenizers

    fast = tokenizers.Tokenizer.from_str(json.dumps(definition))
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True
    return fast


def spaceless(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A `tokenizer.json` without the space that it puts before a text."""
    return {**definition, **{key: _without_space(definition[key]) for key in ("normalizer", "pre_tokenizer")}}


def encodings(fast: Any, texts: Sequence[str], threads: int | None) -> Any:
    """What the library makes of each text; on more than one thread, as many as it likes. UserError for lone surrogates."""
    for text in texts:
        utf8(text)
    if threads == 1 or len(texts) == 1:
        return [fast.encode(text, add_special_tokens=False) for text in texts]
    return fast.encode_batch(texts, add_special_tokens=False)


def _without_space(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer, which may be a sequence of others, without the space that it puts first."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        inner = "normalizers" if "normalizers" in part else "pretokenizers"
        return {**part, inner: [kept for each in part[inner] if (kept := _without_space(each))]}
    return {**part, **_SPACELESS.get(part["type"], {})}
