"""Summarisation as dialogue: the many ways to ask for the title of an article, and to begin the answer.

A request is a text before the article and one after it; either may be empty. Which one a record gets is a pure function
of (seed, epoch, record). Request, article and title are encoded apart, so that the article's ids are the same whatever
is asked of it, and no piece holds two of them; an article that is too long loses its end, the request and the title lose
nothing.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

import numpy as np

from data.records import Summary
from model.chat_template.template import Template
from model.tokenizer.base import Span, Tokenizer

_SLOT_FILLERS = {
    "article": ("文章", "内容", "文字", "材料", "短文", "摘要"),
    "write": ("写", "拟", "取", "起", "想"),
    "title": ("标题", "题目"),
    "sum": ("概括", "总结", "归纳", "提炼"),
}
# What stands before and after the article. The first one, filled with the first words, is the one evaluation asks with.
_REQUEST_TEMPLATES = (
    ("请为下面的{article}{write}一个{title}：\n", ""),
    ("请用一句话{sum}下面的{article}：\n", ""),
    ("阅读下面的{article}，{write}出它的{title}。\n\n", ""),
    ("{article}：\n", "\n\n请为以上{article}{write}一个{title}。"),
    ("", "\n\n请给上面的{article}{write}个{title}。"),
    ("", "\n\n用一句话{sum}这段{article}。"),
    ("下面是一段{article}：\n", "\n\n它的{title}应该是什么？"),
    ("请{sum}：\n", ""),
)
# How an answer may begin where lead-ins are wanted.
LEAD_INS = ("好的，总结如下：", "总结如下：", "好的，标题是：", "标题：", "可以概括为：")


@dataclass(frozen=True)
class SummaryRequest:
    """What is said around an article."""

    prefix: str
    suffix: str


def _expand_template(prefix: str, suffix: str) -> list[SummaryRequest]:
    names = list(
        dict.fromkeys(name for _, name, _, _ in Formatter().parse(prefix + suffix) if name)
    )
    choices = itertools.product(*(_SLOT_FILLERS[name] for name in names))
    return [
        SummaryRequest(prefix.format(**words), suffix.format(**words))
        for words in (dict(zip(names, choice, strict=True)) for choice in choices)
    ]


# Every request of each shape: shapes are drawn evenly, then a filling.
REQUESTS_BY_TEMPLATE: tuple[tuple[SummaryRequest, ...], ...] = tuple(
    tuple(_expand_template(*shape)) for shape in _REQUEST_TEMPLATES
)
ALL_REQUESTS: tuple[SummaryRequest, ...] = tuple(itertools.chain(*REQUESTS_BY_TEMPLATE))
_TEMPLATE_STARTS = np.cumsum([0] + [len(group) for group in REQUESTS_BY_TEMPLATE[:-1]])
_REQUESTS_PER_TEMPLATE = np.array([len(group) for group in REQUESTS_BY_TEMPLATE], dtype=np.uint64)
EVAL_REQUEST = 0


def sample_requests(seed: int, epoch: int, records: np.ndarray) -> np.ndarray:
    """The request, an index into `FLAT`, of each record (int64[n]) in an epoch, int64[n]."""
    bits = splitmix64(seed, epoch, records)
    template_index = (bits % np.uint64(len(REQUESTS_BY_TEMPLATE))).astype(np.int64)
    return _TEMPLATE_STARTS[template_index] + (
        (bits >> np.uint64(16)) % _REQUESTS_PER_TEMPLATE[template_index]
    ).astype(np.int64)


def sample_lead_ins(seed: int, epoch: int, records: np.ndarray) -> np.ndarray:
    """The lead-in, an index into `LEAD_INS`, of each record in an epoch, int64[n]."""
    return ((splitmix64(seed, epoch, records) >> np.uint64(40)) % np.uint64(len(LEAD_INS))).astype(
        np.int64
    )


def splitmix64(seed: int, epoch: int, records: np.ndarray) -> np.ndarray:
    """64 well-mixed bits of each record number, uint64[n] (SplitMix64: Steele, Lea & Flood 2014)."""
    key = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])
    bits = records.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


class EncodedRequests:
    """The ids around an article for every request: `<bos>人类：…` before it and `…助手：` after it."""

    def __init__(self, tokenizer: Tokenizer, template: Template) -> None:
        self.prefixes, self.suffixes = _encode_requests(tokenizer, template, ALL_REQUESTS)
        # Ids of each request, int64[len(FLAT)].
        self.lengths = np.array(
            [len(b) + len(a) for b, a in zip(self.prefixes, self.suffixes, strict=True)]
        )

    def prompt(self, request: int, article: Sequence[int]) -> list[int]:
        """The ids after which the title begins."""
        return [*self.prefixes[request], *article, *self.suffixes[request]]


def summary_prompt(
    tokenizer: Tokenizer, template: Template, article: str, *, max_tokens: int
) -> tuple[list[int], bool]:
    """The canonical request for the title of `article` in at most `max_tokens` ids, and whether the article was trimmed."""
    (prefix_ids,), (suffix_ids,) = _encode_requests(
        tokenizer, template, ALL_REQUESTS[EVAL_REQUEST : EVAL_REQUEST + 1]
    )
    ids = tokenizer.encode_continuation([template.sanitize(article)], num_threads=1)[0]
    num_kept = max(max_tokens - len(prefix_ids) - len(suffix_ids), 0)
    return [*prefix_ids, *ids[:num_kept], *suffix_ids], len(ids) > num_kept


def summary_segments(template: Template, record: Summary) -> list[str]:
    """The article and the title as they stand in a conversation."""
    return [template.sanitize(record.article), template.render_answer(record.title)]


def encode_summaries(
    tokenizer: Tokenizer, records: Sequence[Sequence[str]]
) -> list[tuple[list[int], list[Span]]]:
    """The ids of records, given as their `summary_texts`: those of the article, then those of the title, whose span it is."""
    articles, titles = (
        tokenizer.encode_continuation(texts, num_threads=1) for texts in zip(*records, strict=True)
    )
    return [
        (article + title, [(len(article), len(article) + len(title))])
        for article, title in zip(articles, titles, strict=True)
    ]


def _encode_requests(
    tokenizer: Tokenizer, template: Template, requests: Sequence[SummaryRequest]
) -> tuple[list[list[int]], list[list[int]]]:
    """The ids before an article, and those between it and its title, of each of `requests`."""
    openings = template.encode_batch(
        tokenizer, [[template.user_prefix() + each.prefix] for each in requests], num_threads=1
    )
    closings = tokenizer.encode_continuation(
        [each.suffix + template.assistant_prefix for each in requests], num_threads=1
    )
    return [ids for ids, _ in openings], closings


def strip_lead_in(text: str) -> str:
    """An answer without the lead-in it begins with, exactly as the model was taught it; other texts as they are."""
    for lead_in in sorted(LEAD_INS, key=len, reverse=True):
        if text.startswith(lead_in):
            return text.removeprefix(lead_in)
    return text
