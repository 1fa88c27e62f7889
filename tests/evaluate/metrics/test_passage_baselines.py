"""Trivial answers to questions about a passage."""

import pytest

from evaluate.metrics.passage_baselines import longest_number_or_name, most_similar_sentence

PASSAGE = "李时珍是明朝的医生。他花了27年写成《本草纲目》。书里有1,892种药。"


def test_sentence_with_most_bigrams_of_the_question_is_chosen() -> None:
    """Prevents a choice by length, or by single characters."""
    assert (
        most_similar_sentence(PASSAGE, "他花了多少年写成这本书？") == "他花了27年写成《本草纲目》。"
    )
    assert most_similar_sentence(PASSAGE, "医生") == "李时珍是明朝的医生。"
    # Without a bigram of the question, the first.
    assert most_similar_sentence(PASSAGE, "啊") == "李时珍是明朝的医生。"
    assert most_similar_sentence("…", "问") == "…"


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("他花了27年写成《本草纲目》。", "谁", "本草纲目"),
        ("他花了27年写成《本草纲目》。", "《本草纲目》写了多久", "27年"),
        ("书里有1,892种药。", "多少", "1,892"),
        ("1786年2月2日，亚洲协会举行。", "何时", "1786年2月2日"),
        ("后来威廉“大熊”琼斯发现。", "谁", "大熊"),
        ("乐队叫Green Day。", "叫什么", "Green Day"),
        ("没有数字也没有名字。", "问", "没有数字也没有名字。"),
        ("有7种和8种。", "问", "7"),
    ],
)
def test_longest_number_or_name(sentence: str, question: str, answer: str) -> None:
    """Prevents the answer of the question itself, a number without its unit, a shorter one."""
    assert longest_number_or_name(sentence, question) == answer
