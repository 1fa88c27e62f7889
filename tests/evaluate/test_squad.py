"""Reading comprehension with gold answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from data.index.build import build_index
from data.index.options import IndexOptions
from data.prepare.source_args import SourceGroup
from evaluate import answers as answer_module
from evaluate import passage_qa
from evaluate.measures.squad import read_questions
from evaluate.options import PassageQAOptions
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

Run = Callable[..., None]
# A passage, its question, and the answers.
DATA = [
    ("小驼住在河西。今年三岁。", "小驼住在哪里？", ["河西", "河西村"]),
    ("小马住在东山，今年九岁。", "小马住在哪里？", ["东山"]),
    ("小羊怕冷，它去过河西。", "小羊怕什么？", ["冷"]),
]


def write(folder: Path, data: list[tuple[str, str, list[str]]] | None = None) -> Path:
    paragraphs = [
        {
            "context": passage,
            "qas": [
                {
                    "id": str(number),
                    "question": question,
                    "answers": [{"text": text} for text in answers],
                    "is_impossible": not answers,
                }
            ],
        }
        for number, (passage, question, answers) in enumerate(DATA if data is None else data)
    ]
    path = folder / "dev.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), encoding="utf-8")
    return path


def read(path: Path, **options: Any) -> list[Any]:
    return read_questions(PassageQAOptions(source="squad", input=(str(path),), **options))


def test_wrong_passage_has_no_answer_if_possible(tmp_path: Path) -> None:
    """Prevents a control in which the answer can be read, and one with the right passage."""
    passages = [passage for passage, _, _ in DATA]
    answers = (["河西"], ["东山", "怕冷"], ["冷"])
    data = [(passage, "问", texts) for passage, texts in zip(passages, answers, strict=True)]
    questions = read(write(tmp_path, data))
    # The next of the passages, except where it has 怕冷.
    assert [passages.index(question.control) for question in questions] == [1, 0, 0]
    # The limit is of questions: the control may come from the others.
    assert read(write(tmp_path, data), limit=1) == questions[:1]
    data = [(passage, question, ["住在"]) for passage, question, _ in DATA[:2]]
    assert [question.control for question in read(write(tmp_path, data))] == passages[1::-1]


def test_characters_of_passage_question_and_answers_are_converted_alike(tmp_path: Path) -> None:
    """Prevents an answer in traditional characters from being wrong for a simplified passage."""
    data = [("陸特和漢斯雷頓開創。", "誰開創？", ["漢斯雷頓"]), ("乾隆帝。", "誰？", ["乾隆"])]
    path = write(tmp_path, data)
    simplified, original = read(path), read(path, script="original")
    assert [question.passage for question in original] == [passage for passage, _, _ in data]
    assert simplified[0].passage == "陆特和汉斯雷顿开创。" and simplified[0].answers == (
        "汉斯雷顿",
    )
    assert simplified[0].question == "谁开创？" and simplified[1].answers == ("乾隆",)


@pytest.mark.slow
def test_answers_of_real_file_stay_in_their_passages(shared: Path) -> None:
    """Prevents a conversion that depends on the text around an answer."""
    path = shared / "data/eval/DRCD_dev_half.json"
    for script in ("original", "simplified"):
        questions = read(path, script=script)
        assert len(questions) > 1000
        missing = [
            answer
            for question in questions
            for answer in question.answers
            if answer not in question.passage
        ]
        assert not missing, script
        assert not any(
            answer in question.control for question in questions for answer in question.answers
        )


@pytest.mark.slow
def test_model_is_scored_with_right_wrong_and_no_passage(
    run_command: Run,
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents answers with one passage from being scored as those with another.

    And an interrupted command from asking again what was answered, an answer without its interval.
    """
    refusal = "文中没有提到。"
    data = [*DATA[:2], ("小牛在山上。", "小牛几岁？", [])]
    path = write(tmp_path, data)
    questions = read(path)
    right = ["《河西》。", "东山村", refusal]
    none = ["河西", "河西", ""]
    lessons = []
    for question, answer, other in zip(questions, right, none, strict=True):
        for passage, text in ((question.passage, answer), (question.control, refusal), ("", other)):
            prompt = Template().encode_prompt(tokenizer, [], question.question, passage)
            lessons.append((prompt, text))
    folder = teach(lessons, tmp_path / "model")
    out, lines = tmp_path / "out.json", tmp_path / "lines.jsonl"
    arguments = ["--checkpoint", folder, "--source", "squad", "--input", path, "--device", "cpu"]
    arguments += ["--json", out, "--predictions", lines, "--max_new_tokens", 20]

    real = answer_module.answer_questions
    asked: list[int] = []

    def stop_at_the_third(*positional: Any, **named: Any) -> Any:
        asked.append(len(positional[3]))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(*positional, **named)

    monkeypatch.setattr(answer_module, "answer_questions", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_command(passage_qa, *arguments)
    run_command(passage_qa, *arguments)
    assert asked == [3, 3, 3, 3] and not out.with_name("out.json.partial").exists()
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert (figures["questions"], figures["answerable"], figures["script"]) == (3, 2, "simplified")
    assert figures["right"]["exact"]["rate"] == 0.5
    assert figures["right"]["exact"]["high"] < 1
    # 1, and of three characters the two of the answer: 4/5.
    assert figures["right"]["f1"]["rate"] == pytest.approx(0.9)
    assert figures["wrong"]["exact"]["rate"] == figures["wrong"]["f1"]["rate"] == 0
    assert figures["none"]["exact"]["rate"] == 0.5
    for name, refused in (("right", 0), ("wrong", 1), ("none", 0)):
        assert figures[name]["not_mentioned"]["rate"] == refused
        assert figures[name]["unanswerable"] == {**figures[name]["unanswerable"], "rate": 1.0}
        assert figures[name]["stopped"]["rate"] == 1 and figures[name]["loops"]["rate"] == 0
    # 东山村 is too short for a part of it, 东山, to count.
    assert [figures[name]["copied"]["rate"] for name in ("right", "wrong")] == [0.5, 0.0]
    assert figures["true_answers_copied"]["rate"] == 1 and "copied" not in figures["none"]
    assert figures["answer_in_wrong_passage"]["rate"] == 0
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert [row["right"]["prediction"] for row in rows] == right
    assert [row["none"]["prediction"] for row in rows] == none
    assert rows[0]["trivial"]["sentence"]["prediction"] == "小驼住在河西。"
    printed = capsys.readouterr().out
    assert "wrong passage: 3 of 3 were done before" in printed
    assert "simplified characters" in printed and "50.0 % (9.5 – 90.5)" in printed


@pytest.mark.slow
def test_index_is_asked_for_passages(
    run_command: Run,
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents passages in characters of another script, and right ones that count as wrong."""
    data = [
        ("陸特住在漢城。", "陸特住在哪裡？", ["漢城"]),
        ("小馬在東山。", "誰在東山？", ["小馬"]),
    ]
    path = write(tmp_path, data)
    index = tmp_path / "index"
    build_index([SourceGroup("squad", (str(path),))], IndexOptions(out=index))
    lessons = []
    for question in read(path):
        [answer] = question.answers
        both = f"{question.control}\n{question.passage}"
        for passage, text in (
            (question.passage, answer),
            (question.control, "文中没有提到。"),
            ("", "不知道"),
            (both, "汉城"),
        ):
            prompt = Template().encode_prompt(tokenizer, [], question.question, passage)
            lessons.append((prompt, text))
    out = tmp_path / "out.json"
    run_command(
        *(passage_qa, "--checkpoint", teach(lessons, tmp_path / "model"), "--source", "squad"),
        *("--input", path, "--index", index, "--json", out, "--device", "cpu"),
        *("--max_new_tokens", 20),
    )
    figures = json.loads(out.read_text(encoding="utf-8"))
    retrieved = figures["retrieved"]
    assert (retrieved["passages"], retrieved["count"], retrieved["shortened"]) == (2, 3, 0)
    assert (retrieved["R@1"]["rate"], retrieved["R@3"]["rate"]) == (1, 1)
    rates = {
        name: (figures[name]["exact"]["rate"], figures[name]["copied"]["rate"])
        for name in ("right", "wrong", "first", "together")
    }
    assert rates == {"right": (1, 1), "wrong": (0, 0), "first": (1, 1), "together": (0.5, 1)}
    printed = capsys.readouterr().out
    assert "the right passage among the 2 of the index: R@1 100.0 %" in printed


@pytest.mark.slow
def test_trivial_methods_alone_need_no_model(
    run_command: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents figures that differ from those beside a model."""
    out = tmp_path / "out.json"
    path = write(tmp_path)
    run_command(passage_qa, "--source", "squad", "--input", path, "--json", out)
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert "right" not in figures and "checkpoint" not in figures
    # Of sentences of 6, 10 and 9 characters, answers of 2, 2 and 1.
    f1 = (4 / 8 + 4 / 12 + 2 / 10) / 3
    assert figures["trivial"]["sentence"]["f1"]["rate"] == pytest.approx(f1)
    assert "no model" in capsys.readouterr().out


@pytest.mark.slow
def test_long_passages_are_left_out_and_counted(
    run_command: Run,
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a passage from being cut, or from being left out without a word."""
    data = [*DATA, ("长" * 400, "问？", ["长"])]
    prompt = Template().encode_prompt(tokenizer, [], "问")
    folder, out = teach([(prompt, "答")], tmp_path / "model"), tmp_path / "out.json"
    arguments = ["--checkpoint", folder, "--source", "squad", "--input", write(tmp_path, data)]
    run_command(passage_qa, *arguments, "--json", out, "--device", "cpu", "--max_new_tokens", 9)
    figures = json.loads(out.read_text(encoding="utf-8"))
    # The long one is also the control of two others.
    assert (figures["questions"], figures["left_out"]) == (1, 3)
    assert "no room for an answer in the context: 3 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("", [], "has questions about 0 passages"),
        ('{"data": [{"paragraphs": [{"context": "文", "qas": []}]}]}', [], "about 0 passages"),
        ('{"context": "文", "question": "问", "answers": ["答"]}\n', [], "about 1 passages"),
        ("", ["--script", "traditional"], "--script: 'traditional' is not valid"),
        ("", ["--predictions", "x.jsonl"], "--predictions has the answers of a model"),
    ],
)
def test_user_errors_are_one_line(
    run_command: Run, tmp_path: Path, content: str, arguments: list[str], message: str
) -> None:
    """Prevents a traceback, or a rate of nothing."""
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        run_command(passage_qa, "--source", "squad", "--input", path, *arguments)
    assert "\n" not in str(caught.value)


def test_script_is_for_squad_only(run_command: Run) -> None:
    """Prevents an option that is ignored."""
    with pytest.raises(UserError, match="--script is for --source squad"):
        arguments = ["--checkpoint", "x", "--source", "redgpt", "--input", "README.md"]
        run_command(passage_qa, *arguments, "--script", "original")
