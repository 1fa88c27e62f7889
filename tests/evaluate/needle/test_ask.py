"""Replies by likelihood and by generation."""

from functools import partial

import pytest
import torch

from evaluate.load_model import LoadedCheckpoint
from evaluate.needle.ask import ask_by_generation, ask_by_likelihood, find_value
from evaluate.needle.cases import Case, build_case
from evaluate.needle.frames import ChatFrame, Frame, PlainFrame
from evaluate.needle.long_text import Question
from evaluate.needle.register import draw_register
from evaluate.needle.wording import WORDINGS
from model.decode.prefix_cache import PrefixCache
from tests.helpers.random_llama import greedy_without_cache


def _case(loaded: LoadedCheckpoint, frame: Frame) -> Case:
    def count_tokens(text: str) -> int:
        return len(loaded.tokenizer.encode(text))

    draw = partial(
        draw_register, wording=WORDINGS["zh"], part="test", digits=2, count_tokens=count_tokens
    )
    return build_case(draw, frame, length=200, num_depths=2, seed="a")


@pytest.mark.slow
@torch.inference_mode()
def test_the_most_likely_value_is_the_reply(loaded: LoadedCheckpoint) -> None:
    """Prevents scores of other candidates, and of an answer without its beginning."""
    frame = ChatFrame(loaded, WORDINGS["zh"])
    case = _case(loaded, frame)
    replies = ask_by_likelihood(loaded, frame, case)
    for reply, question, prompt in zip(replies, case.questions, case.prompts, strict=True):
        scores = []
        for value in case.text.values:
            answer = loaded.tokenizer.encode(question.answer_start + value)
            logits = loaded.model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
            chosen = logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
            scores.append(float(chosen.double().sum()))
        assert reply["choice"] == case.text.values[scores.index(max(scores))]
        true_score = scores[question.place]
        less_likely = sum(score < true_score for score in scores) / (len(scores) - 1)
        assert reply["less_likely"] == pytest.approx(less_likely)
        assert reply["right"] == (reply["choice"] == question.value)
        assert reply["values"] == len(case.text.values)


@pytest.mark.slow
@pytest.mark.parametrize("frame_class", [PlainFrame, ChatFrame])
def test_answers_are_greedy(frame_class: type[Frame], loaded: LoadedCheckpoint) -> None:
    """Prevents answers to the question before, whose keys and values are in the cache."""
    frame = frame_class(loaded, WORDINGS["zh"])
    case = _case(loaded, frame)
    cache = PrefixCache(loaded.model, 220)
    replies = ask_by_generation(loaded, frame, case, cache, max_new_tokens=6)
    for reply, prompt in zip(replies, case.prompts, strict=True):
        ids = greedy_without_cache(loaded.model, prompt, 6)
        expected = loaded.tokenizer.decode(ids)
        if frame_class is PlainFrame:
            assert expected.startswith(reply["prediction"])
            assert reply["prediction"] == expected or "\n" in reply["prediction"]
        else:
            assert reply["prediction"] == expected


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("482。", "482"),
        ("编号是４８２。", "482"),
        ("先是482，后是55", "482"),
        ("55和482", "55"),
        ("4820", None),
        ("1482", None),
        ("不知道", None),
        ("", None),
    ],
)
def test_the_first_number_is_the_answer(answer: str, value: str | None) -> None:
    """Prevents parts of longer numbers and later guesses from counting."""
    question = Question(0, "河流的编号是多少？", "河流的编号是", "482")
    assert find_value(answer, question, ("482", "55", "4")) == value


def test_topics_of_the_question_are_no_answer() -> None:
    """Prevents an answer that repeats the question from being taken for its topic."""
    question = Question(1, "聊完茶叶的历史，接下来聊的是什么话题？", "…", "围棋的传说")
    values = ("茶叶的历史", "围棋的传说", "京剧的未来")
    answer = "聊完茶叶的历史，接下来聊的是围棋的传说。"
    assert find_value(answer, question, values) == "围棋的传说"
    assert find_value("茶叶的历史", question, values) is None
    assert find_value("什么都行", question, values[:1]) is None
