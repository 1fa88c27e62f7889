"""Texts of a length in tokens, with questions about every part of them."""

import random
from functools import partial

import pytest

from common.errors import UserError
from evaluate.load_model import LoadedCheckpoint
from evaluate.needle.cases import build_case, choose_questions, part_labels, trivial_places
from evaluate.needle.frames import ChatFrame, Frame, PlainFrame
from evaluate.needle.long_text import DrawText
from evaluate.needle.register import draw_register
from evaluate.needle.wording import WORDINGS


def _draw(loaded: LoadedCheckpoint) -> DrawText:
    def count_tokens(text: str) -> int:
        return len(loaded.tokenizer.encode(text))

    return partial(
        draw_register, wording=WORDINGS["zh"], part="test", digits=3, count_tokens=count_tokens
    )


@pytest.mark.parametrize("frame_class", [PlainFrame, ChatFrame])
def test_cases_fill_their_length_with_question_and_answer(
    frame_class: type[Frame], loaded: LoadedCheckpoint
) -> None:
    """Prevents prompts whose answer does not fit, and texts much shorter than they are called."""
    frame = frame_class(loaded, WORDINGS["zh"])
    case = build_case(_draw(loaded), frame, length=400, num_depths=5, seed="a")
    places = [question.place for question in case.questions]
    num_values = len(case.text.values)
    assert [5 * place // num_values for place in places] == [0, 1, 2, 3, 4]
    for question, prompt in zip(case.questions, case.prompts, strict=True):
        answer = WORDINGS["zh"].complete(question.answer_start, question.value)
        assert 340 < len(prompt) + len(loaded.tokenizer.encode(answer)) <= 430
        request = frame.build_request(prompt, question, case.text.values)
        assert request.num_tokens <= 400
    again = build_case(_draw(loaded), frame, length=400, num_depths=5, seed="a")
    assert again == case
    assert build_case(_draw(loaded), frame, length=400, num_depths=5, seed="b") != case


def test_any_value_of_a_part_is_asked_for(loaded: LoadedCheckpoint) -> None:
    """Prevents questions about the first value of each part alone, which are fewer depths."""
    text = _draw(loaded)(random.Random(0), 300)
    rng = random.Random(0)
    asked = set()
    for _ in range(200):
        questions = choose_questions(text, 2, rng)
        assert questions is not None
        asked |= {question.place for question in questions}
    assert asked == set(range(len(text.questions)))


def test_lengths_without_room_are_refused(loaded: LoadedCheckpoint) -> None:
    """Prevents an endless search for a text that fits, and parts that nothing is asked about."""
    frame = PlainFrame(loaded, WORDINGS["zh"])
    for length, num_depths in ((40, 1), (200, 20)):
        with pytest.raises(UserError, match=f"--lengths {length}: has no room"):
            build_case(_draw(loaded), frame, length=length, num_depths=num_depths, seed="a")


def test_trivial_methods_are_right_where_they_are(loaded: LoadedCheckpoint) -> None:
    """Prevents a trivial method that scores less than it does, which a model then seems to beat."""
    text = _draw(loaded)(random.Random(0), 200)
    count = len(text.questions)
    shares = [trivial_places(text, question) for question in text.questions]
    assert [share["chance"] for share in shares] == [1 / count] * count
    assert [share["first"] for share in shares] == [1.0] + [0.0] * (count - 1)
    assert [share["last"] for share in shares] == [0.0] * (count - 1) + [1.0]


def test_parts_are_named_by_their_ends() -> None:
    """Prevents labels of other parts than those that were asked about."""
    assert part_labels(1) == ["0–100 %"]
    assert part_labels(3) == ["0–33 %", "33–67 %", "67–100 %"]
