"""The `tokenizers` library under an imported tokenizer: special tokens in text stay text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from model.tokenizer.base import SPECIAL_TOKEN_MARK, Span, encode_utf8

# Settings with which a normalizer or pre-tokenizer of each type adds no prefix space.
_NO_PREFIX_SPACE: dict[str, dict[str, Any]] = {
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}


class MarkedText(NamedTuple):
    """The ids of a text with marked special tokens, and the characters that each id covers."""

    ids: list[int]
    offsets: list[Span]


class MarkedTokenBackend:
    """A tokenizer that encodes SPECIAL_TOKEN_MARK + name, but no plain name, as a special token.

    Marked names are added to a `tokenizers.Tokenizer` as ordinary added tokens, because with
    `encode_special_tokens` it encodes its special tokens as text.
    """

    def __init__(
        self,
        definition: Mapping[str, Any],
        special_tokens: Mapping[str, int],
        added_tokens: Mapping[int, Any],
    ) -> None:
        """Build the tokenizer from a `tokenizer.json`.

        `special_tokens` are ids by name, `added_tokens` are `tokenizers.AddedToken` by id.
        """
        # Imported here because only imported models need it.
        import tokenizers

        # Post-processors add special tokens, which are marked in the text here, and ByteLevel's
        # would cut leading spaces off the offsets.
        self._backend = build_backend({**definition, "post_processor": None})
        marked_tokens = []
        for text, index in special_tokens.items():
            # With lstrip and rstrip a token includes the white space around it, as the original
            # does. `single_word` is left out, because a template may put a token next to a letter,
            # and it would become text there.
            original = added_tokens.get(index)
            flags = {key: bool(original and getattr(original, key)) for key in ("lstrip", "rstrip")}
            marked_tokens.append(
                tokenizers.AddedToken(
                    SPECIAL_TOKEN_MARK + text, normalized=False, special=False, **flags
                )
            )
        self._backend.add_tokens(marked_tokens)
        # The marked names got new ids at the end of the vocabulary.
        self._special_id_by_marked_id = {
            self._backend.token_to_id(SPECIAL_TOKEN_MARK + text): index
            for text, index in special_tokens.items()
        }

    def encode_batch(
        self, texts: Sequence[str], num_threads: int | None = None
    ) -> list[MarkedText]:
        """Return the ids and character offsets of each text."""
        encoded = []
        for encoding in encode_with_backend(self._backend, texts, num_threads):
            ids = [self._special_id_by_marked_id.get(index, index) for index in encoding.ids]
            encoded.append(MarkedText(ids, encoding.offsets))
        return encoded


def build_backend(definition: Mapping[str, Any]) -> Any:
    """Return the `tokenizers.Tokenizer` of a `tokenizer.json`; special tokens in text stay text."""
    # Imported here because only imported models need it.
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def encode_with_backend(backend: Any, texts: Sequence[str], num_threads: int | None) -> Any:
    """Return the `tokenizers.Encoding` of each text. Raises UserError for lone surrogates.

    `num_threads` 1 uses one thread. Otherwise `tokenizers`, which has no parameter for it, chooses
    the number of threads.
    """
    # `tokenizers` would raise an error of its own for a lone surrogate.
    for text in texts:
        encode_utf8(text)
    if num_threads == 1 or len(texts) == 1:
        return [backend.encode(text, add_special_tokens=False) for text in texts]
    return backend.encode_batch(texts, add_special_tokens=False)


def without_prefix_space(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a `tokenizer.json` that puts no space before a text."""
    return {
        **definition,
        "normalizer": _component_without_prefix_space(definition["normalizer"]),
        "pre_tokenizer": _component_without_prefix_space(definition["pre_tokenizer"]),
    }


def _component_without_prefix_space(component: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a normalizer or pre-tokenizer, possibly a sequence, that adds no prefix space."""
    # The only purpose of Prepend is to put a space before the text.
    if component is None or component["type"] == "Prepend":
        return None
    if component["type"] == "Sequence":
        key = "normalizers" if "normalizers" in component else "pretokenizers"
        parts = [_component_without_prefix_space(part) for part in component[key]]
        return {**component, key: [part for part in parts if part is not None]}
    return {**component, **_NO_PREFIX_SPACE.get(component["type"], {})}
