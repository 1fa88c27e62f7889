"""What a survey says that rows keep: exactly what training keeps."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.batching.packed_rows import PackedPlan
from data.batching.text_rows import Mixture, TextPlan
from data.kinds import conversations, documents, summaries
from data.kinds.base import RecordKind
from data.lengths.batches import encode_batches
from data.lengths.survey import ROW_LENGTHS, AnswerSurvey, Survey, TextSurvey
from data.records import Conversation, Document, Record, Summary, Turn
from data.shards import ShardSet
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

SEED = 0


def draw_conversations(num_records: int) -> list[Conversation]:
    """Return conversations of up to 6,000 tokens, some answers without a loss."""
    rng = np.random.default_rng(1)
    records = []
    for number in range(num_records):
        scale = 8 ** rng.integers(1, 5)
        turns = [
            Turn(f"第{number}个问题", "答" * int(rng.integers(1, scale)), rng.random() < 0.8)
            for _ in range(rng.integers(1, 6))
        ]
        # At least one answer has a loss.
        turns.append(Turn("最后呢", "好" * int(rng.integers(1, scale)), True))
        trailing = [Turn("再见", "再见", False)] if number % 3 == 0 else []
        records.append(Conversation((*turns, *trailing), "资料" * int(rng.integers(0, 30)), "你好"))
    return records


def draw_summaries(num_records: int) -> list[Summary]:
    """Return articles with titles; some articles are longer than a row, and a few titles, too."""
    rng = np.random.default_rng(2)
    return [
        Summary(
            "山里的风从东边来，" * int(rng.integers(0, 8 ** rng.integers(1, 4))) + f"{number}。",
            f"第{number}号风" * (60 if number % 40 == 0 else 1),
        )
        for number in range(num_records)
    ]


def survey_records(
    kind: RecordKind[Any], records: Sequence[Record], tokenizer: Tokenizer, repeats: int = 1
) -> Survey:
    """Return the survey of records, each counted `repeats` times."""
    survey = TextSurvey() if kind.is_text else AnswerSurvey()
    example_lengths = kind.example_lengths(tokenizer, Template(), SEED)
    for batch in encode_batches(records, kind, tokenizer, Template()):
        survey.add(batch, example_lengths, np.full(len(batch.num_ids), repeats))
    return survey


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "records"),
    [
        (conversations.KIND, draw_conversations(80)),
        (summaries.KIND, draw_summaries(200)),
    ],
)
def test_rows_keep_what_training_keeps(
    kind: RecordKind[Any], records: list[Record], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents a count of cut, kept or lost that is not that of training, and another fill."""
    survey = survey_records(kind, records, tokenizer)
    stored = kind.encode_records(tokenizer, Template(), records)
    whole = kind.examples(stored, 10**6, tokenizer, Template(), SEED)
    num_answers = count_ends(whole, len(records), tokenizer)
    has_lost = has_truncated = False
    for length in ROW_LENGTHS:
        figures = survey.row_figures(length, batch_tokens=2048)
        examples = kind.examples(stored, length, tokenizer, Template(), SEED)
        lengths = examples.lengths(0)
        assert figures["left_out"] == (lengths == 0).sum()
        assert figures["cut"] == examples.num_truncated
        assert figures["lost_tokens"] == whole.lengths(0).sum() - lengths.sum()
        kept = [index for index in range(len(records)) if lengths[index]]
        num_lost = num_answers - count_ends(examples, kept, tokenizer)
        assert figures["lost_answers"] == num_lost
        assert figures["lost_answers_share"] == num_lost / num_answers
        plan = PackedPlan([examples], (1.0,), seed=SEED, length=length, folder=tmp_path / "plan")
        num_rows = plan.num_rows(0)
        assert figures["rows"] == num_rows
        assert figures["fill"] == plan.num_tokens(0) / num_rows / length
        assert figures["steps"] == math.ceil(num_rows / max(1, 2048 // length))
        has_lost |= num_lost > 0
        has_truncated |= examples.num_truncated > 0
    assert has_lost and has_truncated


def count_ends(examples: Any, indices: int | list[int], tokenizer: Tokenizer) -> int:
    """Return the number of `<eos>` that have a loss."""
    ends = 0
    for index in range(indices) if isinstance(indices, int) else indices:
        ids, loss_mask = examples.example(index, 0)
        ends += int((ids[1:][loss_mask] == tokenizer.eos_id).sum())
    return ends


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "records"),
    [
        (conversations.KIND, draw_conversations(30)),
        (summaries.KIND, draw_summaries(60)),
    ],
)
def test_lengths_are_those_of_whole_examples(
    kind: RecordKind[Any], records: list[Record], tokenizer: Tokenizer
) -> None:
    """Prevents prompts without the template, answers without `<eos>`, and turns never trained."""
    survey = survey_records(kind, records, tokenizer, repeats=2)
    examples = kind.examples(
        kind.encode_records(tokenizer, Template(), records), 10**6, tokenizer, Template(), SEED
    )
    lengths: dict[str, list[int]] = {"prompt": [], "answer": [], "whole": []}
    for index in range(len(records)):
        ids, loss_mask = examples.example(index, 0)
        lengths["whole"].append(len(ids))
        # Where the mask rises an answer begins, and where it falls one ends.
        edges = np.flatnonzero(np.diff(np.concatenate([[False], loss_mask, [False]]))) + 1
        lengths["prompt"] += edges[::2].tolist()
        lengths["answer"] += (edges[1::2] - edges[::2]).tolist()
    for part, expected in lengths.items():
        values, counts = np.unique(expected, return_counts=True)
        measured_values, measured_counts = survey.tokens[part].histogram()
        assert np.array_equal(measured_values, values)
        assert np.array_equal(measured_counts, 2 * counts)


