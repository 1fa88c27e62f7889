"""Every pair on every question, in both orders."""

from collections import Counter

from evaluate.tournament.questions import ModelAnswers, TournamentQuestion
from evaluate.tournament.schedule import build_showings, draw_sequence

QUESTIONS = [TournamentQuestion(number, f"问{number}", "") for number in range(12)]
MODELS = [
    ModelAnswers(name, {question.key: f"{name}{question.key}" for question in QUESTIONS})
    for name in "xyz"
]


def test_every_pair_is_shown_in_both_orders() -> None:
    """A model that stands first more often than another, or answers that are mixed up."""
    showings = build_showings(QUESTIONS, MODELS)
    counts = Counter(
        (showing.question.key, showing.model_a, showing.model_b) for showing in showings
    )
    assert set(counts.values()) == {1} and len(counts) == 12 * 3 * 2
    for showing in showings:
        assert showing.model_a != showing.model_b
        assert showing.answer_a == f"{showing.model_a}{showing.question.key}"
        assert showing.answer_b == f"{showing.model_b}{showing.question.key}"
    for first, second in zip(showings[::2], showings[1::2], strict=True):
        assert second == first.reversed and second.reversed == first


def test_questions_without_two_answers_are_left_out() -> None:
    """A missing answer compared as an empty one."""
    partial = ModelAnswers("w", {"3": "w3"})
    showings = build_showings(QUESTIONS, [MODELS[0], partial])
    assert [showing.question.key for showing in showings] == ["3", "3"]


def test_person_gets_drawn_orders_once_before_the_other_orders() -> None:
    """A sequence that tells which model is first, or that a seed does not repeat."""
    showings = build_showings(QUESTIONS, MODELS)
    drawn = draw_sequence(showings, seed=0)
    assert drawn == draw_sequence(showings, seed=0) != draw_sequence(showings, seed=1)
    assert Counter(drawn) == Counter(showings)
    half = len(drawn) // 2
    pairs = [
        {(showing.question.key, *sorted((showing.model_a, showing.model_b))) for showing in part}
        for part in (drawn[:half], drawn[half:])
    ]
    assert len(pairs[0]) == half and pairs[0] == pairs[1]
    x_first = sum(showing.model_a == "x" for showing in drawn[:half] if "x" in showing.model_a)
    assert 0 < x_first < 24
    assert [showing.question.key for showing in drawn[:6]] != ["0", "0", "0", "1", "1", "1"]
