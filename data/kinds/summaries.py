"""Summaries: articles and their titles; the request for a title varies by epoch.

The ids of a summary are those of the article and of its title. Request and lead-in are drawn when
an example is assembled; they and the words of the chat template then come around the article.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from data.batching.examples import Example, Examples
from data.batching.summary_prompts import (
    ALL_REQUESTS,
    EVAL_REQUEST,
    LEAD_INS,
    EncodedRequests,
    encode_articles,
    sample_lead_ins,
    sample_requests,
)
from data.kinds.base import ChatExample, RecordKind
from data.records import EncodedRecord, Summary
from data.stored_records import Records
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

# An article is not truncated to fewer ids than this: the rest would say nothing about its title.
MIN_ARTICLE_TOKENS = 32


class SummaryKind(RecordKind[Summary]):
    """Articles with a title or headline."""

    name = "summaries"
    record_type = Summary
    chat_hint = (
        "提示：这个模型微调时只学过给文章拟标题，一般不会聊天"
        "（要聊天，可用 make sft DATA=redgpt 等对话数据微调）。"
        f"用法：先输入“{ALL_REQUESTS[EVAL_REQUEST].prefix.strip()}”，"
        "换行后接上文章（终端里换行：行末输入 \\ 再按回车）"
    )

    def encode(
        self, tokenizer: Tokenizer, template: Template, records: Sequence[Summary]
    ) -> Sequence[EncodedRecord]:
        """Return the ids of each article and title, and the span of the title.

        They have no request yet, and no words of the chat template but those around answers.
        """
        # Encoded separately, so that no piece spans both and an example can truncate the article.
        articles = encode_articles(tokenizer, template, [record.article for record in records])
        title_texts = [template.render_answer(record.title) for record in records]
        titles = tokenizer.encode_continuation(title_texts, num_threads=1)
        return [
            (article + title, [(len(article), len(article) + len(title))])
            for article, title in zip(articles, titles, strict=True)
        ]

    def chat_example(self, record: Summary) -> ChatExample:
        """Return the request of evaluation with the article in it."""
        request = ALL_REQUESTS[EVAL_REQUEST]
        return ChatExample("", (f"{request.prefix}{record.article}{request.suffix}",))

    def examples(
        self,
        split: Records[Summary],
        length: int,
        tokenizer: Tokenizer,
        template: Template,
        seed: int | None,
    ) -> Examples:
        """Return one example per article; requests and lead-ins are drawn with `seed`."""
        encode = partial(self.encode_one, tokenizer, template, split)
        return SummaryExamples(split, length, tokenizer, template, seed, encode)


class SummaryExamples:
    """Requests for the title of an article, with a loss on the answer.

    A long article loses its end so that the example fits a row. Without a seed each example has the
    request that evaluation asks with, and the first lead-in if the template wants lead-ins.
    """

    def __init__(
        self,
        records: Records[Summary],
        length: int,
        tokenizer: Tokenizer,
        template: Template,
        seed: int | None,
        encode: Callable[[int], EncodedRecord],
    ) -> None:
        """Read the lengths of articles and titles, and encode all requests and lead-ins.

        `encode` returns article and title of the record with a certain index, as
        `SummaryKind.encode` does.
        """
        self._encode = encode
        self._length = length
        self._seed = seed
        self._requests = EncodedRequests(tokenizer, template)
        self._eos_id = tokenizer.eos_id
        # Without lead-ins the only choice is an empty one.
        self._lead_ins: list[list[int]] = [[]]
        if template.lead_ins:
            self._lead_ins = tokenizer.encode_continuation(LEAD_INS, num_threads=1)
        self._lead_in_lengths = np.array([len(ids) for ids in self._lead_ins])
        # One span per record, that of the title; the article ends where it begins.
        shard_spans = [np.zeros((0, 2), np.int64)]
        shard_spans += [spans for spans, _ in records.iter_shard_spans()]
        title_spans = np.concatenate(shard_spans)
        self._article_lengths = title_spans[:, 0]
        self._title_lengths = title_spans[:, 1] - title_spans[:, 0]
        self._min_article_lengths = np.minimum(self._article_lengths, MIN_ARTICLE_TOKENS)
        # Counted in epoch 0: in other epochs other requests leave another budget.
        _, _, budgets = self._plan_prompts(np.arange(len(title_spans)), epoch=0)
        is_truncated = (budgets < self._article_lengths) & (budgets >= self._min_article_lengths)
        self.num_truncated = int(is_truncated.sum())

    def _plan_prompts(
        self, indices: np.ndarray, epoch: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the request, the lead-in and the article budget of each record, int64[n] each.

        Requests and lead-ins are indices; the budget is the number of article ids that fit a row.
        """
        if self._seed is None:
            requests = np.full(len(indices), EVAL_REQUEST)
        else:
            requests = sample_requests(self._seed, epoch, indices)
        # The first lead-in, which is the empty one if the template has no lead-ins.
        lead_ins = np.zeros(len(indices), np.int64)
        if self._seed is not None and len(self._lead_ins) > 1:
            lead_ins = sample_lead_ins(self._seed, epoch, indices)
        # The answer ends with <eos>.
        answer_lengths = self._lead_in_lengths[lead_ins] + self._title_lengths[indices] + 1
        # A row of n positions holds n + 1 ids: n inputs, and the targets one further on.
        budgets = self._length + 1 - self._requests.lengths[requests] - answer_lengths
        return requests, lead_ins, budgets

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the positions of each example, int64[n]; 0 if too little of the article fits."""
        _, _, budgets = self._plan_prompts(np.arange(len(self._article_lengths)), epoch)
        kept_lengths = np.minimum(self._article_lengths, budgets)
        # Everything except the article takes `length - budget` positions.
        positions = self._length - budgets + kept_lengths
        return np.where(kept_lengths >= self._min_article_lengths, positions, 0)

    def example(self, index: int, epoch: int) -> Example:
        """Return the ids of request, article, lead-in, title and <eos>, and the loss mask.

        They are int64[n + 1] and bool[n] for n positions. The answer, from the lead-in on, has a
        loss. The article loses its end if it does not fit; request and lead-in are those of the
        epoch.
        """
        plan = self._plan_prompts(np.array([index]), epoch)
        request_index, lead_in_index, article_budget = (int(values[0]) for values in plan)
        # The article followed by the title.
        ids, _spans = self._encode(index)
        article_length = int(self._article_lengths[index])
        article_ids = ids[: min(article_length, article_budget)]
        title_ids = ids[article_length:]
        prompt = self._requests.prompt(request_index, article_ids)
        answer = [*self._lead_ins[lead_in_index], *title_ids, self._eos_id]
        loss_mask = np.zeros(len(prompt) + len(answer), bool)
        loss_mask[len(prompt) :] = True
        # The targets are the ids after the first, so the mask of the first id is dropped.
        return np.array(prompt + answer, dtype=np.int64), loss_mask[1:]


KIND = SummaryKind()
