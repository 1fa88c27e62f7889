"""Examples out of shards and rows out of examples: nothing lost, nothing torn, always the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from data.batching.collate import Batch, PackedBatchLoader, collate
from data.batching.packed_rows import PackedPlan, pack_best_fit
from data.batching.summary_prompts import ALL_REQUESTS, EVAL_REQUEST, LEAD_INS, sample_requests
from data.kinds.conversations import ConversationExamples
from data.kinds.documents import TextExamples
from data.kinds.summaries import SummaryExamples
from data.sequences import Sequences, ShardWriter
from model.chat_template.template import Template
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer


@pytest.fixture
def conversations(tmp_path: Path, tokenizer: Tokenizer) -> Sequences:
    """300 conversations of one to six turns, in two shards."""
    draw = np.random.default_rng(1)
    writer = ShardWriter(tmp_path, "train", tokenizer.vocab_size, shard_tokens=9000, has_spans=True)
    for number in range(300):
        turns = [
            (f"第{number}个问题", "答" * int(draw.integers(1, 40)))
            for _ in range(draw.integers(1, 7))
        ]
        ids, spans = Template().encode(tokenizer, turns, "资料" * int(draw.integers(0, 30)))
        writer.add(np.array(ids), np.array(spans))
    writer.close()
    return Sequences(tmp_path, "train")


@pytest.fixture
def summaries(tmp_path: Path, tokenizer: Tokenizer) -> tuple[Sequences, list[tuple[str, str]]]:
    """120 articles with titles, some far too long for a row."""
    draw = np.random.default_rng(2)
    folder = tmp_path / "summaries"
    folder.mkdir()
    writer = ShardWriter(folder, "train", tokenizer.vocab_size, shard_tokens=3000, has_spans=True)
    texts = [
        ("山里的风从东边来，" * int(draw.integers(1, 40)) + f"{number}。", f"第{number}号风")
        for number in range(120)
    ]
    for article, title in texts:
        parts = tokenizer.encode(article), tokenizer.encode(title)
        writer.add(
            np.array(parts[0] + parts[1]),
            np.array([[len(parts[0]), len(parts[0]) + len(parts[1])]]),
        )
    writer.close()
    return Sequences(folder, "train"), texts


def test_loss_mask_covers_the_answers(conversations: Sequences, tokenizer: Tokenizer) -> None:
    """Loss on questions, or an answer without its end."""
    examples = ConversationExamples(conversations, 4096)
    assert examples.num_truncated == 0
    for index in range(0, 300, 7):
        ids, scored = examples.example(index, 0)
        assert np.array_equal(ids, conversations.tokens(index)) and len(scored) == len(ids) - 1
        expected = [tokenizer.decode(ids[a:b].tolist()) for a, b in conversations.spans(index)]
        answers = tokenizer.decode(ids[1:][scored].tolist())
        assert answers == "".join(expected) and (ids[1:][scored] == tokenizer.eos_id).sum() == len(
            expected
        )


def test_long_conversation_is_truncated_after_an_answer(
    conversations: Sequences, tokenizer: Tokenizer
) -> None:
    """A row that ends inside the template, or an answer that never stops."""
    whole, short = (
        ConversationExamples(conversations, 4096),
        ConversationExamples(conversations, 64),
    )
    lengths = short.lengths(0)
    assert 0 < short.num_truncated < 300 and (lengths == 0).any() and lengths.max() <= 64
    assert short.num_truncated == ((lengths > 0) & (lengths < whole.lengths(0))).sum()
    for index in np.flatnonzero(lengths):
        ids, scored = short.example(int(index), 0)
        assert ids[-1] == tokenizer.eos_id and scored[-1] and len(scored) == lengths[index]
        # The next whole answer would not have fitted.
        stops = conversations.spans(int(index))[:, 1]
        assert len(ids) in stops and not any(len(ids) < stop <= 65 for stop in stops)
    for index in np.flatnonzero(lengths == 0):
        assert conversations.spans(int(index))[0, 1] > 65


def test_summary_example_is_request_article_and_title(
    summaries: tuple[Sequences, list[tuple[str, str]]], tokenizer: Tokenizer
) -> None:
    """An altered article or title, a trimmed request, a title without its end."""
    sequences, texts = summaries
    examples = SummaryExamples(sequences, 128, tokenizer, Template(), 5)
    lengths, seen = examples.lengths(3), set()
    assert 0 < examples.num_truncated < len(texts) and (lengths > 0).all()
    for index, (article, title) in enumerate(texts):
        ids, scored = examples.example(index, 3)
        assert len(scored) == lengths[index] <= 128
        assert tokenizer.decode(ids[1:][scored].tolist()) == title and ids[-1] == tokenizer.eos_id
        asked = tokenizer.decode(ids[: np.flatnonzero(scored)[0] + 1].tolist())
        request = ALL_REQUESTS[int(sample_requests(5, 3, np.array([index]))[0])]
        seen.add(request)
        before, after = f"人类：{request.prefix}", f"{request.suffix}\n\n助手："
        assert asked.startswith(before) and asked.endswith(after)
        kept = asked[len(before) : len(asked) - len(after)]
        assert article.startswith(kept) and (kept == article or len(scored) > 120)
    assert len(seen) > 20
    again = SummaryExamples(sequences, 128, tokenizer, Template(), 5)
    assert all(
        np.array_equal(again.example(i, 3)[0], examples.example(i, 3)[0]) for i in range(0, 120, 11)
    )
    assert any(
        not np.array_equal(again.example(i, 4)[0], examples.example(i, 3)[0])
        for i in range(0, 120, 11)
    )


def test_request_is_canonical_without_seed(
    summaries: tuple[Sequences, list[tuple[str, str]]], tokenizer: Tokenizer
) -> None:
    """Dev scores that change because the question did."""
    sequences, _ = summaries
    examples = SummaryExamples(sequences, 512, tokenizer, Template(), None)
    for index, epoch in ((0, 0), (7, 5)):
        text = tokenizer.decode(examples.example(index, epoch)[0].tolist())
        assert text.startswith("人类：" + ALL_REQUESTS[EVAL_REQUEST].prefix)


def test_lead_ins_start_the_answer_and_are_in_loss_mask(
    summaries: tuple[Sequences, list[tuple[str, str]]], tokenizer: Tokenizer
) -> None:
    """Lead-ins asked for and not taught."""
    sequences, texts = summaries
    examples = SummaryExamples(sequences, 256, tokenizer, Template(lead_ins=True), 1)
    used = set()
    for index, (_, title) in enumerate(texts):
        ids, scored = examples.example(index, 0)
        answer = tokenizer.decode(ids[1:][scored].tolist())
        lead_in = answer.removesuffix(title)
        used.add(lead_in)
        assert lead_in in LEAD_INS and len(scored) == examples.lengths(0)[index]
    assert used == set(LEAD_INS)


def test_packing_loses_nothing_and_fills_rows() -> None:
    """An example packed twice, or not at all, or a row too long."""
    lengths = np.random.default_rng(0).integers(1, 200, 3000)
    rows = pack_best_fit(lengths, 256)
    assert sorted(index for row in rows for index in row) == list(range(3000))
    sizes = np.array([lengths[row].sum() for row in rows])
    assert sizes.max() <= 256 and lengths.sum() / (256 * len(rows)) > 0.97


def _plan(conversations: Sequences, folder: Path, **changes: Any) -> PackedPlan:
    parts = changes.pop("parts", [ConversationExamples(conversations, 128)])
    weights = changes.pop("weights", (1.0,) * len(parts))
    return PackedPlan(parts, weights, folder=folder, **{"seed": 3, "length": 128, **changes})


def test_an_epoch_holds_every_example_once_in_another_order(
    conversations: Sequences, tmp_path: Path
) -> None:
    """Examples never seen, or seen twice; the same order in every epoch."""
    plan = _plan(conversations, tmp_path / "plan")
    fitting = int((ConversationExamples(conversations, 128).lengths(0) > 0).sum())
    epochs = []
    for first in (0, plan.num_rows(0)):
        rows = [plan.row(first + row) for row in range(plan.num_rows(0 if not first else 1))]
        epochs.append([ids.tobytes() for row in rows for ids, _ in row])
        assert len(epochs[-1]) == fitting
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    assert plan.epochs_completed(0) == 0 and plan.epochs_completed(plan.num_rows(0)) == 1
    again = _plan(conversations, tmp_path / "other")
    assert [ids.tobytes() for ids, _ in again.row(5)] == [ids.tobytes() for ids, _ in plan.row(5)]


def test_plan_of_different_mixture_is_not_reused(conversations: Sequences, tmp_path: Path) -> None:
    """A stale plan that points at examples which are no longer there."""
    first = _plan(conversations, tmp_path / "plan", identity="a")
    count = first.num_rows(0)
    assert _plan(conversations, tmp_path / "plan", identity="a", weights=(2.0,)).num_rows(0) > count
    with pytest.raises(UserError, match="no example"):
        _plan(conversations, tmp_path / "none", weights=(1e-9,)).num_rows(0)


def test_mixture_shares_follow_weights(
    conversations: Sequences, shard_set: Path, tmp_path: Path
) -> None:
    """Weights that are not kept, or sets one after another instead of mixed."""
    parts = [
        ConversationExamples(conversations, 128),
        TextExamples(Sequences(shard_set, "train"), 128),
    ]
    plan = _plan(conversations, tmp_path / "plan", parts=parts, weights=(1.0, 0.5))
    rows = [plan.row(row) for row in range(plan.num_rows(0))]
    texts = [len(row) == 1 and row[0][1].all() for row in rows]
    assert sum(texts) == round(0.5 * len(parts[1].lengths(0)))
    third = len(rows) // 3
    assert all(sum(texts[at : at + third]) > 0.15 * sum(texts) for at in (0, third, 2 * third))


def test_conversations_in_a_row_do_not_attend_to_each_other(
    conversations: Sequences, tmp_path: Path
) -> None:
    """An answer learned from somebody else's question."""
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
    plan = _plan(conversations, tmp_path / "plan")
    batch = PackedBatchLoader(plan, 6).micro_batches(0, 6)[0]
    assert batch.segments is not None and int(batch.segments.max()) > 1
    together = model.model(batch.ids, batch.positions, batch.attention_mask(), None).flatten(0, 1)[
        batch.loss_indices
    ]
    alone = []
    for row in range(6):
        for ids, scored in plan.row(row):
            hidden = model.model(torch.from_numpy(ids[None, :-1]), None, None, None)[0]
            alone.append(hidden[torch.from_numpy(scored)])
    assert torch.allclose(together, torch.cat(alone), atol=1e-12)
    blind = model.model(batch.ids, batch.positions, None, None).flatten(0, 1)[batch.loss_indices]
    assert not torch.allclose(blind, torch.cat(alone), atol=1e-3), (
        "the mask changes nothing: the test proves nothing"
    )


