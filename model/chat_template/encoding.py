"""Encode the text segments of a conversation to ids, and locate its answers.

A conversation is a list of alternating segments: the prompt of an answer, the answer, the next
prompt, … One of the project's own tokenizers encodes every segment separately, so that training and
inference have the same ids where prompt and answer meet.

An imported tokenizer encodes the rendered conversation as transformers does: everything between two
special tokens at once. A token may then hold the end of a prompt and the beginning of an answer,
and a tokenizer that adds a prefix space (Llama 2) adds it to the whole or after special tokens,
never between a question and its answer.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from model.tokenizer.base import Span, Tokenizer
from model.tokenizer.hf_backend import MarkedText
from model.tokenizer.imported import ImportedTokenizer


class EncodedConversation(NamedTuple):
    """The ids of a conversation, and the span of each answer, its eos included.

    A span is (start, end) in `ids`, end excluded.
    """

    ids: list[int]
    answer_spans: list[Span]


def iter_segments(segments: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield each segment of a conversation, and whether it is an answer."""
    # Prompts and answers alternate, beginning with a prompt.
    for index, text in enumerate(segments):
        yield text, index % 2 == 1


def encode_conversations(
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[str]],
    bos_ids: Sequence[int],
    num_threads: int | None = None,
) -> list[EncodedConversation]:
    """Encode conversations, each given as its segments, on `num_threads` cores (default: all).

    `bos_ids` are put before each conversation, and the eos after each answer. A conversation whose
    last segment is a prompt gives the ids that generation starts from.
    """
    if isinstance(tokenizer, ImportedTokenizer):
        return _encode_rendered(tokenizer, conversations, bos_ids, num_threads)
    return _encode_segments(tokenizer, conversations, bos_ids, num_threads)


def _encode_segments(
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[str]],
    bos_ids: Sequence[int],
    num_threads: int | None,
) -> list[EncodedConversation]:
    """Encode every segment by itself; see `encode_conversations`."""
    # All segments in one batch, which the tokenizer encodes in parallel. The loop below takes their
    # ids in the same order.
    texts = [text for segments in conversations for text in segments]
    segment_ids = iter(tokenizer.encode_batch(texts, num_threads))
    encoded = []
    for segments in conversations:
        ids = list(bos_ids)
        spans = []
        for _, is_answer in iter_segments(segments):
            start = len(ids)
            ids += next(segment_ids)
            if is_answer:
                ids.append(tokenizer.eos_id)
                spans.append((start, len(ids)))
        encoded.append(EncodedConversation(ids, spans))
    return encoded


def _encode_rendered(
    tokenizer: ImportedTokenizer,
    conversations: Sequence[Sequence[str]],
    bos_ids: Sequence[int],
    num_threads: int | None,
) -> list[EncodedConversation]:
    """Encode every conversation as one text with marked special tokens; see `encode_conversations`.

    An imported tokenizer gives the characters that each token covers, from which the spans of the
    answers follow.
    """
    rendered = [_render(tokenizer, segments, bos_ids) for segments in conversations]
    marked_texts = tokenizer.encode_marked([text for text, _ in rendered], num_threads)
    encoded = []
    for marked_text, (_, answer_ranges) in zip(marked_texts, rendered, strict=True):
        spans = [_id_span(tokenizer, marked_text, characters) for characters in answer_ranges]
        encoded.append(EncodedConversation(marked_text.ids, spans))
    return encoded


def _render(
    tokenizer: ImportedTokenizer, segments: Sequence[str], bos_ids: Sequence[int]
) -> tuple[str, list[Span]]:
    """Return a conversation as one text, and the span of characters of each answer with its eos.

    SPECIAL_TOKEN_MARK precedes special tokens in the text.
    """
    specials = tokenizer.marked_special_tokens
    text = "".join(specials[index] for index in bos_ids)
    answer_ranges = []
    for segment, is_answer in iter_segments(segments):
        start = len(text)
        text += segment
        if is_answer:
            text += specials[tokenizer.eos_id]
            answer_ranges.append((start, len(text)))
    return text, answer_ranges


def _id_span(tokenizer: ImportedTokenizer, marked_text: MarkedText, characters: Span) -> Span:
    """Return the span of the ids whose tokens overlap a span of characters."""
    ids, offsets = marked_text
    start, stop = characters
    # Tokens are in the order of their characters: the first one that ends after `start`.
    first_index = bisect_right(offsets, start, key=lambda offset: offset[1])
    # A special token that includes the white space after it may overlap the answer, but it is the
    # end of the prompt.
    is_special = ids[first_index] in tokenizer.marked_special_tokens
    if offsets[first_index][0] < start and is_special:
        first_index += 1
    # Until the first token that begins at `stop` or later.
    return first_index, bisect_left(offsets, stop, key=lambda offset: offset[0])
