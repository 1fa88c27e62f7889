"""Conversations for tests: real ones, and conversion to the messages of transformers."""

import itertools
from pathlib import Path

from data.readers.files import expand_inputs
from data.records import Conversation
from data.sources import SOURCES

Turns = list[tuple[str, str]]
# The real files of every source of conversations.
SOURCE_FILES = {
    "alpaca": "alpaca/alpaca_zh_demo.json",
    "belle-0.5m": "belle/train_0.5M_CN.json.gz",
    "belle-0.8m": "belle/multiturn_chat_0.8M.json.gz",
    "deepctrl": "deepctrl/sft_data_zh.jsonl.gz",
    "naturalconv": "naturalconv/dialog_release.json.gz",
    "pclue": "pclue/pCLUE_train_9.json",
    "redgpt": "redgpt/RedGPT-Dataset-V1-CN.json.gz",
    "sharegpt": "sharegpt/sharegpt_zh_1K.jsonl",
}


def to_chat_messages(system: str, turns: Turns) -> list[dict[str, str]]:
    """Return a system text, which may be empty, and turns as the messages of transformers."""
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


def read_real_conversations(pattern: Path, source: str, limit: int) -> list[tuple[str, Turns]]:
    """Return (reference, turns) of the first `limit` conversations in the files of one source."""
    records = (
        record
        for path in expand_inputs([str(pattern)])
        for record in SOURCES[source].iter_records(path)
    )
    conversations = (record for record in records if isinstance(record, Conversation))
    return [
        (
            conversation.reference,
            [(turn.question, turn.answer) for turn in conversation.turns],
        )
        for conversation in itertools.islice(conversations, limit)
    ]
