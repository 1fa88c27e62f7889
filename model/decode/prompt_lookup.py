"""Prompt lookup: drafts of the next ids, copied from where the last ids occurred before.

Where an answer copies from its prompt, as an answer about a passage or a title does, the ids that
followed the last ids there are a good guess of the next ones. A model checks all of them in one
pass (Saxena 2023, "Prompt Lookup Decoding"; speculative decoding, Leviathan et al. 2023).
"""

from collections import Counter
from collections.abc import Sequence

# A draft is looked up by the last three ids, or else by fewer. It is longer if the prompt has all
# three. A pass over more positions takes longer, which a wrong draft does not repay.
_NGRAM_SIZE = 3
MAX_DRAFT_TOKENS = 7
_SHORT_DRAFT_TOKENS = 3
# After this many wrong drafts in a row only three ids count: the answer does not copy.
_MAX_WRONG_DRAFTS = 2


class PromptLookup:
    """The ids of a prompt and of its answer so far, with an index of their n-grams."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._prompt_length = len(prompt)
        # The position after the first occurrence of an n-gram: of three ids anywhere, of two in the
        # prompt, and of one that the prompt has only once. Fewer ids in common with the answer
        # itself, or with a frequent id, are mostly followed by something else.
        self._position_after: dict[tuple[int, ...], int] = {}
        self._num_wrong_drafts = 0
        self._drafted_id: int | None = None
        counts = Counter(prompt)
        for position, token_id in enumerate(prompt):
            self.append(token_id)
            if position + 1 < len(prompt):
                if position:
                    self._position_after.setdefault(tuple(self._ids[-2:]), position + 1)
                if counts[token_id] == 1:
                    self._position_after[token_id,] = position + 1

    def append(self, token_id: int) -> None:
        """Append the next id of the answer."""
        if self._drafted_id is not None:
            is_wrong = token_id != self._drafted_id
            self._num_wrong_drafts = self._num_wrong_drafts + 1 if is_wrong else 0
            self._drafted_id = None
        if len(self._ids) >= _NGRAM_SIZE:
            self._position_after.setdefault(tuple(self._ids[-_NGRAM_SIZE:]), len(self._ids))
        self._ids.append(token_id)

    def draft(self, max_tokens: int) -> list[int]:
        """Return a guess of at most `max_tokens` next ids; empty if there is no good one."""
        position = self._position_after.get(tuple(self._ids[-_NGRAM_SIZE:]))
        is_long = position is not None and position < self._prompt_length
        if position is None and self._num_wrong_drafts < _MAX_WRONG_DRAFTS:
            for size in range(_NGRAM_SIZE - 1, 0, -1):
                position = self._position_after.get(tuple(self._ids[-size:]))
                if position is not None:
                    break
        if position is None:
            return []
        length = MAX_DRAFT_TOKENS if is_long else _SHORT_DRAFT_TOKENS
        draft = self._ids[position : position + min(length, max_tokens)]
        if draft:
            self._drafted_id = draft[0]
        return draft
