"""Summaries: articles and their titles; the request for a title varies by epoch.

The ids of a summary are those of the article and of its title. Request and lead-in are drawn when
an example is assembled; they and the words of the chat template then come around the article.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from data.batching.examples import Example, ExampleLengths, Examples, KeptParts
from data.batching.summary_prompts import (
    ALL_REQUESTS,
    EVAL_REQUEST,
    LEAD_INS,
    EncodedRequests,
    encode_articles,
    sample_lead_ins,
    sample_requests,
)
from data.kinds.base import ChatExample, RecordKind, TextLengths
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

    def text_lengths(self, record: Summary) -> TextLengths:
        """Return the characters of article and title, and one turn."""
        article, title = len(record.article), len(record.title)
        return TextLengths([article], [title], article + title, num_turns=1)

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

    def example_lengths(
        self, tokenizer: Tokenizer, template: Template, seed: int | None
    ) -> ExampleLengths:
        """Return the lengths of `examples` with the same arguments."""
        return SummaryLengths(tokenizer, template, seed)


class PromptPlan(NamedTuple):
    """What comes around each article, and how much of it fits a row; int64[n] each."""

    requests: np.ndarray  # indices of `ALL_REQUESTS`
    lead_ins: np.ndarray  # indices of the lead-ins
    fixed_lengths: np.ndarray  # ids of everything but the article: request, lead-in, title, <eos>


class SummaryLengths:
    """The lengths of `SummaryExamples`, and the ids around articles. Implements `ExampleLengths`.

    Without a seed each example has the request that evaluation asks with, and the first lead-in if
    the template wants lead-ins.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template, seed: int | None) -> None:
        """Encode all requests and lead-ins."""
        self._seed = seed
        self.requests = EncodedRequests(tokenizer, template)
        # Without lead-ins the only choice is an empty one.
        self.lead_ins: list[list[int]] = [[]]
        if template.lead_ins:
            self.lead_ins = tokenizer.encode_continuation(LEAD_INS, num_threads=1)
        self._lead_in_lengths = np.array([len(ids) for ids in self.lead_ins])

    def plan_prompts(
        self, title_lengths: np.ndarray, indices: np.ndarray, epoch: int
    ) -> PromptPlan:
        """Return what comes around the articles of records, int64[n] each."""
        if self._seed is None:
            requests = np.full(len(indices), EVAL_REQUEST)
        else:
            requests = sample_requests(self._seed, epoch, indices)
        # The first lead-in, which is the empty one if the template has no lead-ins.
        lead_ins = np.zeros(len(indices), np.int64)
        if self._seed is not None and len(self.lead_ins) > 1:
            lead_ins = sample_lead_ins(self._seed, epoch, indices)
        # The answer ends with <eos>.
        answer_lengths = self._lead_in_lengths[lead_ins] + title_lengths + 1
        return PromptPlan(requests, lead_ins, self.requests.lengths[requests] + answer_lengths)

    def count_ids(
        self, article_lengths: np.ndarray, fixed_lengths: np.ndarray, length: int
    ) -> np.ndarray:
        """Return the ids of each example in rows of `length`; 0 if too little of the article fits.

        `fixed_lengths` is that of `PromptPlan`; all are int64[n].
        """
        kept_lengths = np.minimum(article_lengths, find_budgets(fixed_lengths, length))
        is_kept = kept_lengths >= np.minimum(article_lengths, MIN_ARTICLE_TOKENS)
        return np.where(is_kept, fixed_lengths + kept_lengths, 0)

    def whole_spans(self, spans: np.ndarray, first_record: int) -> np.ndarray:
        """See `ExampleLengths`: request and article come before the answer."""
        article_lengths, title_lengths = _split_spans(spans)
        indices = np.arange(first_record, first_record + len(spans))
        requests, _, fixed_lengths = self.plan_prompts(title_lengths, indices, epoch=0)
        starts = self.requests.lengths[requests] + article_lengths
        return np.stack([starts, fixed_lengths + article_lengths], axis=1)

    def fit(
        self, spans: np.ndarray, first_spans: np.ndarray, first_record: int, length: int
    ) -> KeptParts:
        """See `ExampleLengths`: a record has one answer, and its article loses its end."""
        article_lengths, title_lengths = _split_spans(spans)
        indices = np.arange(first_record, first_record + len(spans))
        plan = self.plan_prompts(title_lengths, indices, epoch=0)
        num_ids = self.count_ids(article_lengths, plan.fixed_lengths, length)
        return KeptParts(num_ids, (num_ids > 0).astype(np.int64))


