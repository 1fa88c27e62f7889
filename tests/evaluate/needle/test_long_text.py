"""The texts of each task: what is in them, how long they are, and how they differ."""

import random

import pytest

from common.errors import UserError
from evaluate.needle.haystack import MAX_CHARACTERS, Hay, draw_haystack
from evaluate.needle.long_text import draw_new, find_part
from evaluate.needle.register import draw_facts, draw_register
from evaluate.needle.topics import draw_topics
from evaluate.needle.wording import WORDINGS
from model.tokenizer.base import Tokenizer


@pytest.mark.parametrize("language", WORDINGS)
def test_words_are_different(language: str) -> None:
    """Prevents two lines for one question, and a topic that is the beginning of another."""
    wording = WORDINGS[language]
    assert len(wording.entries) == len(set(wording.entries)) >= 6000
    topics = sorted(wording.topics)
    assert len(topics) >= 400
    for first, second in zip(topics, topics[1:], strict=False):
        assert not second.startswith(first)


@pytest.mark.parametrize("language", WORDINGS)
def test_registers_fill_their_length(language: str, tokenizer: Tokenizer) -> None:
    """Prevents texts that are shorter or longer than asked, and questions without an answer."""
    wording = WORDINGS[language]

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text))

    text = draw_register(
        random.Random(3), 900, wording=wording, part="test", digits=3, count_tokens=count_tokens
    )
    assert 900 - 60 <= count_tokens(text.plain) <= 900
    header, *lines = text.plain.splitlines()
    assert header == wording.register_header.strip()
    assert len(lines) == len(text.questions)
    for line, question in zip(lines, text.questions, strict=True):
        assert line == wording.complete(question.answer_start, question.value)
        assert text.plain.count(question.answer_start) == 1
    assert list(text.depths) == [place / len(lines) for place in range(len(lines))]
    shorter = draw_register(
        random.Random(3), 300, wording=wording, part="test", digits=3, count_tokens=count_tokens
    )
    assert text.plain.startswith(shorter.plain)


def test_tests_and_training_share_no_fact() -> None:
    """Prevents a model from knowing the answers of a test by heart."""
    wording = WORDINGS["zh"]
    for part in ("test", "training"):
        facts = draw_facts(random.Random(0), wording, part, 3)  # type: ignore[arg-type]
        drawn = [next(facts) for _ in range(300)]
        assert {find_part(f"{entry} {value}") for entry, value in drawn} == {part}
    # A fifth of all facts are of the test.
    shares = [find_part(f"{entry} 482") == "test" for entry in wording.entries]
    assert 0.17 < sum(shares) / len(shares) < 0.23


def test_registers_without_more_numbers_are_refused() -> None:
    """Prevents an endless search for a number that is not taken yet, and words as its reason."""
    facts = draw_facts(random.Random(0), WORDINGS["zh"], "test", 1)
    with pytest.raises(UserError, match=r"^--digits 1: .* give more --digits, or a shorter text"):
        for _ in range(10):
            next(facts)
    with pytest.raises(UserError, match="shorter"):
        draw_new(lambda: None, "give shorter --lengths")


@pytest.mark.parametrize("language", WORDINGS)
def test_conversations_name_each_topic_once(language: str, tokenizer: Tokenizer) -> None:
    """Prevents questions about a topic that another one in the conversation follows, too."""

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text))

    wording = WORDINGS[language]
    text = draw_topics(
        random.Random(5), 2500, wording=wording, part="test", count_tokens=count_tokens
    )
    assert 1800 <= count_tokens(text.plain) <= 2500
    assert len(text.values) >= 8
    for place, question in enumerate(text.questions):
        assert text.plain.count(question.value) == 1
        assert question.place == place
        previous = text.values[place - 1] if place else ""
        assert find_part(f"{previous} {question.value}") == "test"
        assert question.text == (
            wording.next_question.format(previous=previous) if place else wording.first_question
        )
    places = [text.plain.index(value) for value in text.values]
    assert places == sorted(places)
    said = [line for turn in text.turns for line in turn]
    first, second = wording.speakers
    spoken = [
        line.removeprefix(first if number % 2 == 0 else second)
        for number, line in enumerate(text.plain.splitlines())
    ]
    assert spoken == said


def test_needles_are_at_their_places(tokenizer: Tokenizer) -> None:
    """Prevents needles of another depth than is reported, and sentences that are cut or lost."""
    documents = [
        f"第{number}句话，没有编号。" * 3 + "\n还有，" + "长" * 450 for number in range(40)
    ]
    hay = Hay(documents, tokenizer)
    assert "".join(hay.sentences) == "".join(text + "\n" for text in documents)
    assert max(map(len, hay.sentences)) <= 201

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text))

    wording = WORDINGS["zh"]
    text = draw_haystack(
        random.Random(2),
        3000,
        hay=hay,
        wording=wording,
        part="test",
        digits=3,
        num_needles=8,
        num_depths=4,
        count_tokens=count_tokens,
    )
    assert 2300 <= count_tokens(text.plain) <= 3000
    assert [int(4 * depth) for depth in text.depths] == [0, 0, 1, 1, 2, 2, 3, 3]
    without = text.passage
    for question, depth in zip(text.questions, text.depths, strict=True):
        needle = wording.complete(question.answer_start, question.value)
        assert text.passage.count(needle) == 1
        before = text.passage[: text.passage.index(needle)]
        # A needle is at the end of a sentence, of 201 tokens at most.
        assert abs(count_tokens(before) / count_tokens(text.passage) - depth) < 0.1
        without = without.replace(needle, "")
    assert without in "".join(hay.sentences) * 2
    with pytest.raises(UserError, match="give more files"):
        hay.cut(random.Random(0), 10**6)


def test_hay_ends_where_enough_is_read(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents corpora of gigabytes from being read to the end."""
    monkeypatch.setattr("evaluate.needle.haystack.MAX_CHARACTERS", 50)
    assert MAX_CHARACTERS > 50
    texts = iter(["一句话。" * 10, "另一句。" * 10, "没有读到。"])
    assert (
        "".join(Hay(texts, tokenizer).sentences) == "一句话。" * 10 + "\n" + "另一句。" * 2 + "另\n"
    )
    assert next(texts) == "没有读到。"
