"""Which passage of an index a question gets."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from chat.errors import ChatError
from chat.passage_lookup import PassageLookup, has_content
from data.index.build import write_index
from data.index.options import WindowOptions
from data.index.passages import Passage, split_windows
from data.index.tokens import character_tokens

LAKE = Passage("西湖", "西湖在杭州，湖上有一座断桥，游人很多。", "a:1")
PALACE = Passage("", "故宫在北京，从前是皇帝的住处，有九千多间房。", "a:2")
WALL = Passage("", "长城从山海关到嘉峪关，是从前的人用砖石砌成的。", "a:3")
FOLLOW_UPS = (
    "那后来呢？ 为什么？ 再说一遍 它呢？ 还有呢？ 然后呢？ 谢谢！ 你好 继续 真的吗？ 详细说说 "
    "什么意思？ 请再说一遍。 举个例子 怎么回事？ 他是谁？ 在哪里？ 什么时候？ 多少？ "
    "后来怎么样了？ 能说得具体一点吗？ 为什么会这样？ 那是什么时候的事？ 还有别的吗？ "
    "你确定吗？ 换句话说呢？ 用一句话总结 那她呢？ 最后结果如何？ 除此之外呢？ 是这样吗？ "
    "好的，谢谢你！ 请解释一下。 原因是什么？ 他为什么这么做？ 之后发生了什么？ 再详细一些 "
    "后来他去了哪里？ 它有多长？ 几个人？ 為什麼？ ？"
)
QUESTIONS = (
    "李白是哪里人？ 他写过什么诗？ 那里的人口有多少？ 如来是谁？ 一月有几天？ 日本在哪里？ "
    "年羹尧呢？ 地中海呢？ 上海在哪里？ 这本书的作者是谁？ GPT是什么？ 1949年呢？ 人是什么？ "
    "月亮有多大？ 天坛呢？"
)


def lookup_in(folder: Path, passages: Iterator[Passage]) -> PassageLookup:
    """Return the look-up in a new index of passages."""
    return PassageLookup(write_index(passages, folder, WindowOptions(), character_tokens))


@pytest.fixture(scope="module")
def lookup(tmp_path_factory: pytest.TempPathFactory) -> PassageLookup:
    """A look-up in three passages."""
    return lookup_in(tmp_path_factory.mktemp("index"), iter([LAKE, PALACE, WALL]))


def test_question_finds_its_passage(lookup: PassageLookup) -> None:
    """Prevents a passage of another question, and one that is called kept without one before."""
    found = lookup.find("故宫有多少间房？")
    assert found is not None and found.hit.text == PALACE.text and not found.is_kept
    found = lookup.find("西湖上有什么桥？", found)
    assert found is not None and found.reference == f"西湖\n{LAKE.text}" and not found.is_kept


def test_question_about_nothing_in_the_index_finds_none(lookup: PassageLookup) -> None:
    """Prevents a passage that shares a few common words with the question from being used."""
    before = lookup.find("故宫有多少间房？")
    for question in ("光合作用在植物的哪个部分进行？", "quantum computing", "诸葛亮的儿子呢？"):
        assert lookup.find(question) is None
        assert lookup.find(question, before) is None, question
    assert lookup.search("quantum computing", 3) == []


def test_question_without_content_keeps_the_passage(lookup: PassageLookup) -> None:
    """Prevents a follow-up from being looked up by words that are in any passage."""
    before = lookup.find("西湖上有什么桥？")
    assert before is not None
    for question in FOLLOW_UPS.split():
        found = lookup.find(question, before)
        assert found is not None and found.hit == before.hit and found.is_kept, question
        assert lookup.find(question) is None, question
    for question in QUESTIONS.split():
        assert has_content(question), question


def test_passage_that_fits_nearly_as_well_is_kept(lookup: PassageLookup) -> None:
    """Prevents a conversation that jumps to another passage for a word that both have."""
    question = "从前"
    best = lookup.find(question)
    assert best is not None
    other = lookup.find("长城是用什么砌成的？" if best.hit.text == PALACE.text else "故宫在哪里？")
    assert other is not None and other.hit.text != best.hit.text
    kept = lookup.find(question, other)
    assert kept is not None and kept.hit.text == other.hit.text and kept.is_kept
    assert kept.hit.score < best.hit.score, "the score is that of another question"
    found = lookup.find("长城从山海关到哪里？", lookup.find("故宫在哪里？"))
    assert found is not None and found.hit.text == WALL.text


def test_pronoun_keeps_the_passage_when_nothing_fits(lookup: PassageLookup) -> None:
    """Prevents "nothing found" for a question whose subject is only in the one before."""
    before = lookup.find("西湖上有什么桥？")
    assert before is not None
    found = lookup.find("它的面积是几平方公里？", before)
    assert found is not None and found.hit.text == LAKE.text and found.is_kept
    assert lookup.find("面积是几平方公里？", before) is None


def test_folder_without_index_is_one_line(tmp_path: Path) -> None:
    """Prevents a traceback, or a line in English alone."""
    with pytest.raises(ChatError, match=r"没有可用的资料库：.*；详情：.*is not an index"):
        PassageLookup.open(tmp_path)


class Paragraph(NamedTuple):
    """A paragraph of DRCD and its questions."""

    context: str
    questions: list[str]


@pytest.fixture
def paragraphs(shared: Path) -> list[Paragraph]:
    """The paragraphs of the dev half of DRCD."""
    path = shared / "data/eval/DRCD_dev_half.json"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return [
        Paragraph(paragraph["context"], [each["question"] for each in paragraph["qas"]])
        for article in json.loads(path.read_bytes())["data"]
        for paragraph in article["paragraphs"]
    ]


def index_paragraphs(folder: Path, paragraphs: list[Paragraph], step: int) -> PassageLookup:
    """Return the look-up in every `step`-th paragraph; `source` is its number."""
    windows = (
        Passage("", window, str(number))
        for number in range(0, len(paragraphs), step)
        for window in split_windows(paragraphs[number].context, WindowOptions())
    )
    return lookup_in(folder, windows)


@pytest.mark.slow
def test_threshold_on_real_questions(tmp_path: Path, paragraphs: list[Paragraph]) -> None:
    """Prevents a threshold that refuses what the index has, or accepts most of what it lacks.

    Half of the paragraphs are left out, so half of the questions have no passage. `-s` prints the
    figures of docs/chat.md.
    """
    lookup = index_paragraphs(tmp_path, paragraphs, 2)
    found = [
        (number % 2 == 0, lookup.find(question) is not None)
        for number, paragraph in enumerate(paragraphs)
        for question in paragraph.questions
    ]
    answerable = [is_found for is_answerable, is_found in found if is_answerable]
    unanswerable = [is_found for is_answerable, is_found in found if not is_answerable]
    kept, refused = sum(answerable), len(unanswerable) - sum(unanswerable)
    print(f"\nkept {kept} of {len(answerable)}, refused {refused} of {len(unanswerable)}")
    assert kept / len(answerable) > 0.97 and refused / len(unanswerable) > 0.6
    assert all(has_content(question) for each in paragraphs for question in each.questions)


@pytest.mark.slow
def test_conversations_stay_with_their_passage_and_leave_it(
    tmp_path: Path, paragraphs: list[Paragraph]
) -> None:
    """Prevents follow-ups that jump away, and a passage that holds on to other questions."""
    lookup = index_paragraphs(tmp_path, paragraphs, 1)
    stayed, left = [], []
    for number in range(0, len(paragraphs) - 1, 3):
        paragraph, following = paragraphs[number : number + 2]
        before = lookup.find(paragraph.questions[0])
        if before is None or before.hit.source != str(number):
            continue
        for questions, expected, results in (
            (paragraph.questions[1:], number, stayed),
            (following.questions, number + 1, left),
        ):
            for question in questions:
                alone, found = lookup.find(question), lookup.find(question, before)
                sources = [each.hit.source if each else "" for each in (alone, found)]
                results.append([source == str(expected) for source in sources])
    for name, results in (("same passage", stayed), ("next passage", left)):
        alone, after = (sum(column) for column in zip(*results, strict=True))
        print(f"\n{name}: {alone} of {len(results)} alone, {after} after the question before")
    assert sum(after - alone for alone, after in stayed) > 0.01 * len(stayed)
    assert sum(after - alone for alone, after in left) > -0.03 * len(left)
