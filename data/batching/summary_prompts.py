"""Requests for the title of an article: many wordings, and the ways an answer may begin.

A request is a text before the article and one after it; either may be empty. Which request a record
gets is a pure function of (seed, epoch, record). Request, article and title are encoded separately,
so that the ids of an article are the same in every request and no piece spans two of the three.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import Formatter

import numpy as np

from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

_SLOT_FILLERS = {
    "article": ("文章", "内容", "文字", "材料", "短文", "摘要"),
    "write": ("写", "拟", "取", "起", "想"),
    "title": ("标题", "题目"),
    "sum": ("概括", "总结", "归纳", "提炼"),
}
# Texts before and after the article. Evaluation asks with the first, its slots filled with the
# first fillers.
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
# How an answer may begin in a run with lead-ins.
LEAD_INS = ("好的，总结如下：", "总结如下：", "好的，标题是：", "标题：", "可以概括为：")


@dataclass(frozen=True)
class SummaryRequest:
    """The texts before and after an article."""

    prefix: str
    suffix: str


def _fill_slots(prefix: str, suffix: str) -> Iterator[SummaryRequest]:
    """Yield a request for each combination of fillers for the slots of a template."""
    # Formatter.parse yields (text, slot name, format, conversion).
    slots = [name for _, name, _, _ in Formatter().parse(prefix + suffix) if name]
    # Without repetitions: a slot that occurs twice has the same filler both times.
    unique_slots = list(dict.fromkeys(slots))
    for fillers in itertools.product(*(_SLOT_FILLERS[slot] for slot in unique_slots)):
        filling = dict(zip(unique_slots, fillers, strict=True))
        yield SummaryRequest(prefix.format(**filling), suffix.format(**filling))


# The requests of each template. A draw takes a template first, so that templates with few slots are
# not rare.
REQUESTS_BY_TEMPLATE: tuple[tuple[SummaryRequest, ...], ...] = tuple(
    tuple(_fill_slots(*template)) for template in _REQUEST_TEMPLATES
)
ALL_REQUESTS: tuple[SummaryRequest, ...] = tuple(itertools.chain(*REQUESTS_BY_TEMPLATE))
EVAL_REQUEST = 0
# The first request of each template in `ALL_REQUESTS`.
_TEMPLATE_STARTS = np.cumsum([0] + [len(group) for group in REQUESTS_BY_TEMPLATE[:-1]])
_REQUESTS_PER_TEMPLATE = np.array([len(group) for group in REQUESTS_BY_TEMPLATE], dtype=np.uint64)


def sample_requests(seed: int, epoch: int, records: np.ndarray) -> np.ndarray:
    """Draw a request per record: record numbers int64[n] → indices of `ALL_REQUESTS`, int64[n]."""
    # The lower bits choose a template, the bits from 16 on one of its requests.
    bits = splitmix64(seed, epoch, records)
    templates = (bits % np.uint64(len(REQUESTS_BY_TEMPLATE))).astype(np.int64)
    fillings = (bits >> np.uint64(16)) % _REQUESTS_PER_TEMPLATE[templates]
    return _TEMPLATE_STARTS[templates] + fillings.astype(np.int64)


def sample_lead_ins(seed: int, epoch: int, records: np.ndarray) -> np.ndarray:
    """Draw a lead-in per record: record numbers int64[n] → indices of `LEAD_INS`, int64[n]."""
    # The bits from 40 on: others than those of the request, so that the two are independent.
    bits = splitmix64(seed, epoch, records) >> np.uint64(40)
    return (bits % np.uint64(len(LEAD_INS))).astype(np.int64)


def splitmix64(seed: int, epoch: int, records: np.ndarray) -> np.ndarray:
    """Hash each record number to 64 bits, uint64[n] (SplitMix64: Steele, Lea & Flood 2014).

    Record i gets output i of the generator whose start depends on seed and epoch.
    """
    key = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])
    # Constants and shifts are those of the paper. Products are modulo 2^64.
    bits = records.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


class EncodedRequests:
    """The ids around an article for each request: `<bos>人类：…` before, `…助手：` after it."""

    def __init__(self, tokenizer: Tokenizer, template: Template) -> None:
        """Encode each request of `ALL_REQUESTS`: the ids before the article, and those after it."""
        self.prefixes, self.suffixes = _encode_requests(tokenizer, template, ALL_REQUESTS)
        pairs = zip(self.prefixes, self.suffixes, strict=True)
        # Number of ids of each request, int64[len(ALL_REQUESTS)].
        self.lengths = np.array([len(prefix) + len(suffix) for prefix, suffix in pairs])

    def prompt(self, request: int, article: Sequence[int]) -> list[int]:
        """Return the ids of the prompt: the article with request number `request` around it."""
        return [*self.prefixes[request], *article, *self.suffixes[request]]


def summary_prompt(
    tokenizer: Tokenizer,
    template: Template,
    article: str,
    *,
    max_tokens: int,
    request: SummaryRequest = ALL_REQUESTS[EVAL_REQUEST],
    turns: Sequence[tuple[str, str]] = (),
) -> tuple[list[int], bool]:
    """Return the ids of a request for a title, and whether the article is truncated.

    The request is by default that of evaluation; (question, answer) `turns` may precede it. The
    article loses its end if there would be more than `max_tokens` ids. Request and turns are never
    truncated, so that a very small `max_tokens` is exceeded.
    """
    (prefix_ids,), (suffix_ids,) = _encode_requests(tokenizer, template, [request], turns)
    (article_ids,) = encode_articles(tokenizer, template, [article])
    budget = max(max_tokens - len(prefix_ids) - len(suffix_ids), 0)
    is_truncated = len(article_ids) > budget
    return [*prefix_ids, *article_ids[:budget], *suffix_ids], is_truncated


def encode_articles(
    tokenizer: Tokenizer, template: Template, articles: Sequence[str]
) -> list[list[int]]:
    """Return the ids of each article, as they stand between the ids of a request."""
    texts = [template.sanitize(article) for article in articles]
    # One thread: preparation already has one process per core.
    return tokenizer.encode_continuation(texts, num_threads=1)


def _encode_requests(
    tokenizer: Tokenizer,
    template: Template,
    requests: Sequence[SummaryRequest],
    turns: Sequence[tuple[str, str]] = (),
) -> tuple[list[list[int]], list[list[int]]]:
    """Return two lists: the ids before the article, and the ids between article and title.

    Both have an entry for each request, with the words of the chat template around it. The ids
    before the article include those of the (question, answer) `turns` before the request.
    """
    earlier_segments = template.segments(turns)
    user_prefix = template.user_prefix(is_first=not turns)
    # Encoded as the beginnings of conversations, which have `<bos>` in front.
    prefixes = [[*earlier_segments, user_prefix + request.prefix] for request in requests]
    suffixes = [request.suffix + template.assistant_prefix for request in requests]
    encoded_prefixes = template.encode_batch(tokenizer, prefixes, num_threads=1)
    prefix_ids = [ids for ids, _spans in encoded_prefixes]
    suffix_ids = tokenizer.encode_continuation(suffixes, num_threads=1)
    return prefix_ids, suffix_ids


def strip_lead_in(text: str) -> str:
    """Return an answer without the lead-in that it may begin with, one of `LEAD_INS`."""
    # The longest first: a lead-in may begin with another one.
    for lead_in in sorted(LEAD_INS, key=len, reverse=True):
        if text.startswith(lead_in):
            return text.removeprefix(lead_in)
    return text
