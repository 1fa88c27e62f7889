"""Records in batches: those of a prepared set are those of its files, in little memory."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data.kinds import conversations
from data.lengths import batches
from data.lengths.batches import Batch, encode_batches, read_set_batches
from data.lengths.survey import AnswerSurvey
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.records import Conversation, Record, Turn
from data.shards import ShardSet
from model.chat_template.template import Template
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer


def prepare(source: str, file: Path, out: Path, tokenizer: Path) -> ShardSet:
    """Return the shard set of one file, all of it for training."""
    prepare_groups(
        [SourceGroup(source, (str(file),))], out, tokenizer, PrepareOptions(validation=0)
    )
    return ShardSet.open(out)


def comparable(read: Iterator[Batch]) -> list[object]:
    """Return the contents of all batches together, whatever their sizes."""
    parts = list(read)
    assert [part.first_record for part in parts] == np.cumsum(
        [0, *(len(part.num_ids) for part in parts[:-1])]
    ).tolist()
    for part in parts:
        num_spans = np.diff(part.first_spans, append=len(part.spans))
        assert not len(part.spans) or (num_spans > 0).all()
    return [
        [length for part in parts for length in part.num_ids.tolist()],
        [span for part in parts for span in part.spans.tolist()],
        [text for part in parts for text in part.texts or []],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("csl", "summary/csl/dev.tsv"),
        ("belle-0.8m", "sft/belle/multiturn_chat_0.8M.test.json"),
        ("wikipedia", "pretrain/wikipedia.jsonl"),
    ],
)
def test_stored_lengths_are_those_of_encoding_again(
    source: str, file: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a prepared set that is surveyed differently with and without its own tokenizer."""
    monkeypatch.setattr(batches, "BATCH_RECORDS", 7)
    path = root / "assets" / "sample" / file
    folder = root / "assets" / "tokenizer"
    shards = prepare(source, path, tmp_path / "set", folder)
    tokenizer = load_tokenizer(folder)
    stored = comparable(read_set_batches(shards, tokenizer, Template(), with_characters=True))
    again = comparable(
        encode_batches(batches._iter_stored_records(shards), shards.kind, tokenizer, Template())
    )
    assert len(stored[0]) > 20
    assert stored == again
    without_text = read_set_batches(shards, tokenizer, Template(), with_characters=False)
    assert comparable(without_text)[:2] == stored[:2]


def test_another_template_is_not_that_of_the_stored_spans(
    root: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Prevents the lengths of the set's template where another one was asked for."""
    file = root / "assets" / "sample" / "sft" / "belle" / "multiturn_chat_0.8M.test.json"
    shards = prepare("belle-0.8m", file, tmp_path / "set", root / "assets" / "tokenizer")
    longer = Template(human="一个很长的称呼：")
    own = list(read_set_batches(shards, tokenizer, Template(), with_characters=False))
    other = list(read_set_batches(shards, tokenizer, longer, with_characters=False))
    assert (other[0].num_ids > own[0].num_ids[: len(other[0].num_ids)]).all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_records(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a survey that holds the lengths, or the records, of a corpus of any size."""
    monkeypatch.setattr(batches, "BATCH_RECORDS", 100)
    kind = conversations.KIND
    example_lengths = kind.example_lengths(tokenizer, Template(), 0)

    def generate(num_records: int) -> Iterator[Record]:
        for number in range(num_records):
            yield Conversation((Turn(f"第{number}个", "答" * (number % 40)),))

    def measure_peak(num_records: int) -> int:
        survey = AnswerSurvey()
        tracemalloc.start()
        for batch in encode_batches(generate(num_records), kind, tokenizer, Template()):
            survey.add(batch, example_lengths, np.ones(len(batch.num_ids), np.int64))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert survey.num_records == num_records
        return peak

    measure_peak(200)  # what is built once
    # 3,800 more lengths would take 30 KB as an array alone.
    assert measure_peak(4000) < measure_peak(200) + 20_000
