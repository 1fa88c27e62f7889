"""Conversations as training examples: a loss on whole answers, cut after the last one that fits."""

from pathlib import Path

import numpy as np
import pytest

from data.kinds.conversations import KIND
from data.records import Conversation, Turn
from data.stored_records import StoredRecords
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer
from tests.data.conftest import write_records


@pytest.mark.slow
def test_loss_mask_covers_the_answers(
    conversations: StoredRecords[Conversation], tokenizer: Tokenizer
) -> None:
    """Prevents a loss on questions, or an answer without its end."""
    examples = KIND.examples(conversations, 4096, tokenizer, Template(), None)
    assert examples.num_truncated == 0
    for index in range(0, 300, 7):
        ids, loss_mask = examples.example(index, 0)
        record = conversations.record(index)
        turns = [(turn.question, turn.answer) for turn in record.turns]
        assert ids.tolist() == Template().encode(tokenizer, turns, record.reference).ids
        assert len(loss_mask) == len(ids) - 1
        expected = [answer for _, answer in turns]
        targets = ids[1:][loss_mask]
        assert tokenizer.decode(targets.tolist()) == "".join(expected)
        assert (targets == tokenizer.eos_id).sum() == len(expected)


@pytest.mark.slow
def test_long_conversation_is_truncated_after_an_answer(
    conversations: StoredRecords[Conversation], tokenizer: Tokenizer
) -> None:
    """Prevents a row that ends inside the template, or an answer that never stops."""
    whole = KIND.examples(conversations, 4096, tokenizer, Template(), None)
    short = KIND.examples(conversations, 64, tokenizer, Template(), None)
    lengths = short.lengths(0)
    assert 0 < short.num_truncated < 300 and (lengths == 0).any() and lengths.max() <= 64
    assert short.num_truncated == ((lengths > 0) & (lengths < whole.lengths(0))).sum()
    for index in np.flatnonzero(lengths):
        ids, loss_mask = short.example(int(index), 0)
        assert ids[-1] == tokenizer.eos_id and loss_mask[-1] and len(loss_mask) == lengths[index]
        # The next whole answer would not have fit.
        stops = conversations.spans(int(index))[:, 1]
        assert len(ids) in stops and not any(len(ids) < stop <= 65 for stop in stops)
    for index in np.flatnonzero(lengths == 0):
        assert conversations.spans(int(index))[0, 1] > 65


@pytest.mark.parametrize("marks", [(False, True), (True, False), (False, True, False), (True,)])
def test_untrained_answer_is_context_without_loss(
    tmp_path: Path, tokenizer: Tokenizer, marks: tuple[bool, ...]
) -> None:
    """Prevents a loss on an answer that is not to be trained on, and later turns without it."""
    turns = tuple(Turn(f"第{n}问", f"第{n}答", mark) for n, mark in enumerate(marks))
    records = [Conversation(turns), Conversation((Turn("问", "答"),))]
    stored = write_records(tmp_path / "set", KIND, records, tokenizer, 60_000)
    examples = KIND.examples(stored, 4096, tokenizer, Template(), None)
    ids, loss_mask = examples.example(0, 0)
    trained = [turn.answer for turn in turns if turn.has_loss]
    assert tokenizer.decode(ids[1:][loss_mask].tolist()) == "".join(trained)
    # Turns after the last loss are not encoded.
    num_turns = len(marks) - marks[::-1].index(True)
    pairs = [(turn.question, turn.answer) for turn in turns[:num_turns]]
    assert ids.tolist() == Template().encode(tokenizer, pairs).ids
    assert stored.record(0) == records[0]