def test_batch_counts_tokens_and_examples(conversations: Sequences, tmp_path: Path) -> None:
    """Tokens a second that count padding."""
    plan = _plan(conversations, tmp_path / "plan")
    for batch in PackedBatchLoader(plan, 8).micro_batches(0, 4):
        assert isinstance(batch, Batch) and batch.num_tokens == int((batch.segments > 0).sum())
    single = collate([[(np.arange(11), np.ones(10, bool))]], 16)
    assert single.segments is None and single.num_tokens == 10 and len(single.targets) == 10


def test_ranks_split_rows_of_a_step(conversations: Sequences, tmp_path: Path) -> None:
    """Another order of data on another number of processes."""
    plan = _plan(conversations, tmp_path / "plan")
    whole = PackedBatchLoader(plan, 8).micro_batches(2, 8)[0]
    halves = [
        PackedBatchLoader(plan, 8, rank=rank, world_size=2).micro_batches(2, 4)[0]
        for rank in (0, 1)
    ]
    assert torch.equal(torch.cat([half.ids for half in halves]), whole.ids)


def test_progress_does_not_build_unused_epochs(conversations: Sequences, tmp_path: Path) -> None:
    """Minutes of planning at the end of a run for an epoch nobody trains on; a share of an epoch that is not the share."""
    plan = PackedPlan(
        [ConversationExamples(conversations, 256)],
        (1.0,),
        seed=0,
        length=256,
        folder=tmp_path / "plan",
    )
    rows = plan.num_rows(0)
    assert [plan.epochs_completed(row) for row in (0, rows // 2, rows)] == [
        0.0,
        pytest.approx(rows // 2 / rows),
        1.0,
    ]
    assert [path.name for path in (tmp_path / "plan").iterdir()] == ["epoch-00000"]
    assert 1.0 < plan.epochs_completed(rows + 1) < 1.2


def test_lead_in_is_canonical_without_seed(
    summaries: tuple[Sequences, list[tuple[str, str]]], tokenizer: Tokenizer
) -> None:
    """A dev loss on titles without the lead-in that the model was taught to begin with, or one that changes."""
    sequences, texts = summaries
    examples = SummaryExamples(sequences, 512, tokenizer, Template(lead_ins=True), None)
    for index, epoch in ((0, 0), (7, 5)):
        ids, scored = examples.example(index, epoch)
        assert tokenizer.decode(ids[1:][scored].tolist()) == LEAD_INS[0] + texts[index][1]
