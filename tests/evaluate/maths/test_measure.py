"""`python -m evaluate.maths`: models and trivial methods by number, and files to train on."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from common.errors import UserError
from data.corpora.detect import detect_source
from data.records import Conversation
from data.sources import SOURCES
from evaluate.maths import __main__ as maths
from evaluate.maths.measure import find_most_frequent
from evaluate.maths.options import MathsOptions
from evaluate.maths.problems import Problem
from evaluate.maths.sources import load_problems
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

Run = Callable[..., None]
# A question, its answer, and what the model says.
DATA = [
    ("3+5=？", 8, "3+5=8。"),
    ("一半是多少？", "1/2", "1/2"),
    ("2+2等于几", 4, "二加二是五"),
    ("小明有7个苹果，又买了0个，再买0个", 7, "不知道"),
    ("有八个", 8, "一共八个"),
]


@pytest.mark.slow
def test_last_number_of_the_answer_counts(
    run_command: Run,
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents another number of an answer from counting, and figures without their interval."""
    lessons = [
        (Template().encode_prompt(tokenizer, [], question), answer) for question, _, answer in DATA
    ]
    folder = teach(lessons, tmp_path / "model")
    path, out, predictions = tmp_path / "a.jsonl", tmp_path / "out.json", tmp_path / "lines.jsonl"
    path.write_text(
        "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a, _ in DATA),
        encoding="utf-8",
    )
    arguments = ["--checkpoint", folder, "--source", "jsonl", "--input", path, "--device", "cpu"]
    run_command(maths, *arguments, "--json", out, "--predictions", predictions)
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["right"]["model"] == pytest.approx(
        {"rate": 0.6, "low": 0.2307, "high": 0.8824, "questions": 5}, abs=1e-4
    )
    # The last number of the question is right for 有八个 alone; 8 is twice the answer.
    assert figures["right"]["last_number"]["rate"] == 0.2
    assert figures["right"]["most_frequent"]["rate"] == 0.4
    assert figures["most_frequent_answer"] == "8"
    assert figures["no_number"]["rate"] == 0.2 and figures["stopped"]["rate"] == 1
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert [row["number"] for row in rows] == ["8", "1/2", "5", None, "8"]
    printed = capsys.readouterr().out
    assert "60.0 % (23.1 – 88.2)" in printed
    assert "not told apart from the best trivial method" in printed
    assert not out.with_name("out.json.partial").exists()


def test_most_frequent_answer_is_that_of_the_problems() -> None:
    """Prevents a trivial line of another answer than the best one."""
    problems = [Problem("问", Fraction(number)) for number in (3, 5, 5, 3, 5)]
    assert find_most_frequent(problems) == 5


@pytest.mark.slow
@pytest.mark.parametrize("source", ["arithmetic", "word-problems"])
def test_exported_problems_are_conversations_that_no_test_has(
    run_command: Run, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a training file that is not recognized, and one with problems of the test."""
    path = tmp_path / "train.jsonl"
    run_command(maths, "--source", source, "--count", 400, "--export", path)
    assert detect_source([path]) == "openai"
    records = list(SOURCES["openai"].iter_records(path))
    questions = {record.turns[0].question for record in records if isinstance(record, Conversation)}
    assert len(questions) == len(records) == 400
    options = MathsOptions(source=source, count=400)  # type: ignore[arg-type]
    assert not questions & {problem.question for problem in load_problems(options)}
    assert "400 problems with solutions" in capsys.readouterr().out


@pytest.mark.slow
def test_generated_problems_have_figures_of_operations_and_levels(
    run_command: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a lost group, and a command that needs a model for what needs none."""
    out = tmp_path / "out.json"
    arguments = ["--source", "arithmetic", "--difficulty", 3, "--count", 90, "--seed", 4]
    run_command(maths, *arguments, "--json", out)
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert set(figures["by_operation"]) == {
        "addition",
        "subtraction",
        "multiplication",
        "division",
        "two operations",
    }
    for groups in (figures["by_operation"], figures["by_difficulty"]):
        assert sum(group["last_number"]["questions"] for group in groups.values()) == 90
    assert set(figures["by_difficulty"]) == {"1", "2", "3"} and "model" not in figures["right"]
    assert "seed 4: 90 problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--source: is required"),
        (["--source", "algebra"], "--source: 'algebra' is not valid"),
        (["--source", "jsonl"], "--source jsonl reads files: give --input FILE"),
        (["--source", "arithmetic", "--input", "x"], "is generated: leave out --input"),
        (["--source", "arithmetic", "--limit", "3"], "give --count, not --limit"),
        (["--source", "arithmetic", "--difficulty", "6"], "--difficulty: '6' is not valid"),
        (
            ["--source", "gsm8k", "--input", "x", "--export", "y"],
            "--export writes generated problems",
        ),
        (
            ["--source", "arithmetic", "--checkpoint", "x", "--export", "y"],
            "measures nothing: leave out --checkpoint",
        ),
        (["--source", "arithmetic", "--predictions", "y"], "--predictions has the answers"),
        (["--source", "arithmetic", "--checkpoint", "no-such-run"], "no-such-run"),
    ],
)
def test_user_errors_are_one_line(run_command: Run, arguments: list[str], message: str) -> None:
    """Prevents a traceback, an option that is ignored, or a rate of nothing."""
    with pytest.raises(UserError, match=message) as caught:
        run_command(maths, *arguments)
    assert "\n" not in str(caught.value)
