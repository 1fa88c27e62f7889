"""Rows of pairs: each answer as if it stood alone behind the prompt."""

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from data.batching.preference_rows import (
    PreferenceBatch,
    PreferenceExample,
    PreferenceExamples,
    PreferenceLengths,
    collate_preferences,
)
from data.kinds.preferences import KIND
from data.records import Preference
from data.stored_records import RecordList
from model.chat_template.template import Template
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from tests.helpers.dense_mask import dense_mask
from tests.helpers.preferences import random_pairs
from tests.helpers.random_llama import random_llama

# The second row has padding; answers of a single id have no position of their own.
ROWS = [random_pairs((7, 5, 9), (3, 1, 4)), random_pairs((6, 8, 1))]


def log_probs_of(model: Llama, batch: PreferenceBatch) -> tuple[Tensor, ...]:
    """Return the log-probabilities of the ids of each answer."""
    log_probs = model(
        batch.ids,
        batch.targets,
        target_positions=batch.loss_indices,
        per_target=True,
        positions=batch.positions,
        mask=batch.segments,
    )
    return log_probs.split(batch.answer_lengths.flatten().tolist())


def log_probs_alone(model: Llama, prompt: np.ndarray, answer: np.ndarray) -> Tensor:
    """Return the log-probabilities of the ids of an answer, from the logits of a conversation."""
    ids = torch.from_numpy(np.concatenate([prompt, answer]))
    log_probs = model(ids[None])[0].log_softmax(-1)
    return log_probs[len(prompt) - 1 : -1].gather(1, ids[len(prompt) :, None]).squeeze(1)


def test_answers_of_packed_pairs_are_those_of_two_conversations() -> None:
    """Prevents an answer that sees the other one, a neighbor or wrong positions; its gradient."""
    model = random_llama(num_key_value_heads=2)
    parameters = list(model.parameters())
    pairs = [pair for row in ROWS for pair in row]
    # Other factors for each answer, so that a mix-up shows in the gradients.
    factors = torch.linspace(-1, 2, 2 * len(pairs)).tolist()
    packed = log_probs_of(model, collate_preferences(ROWS, 30))
    alone = [
        log_probs_alone(model, pair.prompt, answer)
        for pair in pairs
        for answer in (pair.chosen, pair.rejected)
    ]
    assert len(packed) == len(alone)
    for ours, expected in zip(packed, alone, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    gradients = []
    for answers in (packed, alone):
        total = torch.stack([f * a.sum() for f, a in zip(factors, answers, strict=True)]).sum()
        gradients.append(torch.autograd.grad(total, parameters))
    for ours, expected in zip(*gradients, strict=True):
        assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_rejected_answer_does_not_depend_on_the_chosen_one() -> None:
    """Prevents a mask of which only the test above, with its tolerance, would see a hole."""
    model = random_llama()
    (pair,) = random_pairs((4, 6, 5))
    results = []
    for chosen in (pair.chosen, (pair.chosen + 1) % 97):
        changed = PreferenceExample(0, pair.prompt, chosen, pair.rejected)
        results.append(log_probs_of(model, collate_preferences([[changed]], 16)))
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[1][0])


def test_counts_of_a_batch() -> None:
    """Prevents a speed, or an attention cost, with positions that no model computes."""
    batch = collate_preferences(ROWS, 30)
    sizes = [sum(map(len, pair[1:])) - 2 for row in ROWS for pair in row]
    assert batch.num_tokens == sum(sizes) == 60 - batch.num_padding
    assert batch.answer_lengths.tolist() == [[5, 9], [1, 4], [8, 1]]
    assert batch.pairs.tolist() == [0, 1, 0]
    assert batch.segments is not None
    # (query, key) pairs, without those of the padding.
    num_pairs = int(dense_mask(batch.segments).sum()) - batch.num_padding
    assert num_pairs == int(batch.positions.sum()) + batch.num_tokens


def test_pairs_that_do_not_fit_are_left_out(tokenizer: Tokenizer) -> None:
    """Prevents an answer that loses its <eos>, and a row that is too long by one."""
    records = [
        Preference((), "问", "好" * count, "坏" * (2 * count)) for count in (3, 40, 5, 6, 40)
    ]
    encoded = KIND.encode_records(tokenizer, Template(), records)
    whole = KIND.encode(tokenizer, Template(), records)
    positions = [len(ids) - 2 for ids, _ in whole]
    length = positions[3]
    examples = PreferenceExamples(encoded, length, lambda index: whole[index], first_pair=10)
    assert examples.lengths(0).tolist() == [positions[0], 0, positions[2], length, 0]
    pair = examples.example(3, epoch=0)
    assert pair.pair == 13
    assert np.concatenate(pair[1:]).tolist() == whole[3][0]
    batch = collate_preferences([[pair]], length)
    assert batch.num_padding == 0
    for answer in (pair.chosen, pair.rejected):
        assert answer[-1] == tokenizer.eos_id


def test_lengths_from_spans_are_those_of_examples(tokenizer: Tokenizer) -> None:
    """Prevents a survey of lengths that plans other rows than training packs."""
    records = [Preference((), "问", "好" * count, "坏" * 9) for count in (3, 40, 5)]
    encoded = KIND.encode_records(tokenizer, Template(), records)
    (spans, first_spans), *_ = encoded.iter_shard_spans()
    examples = PreferenceExamples(encoded, 30, lambda index: ([], []))
    kept = PreferenceLengths().fit(spans, first_spans, 0, 30)
    assert np.maximum(kept.num_ids - 1, 0).tolist() == examples.lengths(0).tolist()
    assert kept.num_answers.tolist() == [2, 0, 2]
    whole = PreferenceLengths().whole_spans(spans, 0)
    assert (whole[1::2, 1] - 1).tolist() == PreferenceExamples(encoded, 99, print).lengths(
        0
    ).tolist()


def test_fine_tuning_on_pairs_names_the_right_command(tokenizer: Tokenizer) -> None:
    """Prevents make sft from learning the rejected answers too."""
    records = RecordList([Preference((), "问", "好", "坏")], [[(1, 2), (2, 3)]])
    with pytest.raises(UserError, match="make dpo"):
        KIND.examples(records, 32, tokenizer, Template(), 0)
