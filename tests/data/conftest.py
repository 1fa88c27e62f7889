"""Shard sets of conversations and of summaries that the tests of examples and of rows share."""

from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from data.kinds import conversations as conversation_kind
from data.kinds import summaries as summary_kind
from data.kinds.base import RecordKind
from data.records import Conversation, Record, Summary, Turn
from data.stored_records import RecordWriter, StoredRecords, dump_record
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

R = TypeVar("R", bound=Record)


def write_records(
    folder: Path, kind: RecordKind[R], records: list[R], tokenizer: Tokenizer, shard_bytes: int
) -> StoredRecords[R]:
    """Write records as the split `train` of a shard set, and open it."""
    folder.mkdir()
    writer = RecordWriter(folder, "train", shard_bytes)
    for record, (_, spans) in zip(
        records, kind.encode(tokenizer, Template(), records), strict=True
    ):
        writer.add(dump_record(record), np.array(spans))
    writer.close()
    return StoredRecords(folder, "train", kind.record_type)


@pytest.fixture
def conversations(tmp_path: Path, tokenizer: Tokenizer) -> StoredRecords[Conversation]:
    """300 conversations of one to six turns, in several shards."""
    rng = np.random.default_rng(1)
    records = []
    for number in range(300):
        turns = tuple(
            Turn(f"第{number}个问题", "答" * int(rng.integers(1, 40)))
            for _ in range(rng.integers(1, 7))
        )
        records.append(Conversation(turns, "资料" * int(rng.integers(0, 30))))
    return write_records(
        tmp_path / "conversations", conversation_kind.KIND, records, tokenizer, 60_000
    )


@pytest.fixture
def summaries(tmp_path: Path, tokenizer: Tokenizer) -> StoredRecords[Summary]:
    """120 articles with titles, some much too long for a row."""
    rng = np.random.default_rng(2)
    records = [
        Summary("山里的风从东边来，" * int(rng.integers(1, 40)) + f"{number}。", f"第{number}号风")
        for number in range(120)
    ]
    return write_records(tmp_path / "summaries", summary_kind.KIND, records, tokenizer, 20_000)
