"""Pseudo-summaries are those sentences that ROUGE finds best, taken out of their text."""

import itertools
import random

import pytest

from data.from_text.pseudo_summaries import (
    MAX_SENTENCE_CHARACTERS,
    MAX_TEXT_CHARACTERS,
    MIN_SENTENCE_CHARACTERS,
    SUMMARY_SHARE,
    choose_sentences,
    iter_stretches,
    make_pseudo_summaries,
)
from data.records import SkippedRecord, Summary
from evaluate.metrics.rouge import compute_rouge

CHARACTERS = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜AaBb"


def random_sentences(seed: int, count: int) -> list[str]:
    chance = random.Random(seed)
    return [
        "".join(chance.choices(CHARACTERS, k=chance.randint(5, 40))) + "。" for _ in range(count)
    ]


def choose_by_definition(sentences: list[str], max_characters: int) -> list[int]:
    """Choose as PEGASUS does, with the ROUGE of `evaluate` for every candidate in every round."""
    chosen: list[int] = []
    while True:
        best_score, best = -1.0, None
        for candidate in range(len(sentences)):
            length = len(sentences[candidate])
            total = length + sum(len(sentences[index]) for index in chosen)
            if candidate in chosen or not length >= MIN_SENTENCE_CHARACTERS:
                continue
            if length > MAX_SENTENCE_CHARACTERS or (chosen and total > max_characters):
                continue
            summary = "".join(sentences[index] for index in [*chosen, candidate])
            rest = "".join(
                sentence
                for index, sentence in enumerate(sentences)
                if index not in [*chosen, candidate]
            )
            score = compute_rouge(summary, rest, case="lower")["1"].f
            # That of rouge-chinese has 1e-8 in the denominator.
            if score > best_score + 1e-7:
                best_score, best = score, candidate
        if best is None:
            return sorted(chosen)
        chosen.append(best)


@pytest.mark.parametrize("seed", range(8))
def test_sentences_are_those_of_the_highest_rouge(seed: int) -> None:
    """Prevents incremental counts that differ from the score that models are measured with."""
    sentences = random_sentences(seed, 9)
    max_characters = 60
    expected = choose_by_definition(sentences, max_characters)
    assert choose_sentences(sentences, max_characters) == expected
    assert len(expected) >= 2


def test_summary_and_rest_are_the_whole_text() -> None:
    """Prevents sentences that are lost, or that stand in the article as well."""
    sentences = random_sentences(1, 12)
    sentences[5] += "\n"
    [record] = make_pseudo_summaries("".join(sentences))
    assert isinstance(record, Summary)
    taken = [sentence for sentence in sentences if sentence.strip() in record.title]
    assert "".join(taken).replace("\n", "") == record.title
    assert record.article == "".join(s for s in sentences if s not in taken)
    first_alone = len(taken) == 1
    assert first_alone or len(record.title) <= SUMMARY_SHARE * len("".join(sentences))


def test_long_texts_give_a_summary_for_each_stretch() -> None:
    """Prevents summaries of whole books, of which a row holds one page."""
    sentences = random_sentences(2, 100)
    stretches = list(iter_stretches("".join(sentences)))
    assert list(itertools.chain(*stretches)) == sentences
    lengths = [len("".join(stretch)) for stretch in stretches]
    assert max(lengths) <= MAX_TEXT_CHARACTERS
    assert min(lengths[:-1]) > MAX_TEXT_CHARACTERS / 2
    records = list(make_pseudo_summaries("".join(sentences)))
    assert len(records) == len(stretches)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("天地玄黄宇宙洪荒。" * 4, "text_too_short"),
        ("The quick brown fox jumps over the lazy dog！" * 10, "text_little_chinese"),
        ("天地玄黄。" * 60, "no_sentence_to_take"),
        ("天地玄黄宇宙洪荒日月盈昃辰宿列张：\n" * 10, "no_sentence_to_take"),
        (("天地玄黄宇宙洪荒" * 20 + "。") * 4, "text_too_short"),
    ],
)
def test_texts_without_a_summary_are_skipped(text: str, reason: str) -> None:
    """Prevents summaries of a few words, or of text in another language."""
    records = list(make_pseudo_summaries(text))
    assert records and all(
        isinstance(record, SkippedRecord) and record.reason == reason for record in records
    )
