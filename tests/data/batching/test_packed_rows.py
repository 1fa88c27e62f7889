"""Rows of whole examples: none lost, none torn, always the same order."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from data.batching.collate import PackedBatchLoader, collate
from data.batching.epoch_plan import unpack_item
from data.batching.examples import Example, Examples
from data.batching.packed_rows import PACKING_WINDOW, PackedPlan, pack_best_fit
from data.batching.shuffle import shuffle_in_place
from data.kinds.conversations import KIND
from data.kinds.documents import TextExamples
from data.records import Conversation
from data.sequences import Sequences
from data.stored_records import StoredRecords
from model.chat_template.template import Template
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer


@pytest.fixture
def examples(conversations: StoredRecords[Conversation], tokenizer: Tokenizer) -> Examples:
    """The conversations as examples for rows of 256 positions."""
    return KIND.examples(conversations, 256, tokenizer, Template(), None)


def build_plan(examples: Examples, folder: Path, **options: Any) -> PackedPlan:
    """Return a plan of examples, or of `example_sets`, in rows of 256 positions."""
    example_sets = options.pop("example_sets", [examples])
    weights = options.pop("weights", (1.0,) * len(example_sets))
    return PackedPlan(example_sets, weights, folder=folder, seed=3, length=256, **options)


def test_packing_loses_nothing_and_fills_rows() -> None:
    """Prevents an item packed twice or not at all, a row too long, and rows half empty."""
    lengths = np.random.default_rng(0).integers(1, 200, 3000)
    rows = pack_best_fit(lengths, 256)
    assert sorted(index for row in rows for index in row) == list(range(3000))
    sizes = np.array([lengths[row].sum() for row in rows])
    assert sizes.max() <= 256 and lengths.sum() / (256 * len(rows)) > 0.97


@pytest.mark.slow
def test_an_epoch_holds_every_example_once_in_another_order(
    examples: Examples, tmp_path: Path
) -> None:
    """Prevents examples that are never seen, or seen twice; the same order in every epoch."""
    plan = build_plan(examples, tmp_path / "plan")
    num_fitting = int((examples.lengths(0) > 0).sum())
    epochs = []
    first_row = 0
    for epoch in (0, 1):
        rows = [plan.row(first_row + row) for row in range(plan.num_rows(epoch))]
        epochs.append([ids.tobytes() for row in rows for ids, _ in row])
        first_row += plan.num_rows(epoch)
        assert len(epochs[epoch]) == num_fitting
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    rebuilt = build_plan(examples, tmp_path / "other")
    for row in (0, 5):
        expected = [ids.tobytes() for ids, _ in plan.row(row)]
        assert [ids.tobytes() for ids, _ in rebuilt.row(row)] == expected


class ManyExamples:
    """Examples of random lengths, some of which do not fit. Implements `Examples`, without ids."""

    num_truncated = 0

    def __init__(self, num_examples: int, seed: int) -> None:
        """Draw the lengths."""
        lengths = np.random.default_rng(seed).integers(-20, 250, num_examples)
        self._lengths = np.maximum(lengths, 0)

    def lengths(self, epoch: int) -> np.ndarray:
        """See `Examples`."""
        return self._lengths

    def example(self, index: int, epoch: int) -> Example:
        """See `Examples`."""
        raise NotImplementedError


def test_order_of_a_plan_is_that_of_its_definition(tmp_path: Path) -> None:
    """Prevents another order of data after a resume by a version that builds plans otherwise."""
    sets: list[Examples] = [ManyExamples(9000, 1), ManyExamples(3000, 2)]
    plan = build_plan(sets[0], tmp_path / "plan", example_sets=sets, weights=(1.0, 2.0))
    items = [(0, index) for index in range(9000)] + 2 * [(1, index) for index in range(3000)]
    items = [(number, index) for number, index in items if sets[number].lengths(0)[index]]
    order = np.arange(len(items))
    shuffle_in_place(order, 3, 0, 0)
    rows = []
    for start in range(0, len(order), PACKING_WINDOW):
        window = [items[position] for position in order[start : start + PACKING_WINDOW]]
        lengths = np.array([sets[number].lengths(0)[index] for number, index in window])
        rows += [[window[position] for position in row] for row in pack_best_fit(lengths, 256)]
    row_order = np.arange(len(rows))
    shuffle_in_place(row_order, 3, 0, 1)
    assert plan.num_rows(0) == len(rows) > PACKING_WINDOW
    packed, starts, tokens = (
        np.load(tmp_path / "plan" / "epoch-00000" / f"{name}.npy") for name in plan.array_names
    )
    bounds = zip(starts[:-1], starts[1:], strict=True)
    planned = [[unpack_item(int(item)) for item in packed[start:stop]] for start, stop in bounds]
    assert planned == [rows[row] for row in row_order]
    assert tokens.tolist() == [sum(sets[number].lengths(0)[index] for number, index in items)]


@pytest.mark.slow
def test_planning_takes_little_memory_for_each_example(tmp_path: Path) -> None:
    """Prevents a start with millions of instructions that needs more memory than the training."""
    num_examples = 100_000
    plan = build_plan(ManyExamples(num_examples, 0), tmp_path / "plan")
    tracemalloc.start()
    try:
        plan.num_rows(0)
        _current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / num_examples < 56


@pytest.mark.slow
def test_plan_of_different_mixture_is_not_reused(examples: Examples, tmp_path: Path) -> None:
    """Prevents a stale plan that points at examples which are no longer there."""
    folder = tmp_path / "plan"
    num_rows = build_plan(examples, folder, identity="a").num_rows(0)
    doubled = build_plan(examples, folder, identity="a", weights=(2.0,))
    assert doubled.num_rows(0) > num_rows
    with pytest.raises(UserError, match="no example"):
        build_plan(examples, tmp_path / "none", weights=(1e-9,)).num_rows(0)


@pytest.mark.slow
def test_mixture_shares_follow_weights(examples: Examples, shard_set: Path, tmp_path: Path) -> None:
    """Prevents weights that are ignored, or sets one after another instead of mixed."""
    text = TextExamples(Sequences(shard_set, "train"), 256)
    plan = build_plan(
        examples,
        tmp_path / "plan",
        example_sets=[examples, text],
        weights=(1.0, 0.5),
    )
    rows = [plan.row(row) for row in range(plan.num_rows(0))]
    is_text = [len(row) == 1 and row[0][1].all() for row in rows]
    assert sum(is_text) == round(0.5 * len(text.lengths(0)))
    third = len(rows) // 3
    for start in (0, third, 2 * third):
        assert sum(is_text[start : start + third]) > 0.15 * sum(is_text)


@pytest.mark.slow
def test_conversations_in_a_row_do_not_attend_to_each_other(
    examples: Examples, tmp_path: Path
) -> None:
    """Prevents an answer that is learned from another conversation's question."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = Llama(config).init_weights(0).double()
    plan = build_plan(examples, tmp_path / "plan")
    batch = PackedBatchLoader(plan, 6).micro_batches(0, 6)[0]
    assert batch.segments is not None and len(batch.segments.items) > 6
    packed = model.model(batch.ids, batch.positions, batch.segments, None).flatten(0, 1)[
        batch.loss_indices
    ]
    alone = []
    for row in range(6):
        for ids, loss_mask in plan.row(row):
            hidden = model.model(torch.from_numpy(ids[None, :-1]), None, None, None)[0]
            alone.append(hidden[torch.from_numpy(loss_mask)])
    assert torch.allclose(packed, torch.cat(alone), atol=1e-12)
    unmasked = model.model(batch.ids, batch.positions, None, None).flatten(0, 1)
    assert not torch.allclose(unmasked[batch.loss_indices], torch.cat(alone), atol=1e-3), (
        "the mask changes nothing: the test proves nothing"
    )