def test_characters_are_those_of_the_record(tokenizer: Tokenizer) -> None:
    """Prevents characters of the template, of later turns or without the reference."""
    conversation = Conversation(
        (
            Turn("一二三", "四五"),
            Turn("六", "七八九十", False),
            Turn("甲", "乙丙丁"),
            Turn("戊", "己", False),
        ),
        "资料",
        "系",
    )
    assert conversations.KIND.text_lengths(conversation) == ([6, 14], [2, 3], 17, 3)
    assert summaries.KIND.text_lengths(Summary("文章内容", "标题")) == ([4], [2], 6, 1)
    assert documents.KIND.text_lengths(Document("文章")) == ([], [], 2, 0)


def test_rows_of_text_are_those_of_training(shard_set: Path, tmp_path: Path) -> None:
    """Prevents another number of rows, or a document counted as longer that fits."""
    sequences = ShardSet.open(shard_set).load_text("train")
    survey = add_documents(sequences.lengths())
    for length in (100, 256, 4096, 10**6):
        figures = survey.row_figures(length, batch_tokens=2048)
        plan = TextPlan(
            Mixture((sequences,), (1.0,)), seed=0, length=length, folder=tmp_path / f"{length}"
        )
        assert figures["rows"] == plan.num_rows(0)
        assert figures["longer"] == (sequences.lengths() > length + 1).sum()


def add_documents(lengths: np.ndarray) -> TextSurvey:
    """Return the survey of documents of these lengths."""
    survey = TextSurvey()
    values, counts = np.unique(lengths, return_counts=True)
    survey.tokens["whole"].add(values, counts)
    return survey


def test_share_of_cut_documents_is_the_mean_over_all_places() -> None:
    """Prevents a share of cut documents that is wrong where a document just fits a row."""
    row_length = 7
    for document_length in range(2, 12):
        num_cut = 0
        # A row has one id more than positions, which is the first of the next row, too.
        for start in range(row_length):
            ids = set(range(start, start + document_length))
            rows = (set(range(first, first + row_length + 1)) for first in range(0, 30, row_length))
            num_cut += not any(ids <= row for row in rows)
        figures = add_documents(np.array([document_length])).row_figures(row_length, 7)
        assert figures["cut_documents_share"] == pytest.approx(num_cut / row_length)
        assert figures["cut_tokens_share"] == pytest.approx(num_cut / row_length)


def conversation_of(num_tokens: int, tokenizer: Tokenizer) -> Conversation:
    """Return a conversation whose example has about so many tokens."""
    return Conversation((Turn("问", "答" * num_tokens),))


def test_recommendation_is_the_shortest_length_that_meets_the_rule(tokenizer: Tokenizer) -> None:
    """Prevents a length that cuts more than the rule allows, or one that is longer than needed."""
    records = [conversation_of(20, tokenizer)] * 995 + [conversation_of(700, tokenizer)] * 5
    recommendation = survey_records(conversations.KIND, records, tokenizer).recommend()
    assert recommendation.length == 256 and "cuts 0.5% of the answers" in recommendation.reason
    records.append(conversation_of(700, tokenizer))
    recommendation = survey_records(conversations.KIND, records, tokenizer).recommend()
    assert recommendation.length == 1024 and "cuts 0.0% of the answers" in recommendation.reason
    longest = [conversation_of(5000, tokenizer)] * 9 + records[:9]
    recommendation = survey_records(conversations.KIND, longest, tokenizer).recommend()
    assert recommendation.length == 4096 and "cuts 50.0% of the answers" in recommendation.reason


def test_recommendation_for_summaries_keeps_articles(tokenizer: Tokenizer) -> None:
    """Prevents rows that keep all titles, and half of each article."""
    records = [Summary("文" * 800, "标题")] * 20
    assert survey_records(summaries.KIND, records, tokenizer).recommend().length == 1024


def test_recommendation_for_text_has_room_for_most_documents() -> None:
    """Prevents a recommended row that most documents are longer than."""
    assert add_documents(np.array([300] * 9 + [9000])).recommend().length == 512
    assert add_documents(np.array([300] * 8 + [9000] * 2)).recommend().length == 4096
