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

from model.tokenizer.base import SPECIAL_TOKEN_MARK, Span, encode_utf8

Offsets = list[tuple[int, int]]
# What says that parts of pre-tokenizers put no space before a text.
_NO_PREFIX_SPACE: dict[str, dict[str, Any]] = {
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}


class ConversationEncoder:
    """The tokenizer of a `tokenizer.json` for texts in which special tokens have MARK before them."""

    def __init__(
        self,
        definition: Mapping[str, Any],
        special_tokens: Mapping[str, int],
        added_tokens: Mapping[int, Any],
    ) -> None:
        """`added_tokens` are the library's own facts of added tokens, by id: which of `special_tokens` take white space with them."""
        import tokenizers

        # Post-processors add nothing here, and one of them moves the offsets of pieces.
        self._backend = build_backend({**definition, "post_processor": None})
        # Tokens that are special would be text like those whose names they are.
        # (Not whether they must be words of their own: beside a letter a template's would be text.)
        flags = (
            {key: getattr(added_tokens[index], key) for key in ("lstrip", "rstrip")}
            if index in added_tokens
            else {}
            for index in special_tokens.values()
        )
        self._backend.add_tokens(
            [
                tokenizers.AddedToken(
                    SPECIAL_TOKEN_MARK + text, normalized=False, special=False, **each
                )
                for text, each in zip(special_tokens, flags, strict=True)
            ]
        )
        self._special_id_by_marked_id = {
            self._backend.token_to_id(SPECIAL_TOKEN_MARK + text): index
            for text, index in special_tokens.items()
        }
        self._marked_text_by_id = {
            index: SPECIAL_TOKEN_MARK + text for text, index in special_tokens.items()
        }

    def encode(
        self, texts: Sequence[str], num_threads: int | None
    ) -> list[tuple[list[int], Offsets]]:
        """The ids of each text, and where in it each of them comes from (characters)."""
        return [
            ([self._special_id_by_marked_id.get(index, index) for index in each.ids], each.offsets)
            for each in encode_texts(self._backend, texts, num_threads)
        ]

    def encode_conversations(
        self,
        conversations: Sequence[Sequence[str]],
        bos_ids: Sequence[int],
        eos_id: int,
        num_threads: int | None,
    ) -> list[tuple[list[int], list[Span]]]:
        """See `Tokenizer.encode_conversations`; `eos_id` is the id behind each answer."""
        rendered = [self._render(texts, bos_ids, eos_id) for texts in conversations]
        made = self.encode([text for text, _ in rendered], num_threads)
        return [
            (ids, [self._id_span(ids, offsets, place) for place in places])
            for (ids, offsets), (_, places) in zip(made, rendered, strict=True)
        ]

    def _render(
        self, texts: Sequence[str], bos_ids: Sequence[int], eos_id: int
    ) -> tuple[str, list[Span]]:
        """A conversation as one text, and where in it each answer stands with its end (characters)."""
        segments = ["".join(self._marked_text_by_id[index] for index in bos_ids)]
        length, answer_ranges = len(segments[0]), []
        for index, text in enumerate(texts):
            part = text + self._marked_text_by_id[eos_id] if index % 2 else text
            if index % 2:
                answer_ranges.append((length, length + len(part)))
            segments.append(part)
            length += len(part)
        return "".join(segments), answer_ranges

    def _id_span(self, ids: Sequence[int], offsets: Offsets, text_range: Span) -> Span:
        """The ids that come from a stretch of the text, also those that come from what is before it too."""
        first = bisect_right(offsets, text_range[0], key=lambda each: each[1])
        # A special token that takes the white space behind it is still no part of what follows.
        first += offsets[first][0] < text_range[0] and ids[first] in self._marked_text_by_id
        return first, bisect_left(offsets, text_range[1], key=lambda each: each[0])


def build_backend(definition: Mapping[str, Any]) -> Any:
    """The library's tokenizer of a `tokenizer.json`, to which special tokens in texts are text."""
    import tokenizers

    fast = tokenizers.Tokenizer.from_str(json.dumps(definition))
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True
    return fast


def without_prefix_space(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A `tokenizer.json` without the space that it puts before a text."""
    return {
        **definition,
        **{
            key: _component_without_prefix_space(definition[key])
            for key in ("normalizer", "pre_tokenizer")
        },
    }


def encode_texts(backend_tokenizer: Any, texts: Sequence[str], num_threads: int | None) -> Any:
    """What the library makes of each text; on more than one thread, as many as it likes. UserError for lone surrogates."""
    for text in texts:
        encode_utf8(text)
    if num_threads == 1 or len(texts) == 1:
        return [backend_tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return backend_tokenizer.encode_batch(texts, add_special_tokens=False)


def _component_without_prefix_space(component: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer, which may be a sequence of others, without the space that it puts first."""
    if component is None or component["type"] == "Prepend":
        return None
    if component["type"] == "Sequence":
        inner = "normalizers" if "normalizers" in component else "pretokenizers"
        return {
            **component,
            inner: [
                kept for each in component[inner] if (kept := _component_without_prefix_space(each))
            ],
        }
    return {**component, **_NO_PREFIX_SPACE.get(component["type"], {})}
