"""A shard set of answers holds its records as text, and rows are planned from the spans alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from data.kinds import conversations as conversation_kind
from data.records import Conversation, Turn
from data.stored_records import RecordWriter, StoredRecords, dump_record
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

TURNS = (Turn("一\n二", "答"), Turn('引"号\\', "<s> \0\u2028末", has_loss=False))
RECORDS = [Conversation(TURNS[:count], "资料" * number) for number, count in enumerate((1, 2, 1))]


def write(folder: Path, records: list[Conversation], spans: list[list[int]]) -> None:
    # One byte a shard: each record has a shard of its own.
    writer = RecordWriter(folder, "train", shard_bytes=1)
    for record in records:
        writer.add(dump_record(record), np.array(spans))
    writer.close()


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    """Prevents text altered on disk, and words of a chat template in a shard set."""
    write(tmp_path, RECORDS, [[1, 2]])
    stored = StoredRecords(tmp_path, "train", Conversation)
    assert [stored.record(index) for index in range(len(stored))] == RECORDS
    paths = sorted(tmp_path.glob("*.records.jsonl"))
    lines = [path.read_text(encoding="utf-8").splitlines(keepends=True) for path in paths]
    first = {"turns": [{"question": "一\n二", "answer": "答"}]}
    assert len(lines) == 3 and json.loads("".join(lines[0])) == first


def test_damaged_record_is_one_line(tmp_path: Path) -> None:
    """Prevents a traceback in mid-run for a line that is not a record of the kind."""
    write(tmp_path, RECORDS[:1], [[1, 2]])
    path = tmp_path / "train-00000.records.jsonl"
    path.write_bytes(path.read_bytes().replace(b"turns", b"turnz"))
    with pytest.raises(UserError, match="record 0 cannot be read: Field required: prepare"):
        StoredRecords(tmp_path, "train", Conversation).record(0)


def test_records_without_spans_are_refused(tmp_path: Path) -> None:
    """Prevents rows planned with the spans of other records."""
    write(tmp_path, RECORDS, [[1, 2]])
    np.save(tmp_path / "train-00001.spans.npy", np.zeros((0, 2), np.int32))
    np.save(tmp_path / "train-00001.span_offsets.npy", np.zeros(2, np.int64))
    with pytest.raises(UserError, match="do not have spans each"):
        StoredRecords(tmp_path, "train", Conversation)
    (tmp_path / "train-00001.spans.npy").unlink()
    with pytest.raises(UserError, match="do not have spans each"):
        StoredRecords(tmp_path, "train", Conversation)


def test_other_ids_than_planned_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Prevents examples that overflow their row where a tokenizer now gives other ids."""
    kind = conversation_kind.KIND
    ((ids, spans),) = kind.encode(tokenizer, Template(), RECORDS[:1])
    ((start, stop),) = spans
    assert stop == len(ids)
    for number, span in enumerate(([start, stop + 1], [start + 1, stop])):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, RECORDS[:1], [span])
        stored = StoredRecords(folder, "train", Conversation)
        examples = kind.examples(stored, 100, tokenizer, Template(), None)
        with pytest.raises(UserError, match=f"{number}: record 0 does not have the tokens"):
            examples.example(0, 0)