@pytest.mark.slow
def test_padding_is_not_counted(examples: Examples, tmp_path: Path) -> None:
    """Prevents a throughput that counts padding as tokens."""
    plan = build_plan(examples, tmp_path / "plan")
    for batch in PackedBatchLoader(plan, 8).micro_batches(0, 4):
        assert batch.segments is not None
        num_tokens = sum(segment.length for segment in batch.segments.items)
        assert batch.num_tokens == num_tokens < batch.ids.numel()
    single = collate([[(np.arange(11), np.ones(10, bool))]], 16)
    assert single.segments is None and single.num_tokens == 10 and len(single.targets) == 10


def test_ranks_split_rows_of_a_step(examples: Examples, tmp_path: Path) -> None:
    """Prevents another order of data for another number of processes."""
    plan = build_plan(examples, tmp_path / "plan")
    whole = PackedBatchLoader(plan, 8).micro_batches(2, 8)[0]
    halves = [
        PackedBatchLoader(plan, 8, rank=rank, world_size=2).micro_batches(2, 4)[0]
        for rank in (0, 1)
    ]
    assert torch.equal(torch.cat([half.ids for half in halves]), whole.ids)


def test_progress_does_not_build_unused_epochs(examples: Examples, tmp_path: Path) -> None:
    """Prevents minutes of planning at the end of a run for an epoch that nobody trains on."""
    plan = build_plan(examples, tmp_path / "plan")
    num_rows = plan.num_rows(0)
    assert plan.epochs_completed(0) == 0.0 and plan.epochs_completed(num_rows) == 1.0
    assert plan.epochs_completed(num_rows // 2) == pytest.approx(num_rows // 2 / num_rows)
    assert [path.name for path in (tmp_path / "plan").iterdir()] == ["epoch-00000"]
    assert 1.0 < plan.epochs_completed(num_rows + 1) < 1.2