def find_budgets(fixed_lengths: np.ndarray, length: int) -> np.ndarray:
    """Return the ids that rows of `length` have left for each article, int64[n]."""
    # A row of n positions holds n + 1 ids: n inputs, and the targets one further on.
    return length + 1 - fixed_lengths


def _split_spans(spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of articles and titles, int64[n] each, of the spans of n titles."""
    # One span per record, that of the title; the article ends where it begins.
    starts, stops = spans.astype(np.int64).T
    return starts, stops - starts


class SummaryExamples:
    """Requests for the title of an article, with a loss on the answer.

    A long article loses its end so that the example fits a row.
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
        `SummaryKind.encode` does. `seed` is as in `SummaryLengths`.
        """
        self._encode = encode
        self._length = length
        self._eos_id = tokenizer.eos_id
        self._prompts = SummaryLengths(tokenizer, template, seed)
        shard_spans = [np.zeros((0, 2), np.int64)]
        shard_spans += [spans for spans, _ in records.iter_shard_spans()]
        self._article_lengths, self._title_lengths = _split_spans(np.concatenate(shard_spans))
        # Counted in epoch 0: in other epochs other requests leave another budget.
        plan = self._plan_prompts(np.arange(len(self._article_lengths)), epoch=0)
        budgets = find_budgets(plan.fixed_lengths, length)
        is_truncated = (budgets < self._article_lengths) & (self.lengths(epoch=0) > 0)
        self.num_truncated = int(is_truncated.sum())

    def _plan_prompts(self, indices: np.ndarray, epoch: int) -> PromptPlan:
        """Return what comes around the articles of records."""
        return self._prompts.plan_prompts(self._title_lengths[indices], indices, epoch)

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the positions of each example, int64[n]; 0 if too little of the article fits."""
        plan = self._plan_prompts(np.arange(len(self._article_lengths)), epoch)
        num_ids = self._prompts.count_ids(self._article_lengths, plan.fixed_lengths, self._length)
        # The last id of an example is only a target, and makes no position.
        return np.maximum(num_ids - 1, 0)

    def example(self, index: int, epoch: int) -> Example:
        """Return the ids of request, article, lead-in, title and <eos>, and the loss mask.

        They are int64[n + 1] and bool[n] for n positions. The answer, from the lead-in on, has a
        loss. The article loses its end if it does not fit; request and lead-in are those of the
        epoch.
        """
        plan = self._plan_prompts(np.array([index]), epoch)
        budget = int(find_budgets(plan.fixed_lengths, self._length)[0])
        # The article followed by the title.
        ids, _spans = self._encode(index)
        article_length = int(self._article_lengths[index])
        article_ids = ids[: min(article_length, budget)]
        title_ids = ids[article_length:]
        prompt = self._prompts.requests.prompt(int(plan.requests[0]), article_ids)
        answer = [*self._prompts.lead_ins[int(plan.lead_ins[0])], *title_ids, self._eos_id]
        loss_mask = np.zeros(len(prompt) + len(answer), bool)
        loss_mask[len(prompt) :] = True
        # The targets are the ids after the first, so the mask of the first id is dropped.
        return np.array(prompt + answer, dtype=np.int64), loss_mask[1:]


KIND = SummaryKind()
