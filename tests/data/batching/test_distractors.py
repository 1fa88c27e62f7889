"""Questions about one passage among others: which ones, where, and how long the examples are."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data.batching.distractors import (
    PASSAGE_SEPARATOR,
    DistractorDraw,
    DistractorExamples,
    PassageTable,
)
from data.batching.examples import Examples
from data.corpora.resolver import resolve_shard_set
from data.derivations.distractors import DERIVATION
from data.kinds import conversations
from data.records import Conversation, EncodedRecord, Turn
from data.shards import ShardSet
from data.stored_records import RecordList
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

PASSAGES = [f"第{number}个村子在河的东边，有{number * 37}口井。" for number in range(40)]


def make_records() -> list[Conversation]:
    """Return two records about each passage; four passages share a title, and three a question."""
    records = []
    for number, passage in enumerate(PASSAGES):
        title = "东边的村子" if number < 4 else f"题目{number}"
        question = "村里有人吗？" if 4 <= number < 7 else f"第{number}个村子有几口井？"
        for turns in (1, 3):
            answers = tuple(Turn(question, f"有{number * 37}口井。") for _ in range(turns))
            records.append(Conversation(answers, passage, title=title))
    return records


@pytest.fixture(scope="module")
def records(tokenizer: Tokenizer) -> RecordList[Conversation]:
    return conversations.KIND.encode_records(tokenizer, Template(), make_records())


@pytest.fixture(scope="module")
def build(records: RecordList[Conversation], tokenizer: Tokenizer) -> Callable[..., Examples]:
    """Return a function that makes the examples of `records` with some distractors."""

    def build_examples(
        length: int, passages: int, tokens: int | None = None, seed: int | None = 0
    ) -> Examples:
        arguments = {"passages": passages, "tokens": tokens}
        return DERIVATION.examples(records, length, tokenizer, Template(), seed, arguments)

    return build_examples


def read_passages(examples: Examples, tokenizer: Tokenizer, index: int, epoch: int) -> list[str]:
    """Return the passages in the reference of an example."""
    ids, _ = examples.example(index, epoch)
    text = tokenizer.decode(ids.tolist())
    reference = text.removeprefix("资料：").partition("\n\n人类：")[0]
    return reference.split(PASSAGE_SEPARATOR)


def test_right_passage_stands_among_others_that_do_not_answer(
    build: Callable[..., Examples], records: RecordList[Conversation], tokenizer: Tokenizer
) -> None:
    """Prevents a second passage that answers, one that stands there twice, and a missing one."""
    examples = build(2048, 8)
    for index in range(len(records)):
        own = PASSAGES.index(records.record(index).reference)
        found = [
            PASSAGES.index(passage) for passage in read_passages(examples, tokenizer, index, 0)
        ]
        assert len(set(found)) == len(found) == 9 and own in found
        others = set(found) - {own}
        for group in (range(4), range(4, 7)):
            assert own not in group or others.isdisjoint(group)


def test_answers_have_the_loss_and_the_rest_is_the_conversation(
    build: Callable[..., Examples], records: RecordList[Conversation], tokenizer: Tokenizer
) -> None:
    """Prevents a loss on a passage, or ids that inference would not have."""
    examples = build(2048, 3)
    for index in (0, 1, 21):
        ids, loss_mask = examples.example(index, 0)
        record = records.record(index)
        reference = PASSAGE_SEPARATOR.join(read_passages(examples, tokenizer, index, 0))
        turns = [(turn.question, turn.answer) for turn in record.turns]
        expected = Template().encode(tokenizer, turns, reference)
        assert ids.tolist() == expected.ids
        spans = np.zeros(len(ids), bool)
        for start, stop in expected.answer_spans:
            spans[start:stop] = True
        assert (loss_mask == spans[1:]).all()


def test_draw_is_a_function_of_seed_epoch_and_record(build: Callable[..., Examples]) -> None:
    """Prevents a resumed run from reading other rows, and epochs that are all the same."""

    def ids(seed: int | None, epoch: int) -> list[list[int]]:
        examples = build(1024, 5, seed=seed)
        # In another order, and after other epochs: nothing may depend on the calls before.
        examples.lengths(epoch + 1)
        return [examples.example(index, epoch)[0].tolist() for index in range(20)]

    assert ids(3, 1) == ids(3, 1)
    assert ids(3, 1) != ids(3, 2) != ids(4, 2)
    assert ids(None, 0) == ids(None, 7)


def test_place_of_the_right_passage_is_uniform(
    records: RecordList[Conversation], tokenizer: Tokenizer
) -> None:
    """Prevents a model from learning to read the first or the last passage alone."""
    draw = DistractorDraw(PassageTable(records, tokenizer), 4, None, seed=1)
    counts = Counter(
        draw.place(record, epoch, 4) for epoch in range(50) for record in range(len(records))
    )
    assert sorted(counts) == list(range(5))
    expected = len(records) * 50 / 5
    # The 99.9 % quantile of chi-squared with 4 degrees of freedom.
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 18.5


@pytest.mark.parametrize(("length", "tokens"), [(150, None), (2048, 150), (60, None), (45, None)])
def test_passages_share_what_the_answers_leave_of_a_row(
    build: Callable[..., Examples],
    records: RecordList[Conversation],
    tokenizer: Tokenizer,
    length: int,
    tokens: int | None,
) -> None:
    """Prevents an example that does not fit its row, and an answer that a distractor replaces."""
    examples = build(length, 30, tokens)
    plain = conversations.KIND.examples(records, length, tokenizer, Template(), 0)
    lengths, plain_lengths = examples.lengths(0), plain.lengths(0)
    assert ((lengths > 0) == (plain_lengths > 0)).all() and (lengths >= plain_lengths).all()
    assert examples.num_truncated == plain.num_truncated
    limit = min(length, tokens or length)
    assert (lengths <= np.maximum(limit, plain_lengths)).all()
    for index in np.flatnonzero(lengths).tolist():
        ids, loss_mask = examples.example(index, 0)
        assert len(ids) == lengths[index] + 1
        assert loss_mask.sum() == plain.example(index, 0)[1].sum()
    if length > 100:
        # Another passage of 20 tokens would not have fitted.
        assert lengths.max() > limit - 30


@pytest.mark.parametrize(("length", "tokens"), [(2048, None), (150, None), (2048, 150)])
def test_mean_is_that_of_the_examples(
    build: Callable[..., Examples],
    records: RecordList[Conversation],
    tokenizer: Tokenizer,
    length: int,
    tokens: int | None,
) -> None:
    """Prevents a warning of rows that hold all passages, and none of rows that do not."""
    examples = build(length, 8, tokens)
    assert isinstance(examples, DistractorExamples) and examples.num_wanted == 8
    fitting = np.flatnonzero(examples.lengths(0)).tolist()
    found = [len(read_passages(examples, tokenizer, index, 0)) - 1 for index in fitting]
    assert examples.mean_passages() == pytest.approx(np.mean(found))
    assert (examples.mean_passages() < 8) == (length == 150 or tokens == 150)


def test_lengths_of_a_survey_are_those_of_the_examples(
    build: Callable[..., Examples], records: RecordList[Conversation], tokenizer: Tokenizer
) -> None:
    """Prevents a recommended row length for conversations without their distractors."""
    arguments = {"passages": 6, "tokens": None}
    lengths = DERIVATION.example_lengths(records, tokenizer, Template(), 0, arguments)
    (spans, first_spans), *_ = records.iter_shard_spans()
    for length in (60, 200, 4096):
        kept = lengths.fit(spans, first_spans, 0, length)
        assert (np.maximum(kept.num_ids - 1, 0) == build(length, 6).lengths(0)).all()
    # In two parts, as the batches of a survey come.
    middle = first_spans[31]
    whole = np.concatenate(
        [lengths.whole_spans(spans[:middle], 0), lengths.whole_spans(spans[middle:], 31)]
    )
    examples = build(4096, 6)
    for index, start in enumerate(first_spans.tolist()):
        _, loss_mask = examples.example(index, 0)
        assert whole[start, 0] == np.flatnonzero(loss_mask)[0] + 1
    assert (np.diff(whole) == np.diff(spans)).all()


def test_question_asked_of_all_passages_leaves_the_right_one_alone(tokenizer: Tokenizer) -> None:
    """Prevents a passage that answers as well, and an endless search for one that does not."""
    asked = [Conversation((Turn("讲了什么？", "井。"),), passage) for passage in PASSAGES]
    stored = conversations.KIND.encode_records(tokenizer, Template(), asked)
    arguments = {"passages": 3, "tokens": None}
    examples = DERIVATION.examples(stored, 512, tokenizer, Template(), 0, arguments)
    read = partial(read_passages, examples, tokenizer)
    assert [read(index, 0) for index in range(40)] == [[passage] for passage in PASSAGES]


def test_whole_that_needs_more_tokens_than_its_parts_gets_fewer_passages(
    records: RecordList[Conversation], tokenizer: Tokenizer
) -> None:
    """Prevents an example longer than planned, with a tokenizer whose tokens span two passages."""

    def encode(record: Conversation) -> EncodedRecord:
        """Encode a conversation with one token more where two passages meet."""
        template = Template()
        lines = record.reference.split(PASSAGE_SEPARATOR)
        record = replace(record, reference="\n\n".join(lines))
        ((ids, spans),) = conversations.KIND.encode(tokenizer, template, [record])
        return ids, spans

    draw = DistractorDraw(table := PassageTable(records, tokenizer), 6, None, 0)
    examples = DistractorExamples(records, 2048, table, draw, encode)
    lengths = examples.lengths(0)
    for index in range(len(records)):
        ids, loss_mask = examples.example(index, 0)
        text = tokenizer.decode(ids.tolist())
        assert len(ids) <= lengths[index] + 1 and loss_mask[-1]
        assert records.record(index).reference in text
        assert text.count("口井。") - len(records.record(index).turns) == 6


def test_arguments_are_checked() -> None:
    """Prevents a typing mistake that trains on something else."""
    assert DERIVATION.parse_arguments(("8",)) == {"passages": 8, "tokens": None}
    assert DERIVATION.parse_arguments(("8", "2048")) == {"passages": 8, "tokens": 2048}
    for wrong in ((), ("0",), ("-1",), ("8", "")):
        with pytest.raises(ValueError):
            DERIVATION.parse_arguments(wrong)


@pytest.mark.slow
def test_real_questions_have_the_planned_length_and_passages_of_other_articles(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents rows that are planned too long or too short, and a passage of the same article."""
    monkeypatch.chdir(tmp_path)
    file = shared / "data" / "eval" / "DRCD_dev_half.json"
    tokenizer_path = shared / "tokenizer" / "llama-chinese-65k.model"
    shards = ShardSet.open(resolve_shard_set(f"distractors({file},8)", tokenizer_path))
    split = shards.load_records("validation")
    tokenizer = shards.load_tokenizer()
    title_of_passage = {}
    for index in range(len(split)):
        record = split.record(index)
        title_of_passage[record.reference] = record.title
    examples = shards.examples(split, 4096, tokenizer, Template(), seed=0)
    lengths = examples.lengths(0)
    for index in range(0, len(split), 4):
        ids, _ = examples.example(index, 0)
        assert len(ids) == lengths[index] + 1
        passages = read_passages(examples, tokenizer, index, 0)
        assert len(passages) > 5
        titles = Counter(title_of_passage[passage] for passage in passages)
        assert titles[split.record(index).title] == 1
