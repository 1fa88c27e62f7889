"""Pseudo-summaries: the sentences that say most of the rest of a text, to be written from the rest.

Gap-sentence generation of PEGASUS (Zhang et al. 2020, arXiv:1912.08777), on characters as in
T5-PEGASUS (Su 2021): the summary of a text is a part of its own sentences, which are taken out of
it. They are chosen one after the other, each so that the chosen ones together reach the highest
ROUGE-1 F against the sentences that are left ("Seq-Uniq" of the paper: an n-gram counts once). The
score is that of `evaluate.metrics.rouge` on characters.
"""

import re
from collections.abc import Iterator

import numpy as np

from data.from_text.outline import read_outline
from data.from_text.title_pairs import MIN_CHINESE_ARTICLE
from data.prepare.clean import chinese_share, code_points
from data.records import SkippedRecord, Summary

# Characters of a text of which one summary is made, before the summary is taken out.
MAX_TEXT_CHARACTERS = 600
MIN_TEXT_CHARACTERS = 150
# The share of the characters that PEGASUS takes at first (15 %), at least one sentence.
SUMMARY_SHARE = 0.15
# A sentence of a summary. Shorter ones say little, and a longer one is hardly a summary.
MIN_SENTENCE_CHARACTERS = 10
MAX_SENTENCE_CHARACTERS = 100
MIN_SENTENCES = 4

_SENTENCE = re.compile('[^。！？!?…\n]+(?:[。！？!?…]+[”’」』）》)"]*\n?|\n|$)')
_WHOLE_SENTENCE = re.compile('[。！？!?…][”’」』）》)"]*\\s*\\Z')
_SPACE = re.compile(r"\s")


def make_pseudo_summaries(
    text: str, *, has_title_line: bool = False
) -> Iterator[Summary | SkippedRecord]:
    """Yield a `Summary` for each stretch of a text, its title a few of the stretch's sentences.

    A stretch is prose below one heading, of at most `MAX_TEXT_CHARACTERS`. For those that give
    no summary a `SkippedRecord` says why. `text` is cleaned; `has_title_line` is as in
    `read_outline`.
    """
    for section in read_outline(text, has_title_line=has_title_line):
        for sentences in iter_stretches("\n".join(section.lines)):
            yield summarize(sentences)


def iter_stretches(prose: str) -> Iterator[list[str]]:
    """Yield consecutive sentences, white space after them included, of limited length together."""
    stretch: list[str] = []
    num_characters = 0
    for sentence in _SENTENCE.findall(prose):
        if stretch and num_characters + len(sentence) > MAX_TEXT_CHARACTERS:
            yield stretch
            stretch, num_characters = [], 0
        stretch.append(sentence)
        num_characters += len(sentence)
    if stretch:
        yield stretch


def summarize(sentences: list[str]) -> Summary | SkippedRecord:
    """Return the sentences that say most of the others as the summary of the others."""
    text = "".join(sentences)
    if len(text) < MIN_TEXT_CHARACTERS or len(sentences) < MIN_SENTENCES:
        return SkippedRecord("text_too_short")
    if chinese_share(text) < MIN_CHINESE_ARTICLE:
        return SkippedRecord("text_little_chinese")
    chosen = choose_sentences(sentences, int(SUMMARY_SHARE * len(text)))
    if not chosen:
        return SkippedRecord("no_sentence_to_take")
    summary = "".join(sentences[index].strip() for index in chosen)
    article = "".join(
        sentence for index, sentence in enumerate(sentences) if index not in chosen
    ).strip()
    return Summary(article, summary)


def choose_sentences(sentences: list[str], max_characters: int) -> list[int]:
    """Return the indices of the sentences of a summary, ascending.

    They are added greedily by ROUGE-1 F of the chosen sentences against the others, the earlier
    sentence first among equal ones, as long as they have at most `max_characters`; the first may
    have more. Only sentences of a certain length are chosen; there may be none.
    """
    counts = _count_characters(sentences)
    is_present = counts > 0
    lengths = np.array([len(sentence.strip()) for sentence in sentences])
    is_candidate = (lengths >= MIN_SENTENCE_CHARACTERS) & (lengths <= MAX_SENTENCE_CHARACTERS)
    # Not what introduces the next line, and not an item of a list.
    is_candidate &= [_WHOLE_SENTENCE.search(sentence) is not None for sentence in sentences]
    in_summary = np.zeros(counts.shape[1], bool)
    in_rest = counts.sum(0)
    chosen: list[int] = []
    num_characters = 0
    while is_candidate.any():
        candidates = np.flatnonzero(is_candidate)
        # [candidates, characters]: those of the summary with each candidate, and of what is left.
        summaries = is_present[candidates] | in_summary
        rests = in_rest - counts[candidates] > 0
        overlaps = (summaries & rests).sum(1)
        # F = 2PR / (P + R), with P = overlap / summary and R = overlap / rest.
        scores = 2 * overlaps / (summaries.sum(1) + rests.sum(1))
        best = int(candidates[scores.argmax()])
        chosen.append(best)
        num_characters += int(lengths[best])
        in_summary |= is_present[best]
        in_rest -= counts[best]
        is_candidate[best] = False
        is_candidate &= num_characters + lengths <= max_characters
    return sorted(chosen)


def _count_characters(sentences: list[str]) -> np.ndarray:
    """Return how often each sentence has each character of the text, int32[sentences, distinct].

    White space does not count, and capital letters count as small ones.
    """
    texts = [_SPACE.sub("", sentence).lower() for sentence in sentences]
    _, numbers = np.unique(code_points("".join(texts)), return_inverse=True)
    num_distinct = int(numbers.max()) + 1 if len(numbers) else 0
    rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    cells = np.bincount(rows * num_distinct + numbers, minlength=len(texts) * num_distinct)
    return cells.astype(np.int32).reshape(len(texts), num_distinct)
