"""Find the passage of a request in the index, and the turns before that were about it.

The server keeps nothing of a conversation: the passages of the questions before are found again.
"""

import functools
from dataclasses import dataclass

from chat.passage_lookup import FoundPassage, PassageLookup
from chat.serve.errors import ProtocolError
from chat.serve.protocol import RequestConversation
from data.index.passage_index import Hit

# Longer texts are no questions, and take long to look up.
MAX_QUERY_CHARACTERS = 500
# Each may take a search, so only the newest questions of a conversation are looked up.
_MAX_QUESTIONS = 8
_MAX_CACHED_LOOKUPS = 1000


@dataclass(frozen=True)
class Retrieved:
    """What was found for the last question of a conversation."""

    passage: FoundPassage | None  # None: no passage is about the question
    turns: list[tuple[str, str]]  # the (question, answer) pairs before it about the same passage


class Retriever:
    """The index of a server. Threads may share it."""

    def __init__(self, lookup: PassageLookup) -> None:
        self._lookup = lookup
        # A client sends the questions of a conversation again with every further one.
        self._find = functools.lru_cache(_MAX_CACHED_LOOKUPS)(lookup.find)

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self._lookup)

    def retrieve(self, conversation: RequestConversation) -> Retrieved:
        """Return the passage for the question of a conversation, and the turns about it.

        Of the questions before, the newest ones are looked up in turn, because a question without
        content words is about the passage of the one before it. A question that is too long to be
        looked up counts as one without a passage. Raises ProtocolError (400) if the last one is.
        """
        _check_length(conversation.question, "messages")
        turns = conversation.turns[-_MAX_QUESTIONS:]
        found: FoundPassage | None = None
        first_turn = 0
        for index, question in enumerate([*(turn[0] for turn in turns), conversation.question]):
            before = found
            is_long = len(question) > MAX_QUERY_CHARACTERS
            found = None if is_long else self._find(question, before)
            is_about_the_same = found is before is None or (found is not None and found.is_kept)
            if not is_about_the_same:
                first_turn = index
        return Retrieved(found, turns[first_turn:])

    def search(self, words: str, num_hits: int) -> list[Hit]:
        """Return the best passages for some words, none if no passage has any of them.

        Raises ProtocolError (400) if there are too many words.
        """
        _check_length(words, "q")
        return self._lookup.search(words, num_hits)


def _check_length(query: str, parameter: str) -> None:
    """Raise ProtocolError (400) if a query is too long to be looked up."""
    if len(query) > MAX_QUERY_CHARACTERS:
        raise ProtocolError(
            400,
            f"{parameter}: only texts of up to {MAX_QUERY_CHARACTERS} characters are looked up, "
            f"and this one has {len(query)}",
            param=parameter,
            code="query_too_long",
        )
