"""Requests for titles after some turns of a chat: `after_chat(csl,naturalconv.json)`.

A model that is fine-tuned on summaries and on conversations, but on no conversation in which a
title is asked for, answers such a request with what people say in chats (docs/results.md).
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from common.files import sha256_file
from data.batching.summary_prompts import ALL_REQUESTS
from data.corpora.detect import detect_source
from data.derivations.base import Arguments
from data.from_text.without_test_passages import WithoutTestPassages
from data.kinds import conversations, find_kind, summaries
from data.prepare.dedup import text_digest
from data.records import Conversation, Record, SkippedRecord, Summary, Turn
from data.sources import find_source
from data.usable_records import UsableRecords

# Turns before the request, and the characters that they may have together: there has to be room
# for the article in a row.
MAX_TURNS = 4
MAX_CHAT_CHARACTERS = 200
# Reading stops at this many beginnings, because every worker process holds all of them.
_MAX_BEGINNINGS = 50_000


class AfterChat(WithoutTestPassages[Summary]):
    """The records of a set of summaries as conversations whose last answer is the title."""

    name = "after_chat"
    usage = "after_chat(NAME,CHAT_FILE[,TEST_FILE…])"
    description = "requests for titles, each after one to four turns of a chat of CHAT_FILE"
    source_kind = summaries.KIND
    kind = conversations.KIND
    # Dev files are the validation split of the source itself, which stays.
    held_out_splits = ("test",)

    def parse_arguments(self, arguments: tuple[str, ...]) -> Arguments:
        """Return the paths of the chats and of the test files. Raises ValueError if one is wrong.

        The checksum of the chats makes other chats another set.
        """
        chat_file, *test_files = arguments or ("",)
        if not Path(chat_file).is_file():
            raise ValueError(f"{chat_file or 'CHAT_FILE'} is no file of conversations")
        source = detect_source([Path(chat_file)])
        if find_kind(find_source(source).kind) is not conversations.KIND:
            raise ValueError(f"{chat_file} has {find_source(source).kind}, not conversations")
        return {
            **super().parse_arguments(tuple(test_files)),
            "chat_file": chat_file,
            "chat_sha256": sha256_file(Path(chat_file)),
        }

    def derive(
        self, record: Summary, arguments: Arguments, *, has_title_line: bool
    ) -> Iterable[Record | SkippedRecord]:
        """Return one conversation; the digest of the record decides its chat and its request."""
        chats = _read_beginnings(arguments["chat_file"], arguments["chat_sha256"])
        if not chats:
            return [SkippedRecord("no_short_chat")]
        chat_digest, request_digest = map(int, text_digest(record.plain_text()))
        request = ALL_REQUESTS[request_digest % len(ALL_REQUESTS)]
        question = f"{request.prefix}{record.article}{request.suffix}"
        turns = (*chats[chat_digest % len(chats)], Turn(question, record.title))
        return [Conversation(turns)]


@functools.lru_cache(maxsize=1)
def _read_beginnings(chat_file: str, _sha256: str) -> list[tuple[Turn, ...]]:
    """Return the first turns of the conversations of a file, one to four, as context only.

    A conversation yields a beginning for each number of turns that is short enough. Conversations
    about a passage, or with a system text, are left out. `_sha256` is part of the cache key, so
    that a file is read again after a change. Raises UserError if many records cannot be read.
    """
    path = Path(chat_file)
    records = UsableRecords(find_source(detect_source([path])).iter_records(path))
    beginnings: list[tuple[Turn, ...]] = []
    for record in records:
        # `parse_arguments` has checked the kind of the source.
        chat = cast(Conversation, record)
        if chat.reference or chat.system:
            continue
        turns: tuple[Turn, ...] = ()
        num_characters = 0
        for turn in chat.turns[:MAX_TURNS]:
            num_characters += len(turn.question) + len(turn.answer)
            if num_characters > MAX_CHAT_CHARACTERS:
                break
            turns += (Turn(turn.question, turn.answer, has_loss=False),)
            beginnings.append(turns)
        if len(beginnings) >= _MAX_BEGINNINGS:
            break
    records.check_bad_share(f"name another CHAT_FILE than {chat_file}")
    return beginnings


DERIVATION = AfterChat()
