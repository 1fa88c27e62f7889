"""Examples with a loss on answers: cut after the last answer that fits, to the last position."""

import numpy as np

from data.batching.answer_examples import AnswerLengths
from data.kinds.conversations import KIND
from data.records import Conversation, Turn
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


def test_row_is_filled_to_its_last_position(tokenizer: Tokenizer) -> None:
    """Prevents an answer that is left out though it fits, or that loses its `<eos>` in a row."""
    records = KIND.encode_records(
        tokenizer, Template(), [Conversation((Turn("问", "答"), Turn("问", "答")))]
    )
    first_stop, last_stop = records.spans(0)[:, 1].tolist()
    # A row of n positions holds n + 1 ids.
    for length, num_ids, num_answers in (
        (last_stop - 1, last_stop, 2),
        (last_stop - 2, first_stop, 1),
        (first_stop - 1, first_stop, 1),
        (first_stop - 2, 0, 0),
    ):
        kept = AnswerLengths().fit(records.spans(0), np.array([0]), 0, length)
        assert kept.num_ids.tolist() == [num_ids] and kept.num_answers.tolist() == [num_answers]
        examples = KIND.examples(records, length, tokenizer, Template(), None)
        assert examples.lengths(0).tolist() == [max(num_ids - 1, 0)]
        assert examples.num_truncated == (num_answers == 1)
        if num_ids:
            ids, loss_mask = examples.example(0, 0)
            assert ids[-1] == tokenizer.eos_id and loss_mask[-1] and len(loss_mask) <= length
