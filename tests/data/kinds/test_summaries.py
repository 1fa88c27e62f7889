"""Summaries as training examples: a request around an unaltered article, a loss on the title."""

import numpy as np

from data.batching.summary_prompts import ALL_REQUESTS, EVAL_REQUEST, LEAD_INS, sample_requests
from data.kinds.summaries import KIND
from data.records import Summary
from data.stored_records import StoredRecords
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

Summaries = StoredRecords[Summary]


def test_summary_example_is_request_article_and_title(
    summaries: Summaries, tokenizer: Tokenizer
) -> None:
    """Prevents an altered article or title, a truncated request, a title without its end."""
    examples = KIND.examples(summaries, 128, tokenizer, Template(), seed=5)
    lengths = examples.lengths(3)
    assert 0 < examples.num_truncated < len(summaries) and (lengths > 0).all()
    requests = sample_requests(5, 3, np.arange(len(summaries)))
    assert len(set(requests.tolist())) > 20
    for index in range(len(summaries)):
        record = summaries.record(index)
        article, title = record.article, record.title
        ids, loss_mask = examples.example(index, 3)
        assert len(loss_mask) == lengths[index] <= 128
        assert tokenizer.decode(ids[1:][loss_mask].tolist()) == title
        assert ids[-1] == tokenizer.eos_id
        prompt = tokenizer.decode(ids[: np.flatnonzero(loss_mask)[0] + 1].tolist())
        request = ALL_REQUESTS[requests[index]]
        prefix, suffix = f"人类：{request.prefix}", f"{request.suffix}\n\n助手："
        assert prompt.startswith(prefix) and prompt.endswith(suffix)
        article_part = prompt[len(prefix) : len(prompt) - len(suffix)]
        assert article.startswith(article_part)
        # The article is only truncated if the row is full but for the last character.
        assert article_part == article or len(loss_mask) > 120


def test_requests_follow_seed_and_epoch(summaries: Summaries, tokenizer: Tokenizer) -> None:
    """Prevents a resumed run with other requests, and the same requests in every epoch."""
    first = KIND.examples(summaries, 128, tokenizer, Template(), seed=5)
    second = KIND.examples(summaries, 128, tokenizer, Template(), seed=5)
    indices = range(0, 120, 11)
    ids = [first.example(index, 3)[0].tolist() for index in indices]
    assert [second.example(index, 3)[0].tolist() for index in indices] == ids
    assert [second.example(index, 4)[0].tolist() for index in indices] != ids


def test_request_is_canonical_without_seed(summaries: Summaries, tokenizer: Tokenizer) -> None:
    """Prevents dev scores that change because the question did."""
    examples = KIND.examples(summaries, 512, tokenizer, Template(), seed=None)
    for index, epoch in ((0, 0), (7, 5)):
        text = tokenizer.decode(examples.example(index, epoch)[0].tolist())
        assert text.startswith("人类：" + ALL_REQUESTS[EVAL_REQUEST].prefix)


def test_lead_ins_start_the_answer_and_are_in_loss_mask(
    summaries: Summaries, tokenizer: Tokenizer
) -> None:
    """Prevents lead-ins that are asked for and not trained on."""
    examples = KIND.examples(summaries, 256, tokenizer, Template(lead_ins=True), seed=1)
    used = set()
    for index in range(len(summaries)):
        title = summaries.record(index).title
        ids, loss_mask = examples.example(index, 0)
        answer = tokenizer.decode(ids[1:][loss_mask].tolist())
        assert answer.endswith(title) and len(loss_mask) == examples.lengths(0)[index]
        used.add(answer.removesuffix(title))
    assert used == set(LEAD_INS)


def test_lead_in_is_canonical_without_seed(summaries: Summaries, tokenizer: Tokenizer) -> None:
    """Prevents a dev loss on titles without the lead-in that the model is trained to begin with."""
    examples = KIND.examples(summaries, 512, tokenizer, Template(lead_ins=True), seed=None)
    for index, epoch in ((0, 0), (7, 5)):
        ids, loss_mask = examples.example(index, epoch)
        answer = tokenizer.decode(ids[1:][loss_mask].tolist())
        assert answer == LEAD_INS[0] + summaries.record(index).title
