"""Passage questions separate reading from memory."""

import gzip
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from data.index.build import build_index
from data.index.options import IndexOptions
from data.prepare.source_args import SourceGroup
from data.records import Conversation, Turn
from evaluate import passage_qa
from evaluate.kinds.conversations import Question, answer_questions, extract_questions
from evaluate.load_model import load_checkpoint
from evaluate.measures.passage_qa import (
    ANSWER_POSITIONS,
    NOT_MENTIONED,
    locate_answer,
    pair_with_control_passages,
)
from evaluate.measures.retrieved_passages import ask_with_found
from evaluate.metrics.proportion import Proportion
from evaluate.options import DeviceOptions
from model.chat_template.template import Template
from model.checkpoint import weights
from model.tokenizer.base import Tokenizer

Run = Callable[..., None]
PASSAGES: dict[str, tuple[str, ...]] = {
    "小驼住在河西。今年三岁。": ("河西", "三岁"),
    "小驼住在东山，那里很冷，今年九岁。": ("东山", "九岁"),
}
QUESTIONS = ("小驼住在哪里？", "多大了？")


def write(path: Path, passages: dict[str, tuple[str, ...]]) -> Path:
    rows = [
        {
            "reference": passage,
            "dialogue": "\n\n".join(
                f"Human: {question}\n\nAssistant: {answer}"
                for question, answer in zip(QUESTIONS, answers, strict=True)
            ),
        }
        for passage, answers in passages.items()
    ]
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def _rates(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures with the rates alone, without their intervals."""
    return {
        key: (value["rate"] if "rate" in value else _rates(value))
        if isinstance(value, dict)
        else value
        for key, value in figures.items()
    }


@pytest.mark.slow
def test_passage_qa_separates_reading_from_guessing(
    run_command: Run,
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a control with the right passage, and turns without the true turns before."""

    def prompt(passage: str, answers: tuple[str, ...], turn: int) -> list[int]:
        return Template().encode_prompt(
            tokenizer, list(zip(QUESTIONS, answers, strict=True))[:turn], QUESTIONS[turn], passage
        )

    # The model answers the first turn from the passage and the second from memory.
    others = {
        passage: answers
        for passage, answers in zip(PASSAGES, reversed(PASSAGES.values()), strict=True)
    }
    lessons = [(prompt(passage, answers, 0), answers[0]) for passage, answers in PASSAGES.items()]
    lessons += [
        (prompt(passage, answers, 1), "三岁")
        for each in (PASSAGES, others)
        for passage, answers in each.items()
    ]
    folder = teach(lessons, tmp_path / "model")
    out, lines = tmp_path / "out.json", tmp_path / "lines.jsonl"
    run_command(
        passage_qa,
        "--checkpoint",
        folder,
        "--source",
        "redgpt",
        "--input",
        write(tmp_path / "r.jsonl", PASSAGES),
        "--device",
        "cpu",
        "--json",
        out,
        "--predictions",
        lines,
        "--max_new_tokens",
        20,
    )
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert (figures["records"], figures["questions"]) == (2, 4)
    assert figures["right"]["exact"] == Proportion(3, 4).to_json()
    assert _rates(figures["right"]) == {
        "exact": 0.75,
        "not_mentioned": 0.0,
        # 三岁 is not in the passage about 东山.
        "copied": 0.75,
        "stopped": 1.0,
        "loops": 0.0,
    }
    assert _rates(figures["wrong"]) == {
        "exact": 0.25,
        "not_mentioned": 0.0,
        "copied": 0.75,
        "stopped": 1.0,
        "loops": 0.0,
    }
    assert _rates(figures["places"]) == {
        "first third": {"questions": 1, "right": 1.0, "wrong": 0.0},
        "middle third": {"questions": 1, "right": 1.0, "wrong": 0.0},
        "last third": {"questions": 2, "right": 0.5, "wrong": 0.5},
    }
    assert figures["answer_in_wrong_passage"]["rate"] == 0
    assert figures["true_answers_copied"]["rate"] == 1
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert [row["reference"] for row in rows] == ["河西", "三岁", "东山", "九岁"]
    assert [row["prediction"] for row in rows] == ["河西", "三岁", "东山", "三岁"]
    assert [row["control"]["prediction"] for row in rows] == ["东山", "三岁", "河西", "三岁"]
    printed = capsys.readouterr().out
    assert "right passage" in printed and "75.0%" in printed and "25.0%" in printed


@pytest.mark.slow
def test_index_is_asked_for_passages(
    run_command: Run,
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents what is found from being mixed up with the right passage, or searched in vain."""
    camel, horse = "小驼住在河西。今年三岁。", "小马住在东山。今年九岁。"
    turns = {
        camel: (Turn("小驼住在哪里？", "河西"), Turn("多大了？", "三岁")),
        horse: (Turn("小马住在哪里？", "东山"), Turn("多大了？", "九岁")),
    }
    lines = [
        json.dumps(
            {
                "reference": passage,
                "dialogue": "\n\n".join(
                    f"Human: {turn.question}\n\nAssistant: {turn.answer}" for turn in each
                ),
            }
        )
        for passage, each in turns.items()
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    index = tmp_path / "index"
    build_index([SourceGroup("redgpt", (str(path),))], IndexOptions(out=index))
    lessons = []
    for passage, other in ((camel, horse), (horse, camel)):
        conversation = Conversation(turns[passage], passage)
        # With both passages the model answers what was asked for, and then 九岁.
        both = f"{other}\n{passage}"
        for question, answer in zip(
            extract_questions(conversation), (turns[passage][0].answer, "九岁"), strict=True
        ):
            for text, taught in ((passage, question.answer), (both, answer)):
                prompt = Template().encode_prompt(
                    tokenizer, question.history, question.question, text
                )
                lessons.append((prompt, taught))
    folder = teach(lessons, tmp_path / "model")
    out, predictions = tmp_path / "out.json", tmp_path / "lines.jsonl"
    run_command(
        *(passage_qa, "--checkpoint", folder, "--source", "redgpt", "--input", path),
        *("--index", index, "--passages", 2, "--device", "cpu", "--max_new_tokens", 20),
        *("--json", out, "--predictions", predictions),
    )
    figures = json.loads(out.read_text(encoding="utf-8"))
    retrieved = figures["retrieved"]
    assert (retrieved["passages"], retrieved["count"], retrieved["shortened"]) == (2, 2, 0)
    for name, exact in (("right", 1), ("first", 1), ("together", 0.75)):
        rates = _rates((figures | retrieved)[name])
        # 九岁 is in one of the passages, but not what 小驼 was asked for.
        assert (rates["exact"], rates["not_mentioned"], rates["copied"]) == (exact, 0, 1)
    # 多大了 alone has no token of any passage.
    found = {"R@1": 1.0, "R@2": 1.0}
    rates = _rates(retrieved["turns"])
    assert rates["first turn"] == {
        **{"conversation": found, "question": found, "right": 1, "first": 1, "together": 1}
    }
    assert rates["later turns"] == {
        **{"conversation": found, "question": {"R@1": 0.0, "R@2": 0.0}},
        **{"right": 1.0, "first": 1.0, "together": 0.5},
    }
    assert retrieved["exact_if_found"] == Proportion(4, 4).to_json()
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert rows[2]["first"]["passage"] == horse
    assert rows[2]["together"]["passage"] == f"{camel}\n{horse}"
    assert rows[3]["found"] == {"rank": 1, "rank_by_question": None, "all_fit": True}
    printed = capsys.readouterr().out
    assert "first 2 found" in printed and "later turns (2), by the question alone" in printed

    loaded = load_checkpoint(folder, DeviceOptions(), torch.device("cpu"))
    question, long = Question((), "问", "答", "文"), "长" * 300
    for passages, together in (
        (["短", "中", "文"], "文\n中\n短"),
        (["短", "中", long], "中\n短"),
        (["短", long, "中"], "短"),
        ([long, "短"], long),
        ([], ""),
    ):
        asked = ask_with_found(loaded, [question], [passages], 20)
        assert asked == {
            "first": [replace(question, passage="".join(passages[:1]))],
            "together": [replace(question, passage=together)],
        }

    other_index = tmp_path / "other"
    unrelated = tmp_path / "other.txt"
    unrelated.write_text("小羊怕冷。", encoding="utf-8")
    build_index([SourceGroup("text", (str(unrelated),))], IndexOptions(out=other_index))
    arguments = ["--checkpoint", folder, "--source", "redgpt", "--input", path, "--index"]
    with pytest.raises(UserError, match="has none of the passages of --input"):
        run_command(passage_qa, *arguments, other_index)


@pytest.mark.slow
def test_refusals_are_counted_apart(
    run_command: Run,
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a right refusal with the wrong passage from counting as an answer by memory."""
    none = "文中没有提到。"
    passages = {passage: (answers[0], none) for passage, answers in PASSAGES.items()}
    lessons = [
        (Template().encode_prompt(tokenizer, history, question, passage), none)
        for passage, answers in passages.items()
        for question, history in zip(QUESTIONS, ([], [(QUESTIONS[0], answers[0])]), strict=True)
    ]
    out = tmp_path / "out.json"
    arguments = ["--checkpoint", teach(lessons, tmp_path / "model"), "--source", "redgpt", "--json"]
    arguments += [out, "--input", write(tmp_path / "r.jsonl", passages), "--device", "cpu"]
    run_command(passage_qa, *arguments)
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert (figures["questions"], figures["answerable"]) == (4, 2)
    assert _rates(figures["unanswerable"]) == {"questions": 2, "exact": 1.0}
    for passage in ("right", "wrong"):
        rates = _rates(figures[passage])
        assert (rates["exact"], rates["not_mentioned"]) == (0.0, 1.0)
    assert sum(rates["questions"] for rates in figures["places"].values()) == 2
    assert "refused to answer            100.0% (34.2 – 100.0)" in capsys.readouterr().out


def test_control_passage_is_never_the_right_one(root: Path) -> None:
    """Prevents a control with the right passage if several records share one."""
    turns = (Turn("问", "答"), Turn("问", "再答"))
    passages = ["甲", "甲", "乙", "甲", "甲", "丙", "甲"]
    pairs = pair_with_control_passages([Conversation(turns, passage) for passage in passages], "x")
    assert len(pairs) == 14 and all(right.passage != wrong.passage for right, wrong in pairs)
    assert [right.passage for right, _ in pairs] == [passage for passage in passages for _ in turns]
    assert all(
        (right.question, right.answer, right.history)
        == (wrong.question, wrong.answer, wrong.history)
        for right, wrong in pairs
    )
    assert pairs[1][0].history == (("问", "答"),)
    with pytest.raises(UserError, match="at least two passages, and these have 1"):
        pair_with_control_passages([Conversation(turns, "甲")] * 3, "x")


def test_untrained_answers_are_not_asked_for() -> None:
    """Prevents an answer that its record marks as wrong from passing for the true one."""
    turns = (Turn("问", "错", has_loss=False), Turn("再问", "对"))
    questions = extract_questions(Conversation(turns))
    assert [(question.question, question.history) for question in questions] == [
        ("再问", (("问", "错"),))
    ]


def test_answer_position_in_passage() -> None:
    """Prevents wrong bounds of the thirds, and a place for an answer in other words."""
    passage = "一二三四五六七八九"
    expected = {
        "一": 0,
        "三": 0,
        "三四": 1,
        "四": 1,
        "五": 1,
        "六": 1,
        "七": 2,
        "九": 2,
        "三四五六七": 1,
        " 九 ": 2,
        "十": 3,
        "": 3,
        passage: 1,
    }
    positions = {
        answer: ANSWER_POSITIONS.index(locate_answer(Question((), "问", answer, passage)))
        for answer in expected
    }
    assert positions == expected


def test_only_refusals_are_taken_for_refusals() -> None:
    """Prevents answers about something that was not said from counting as refusals."""
    refusals = ["文中没有提到。", "资料里并未说明他的年龄。", "材料中没有给出时间", "原文未提及。"]
    answers = ["酒店没有提供早餐。", "他未说明原因。", "他在文中提到了两次。", "没有。"]
    assert all(NOT_MENTIONED.search(text) for text in refusals)
    assert not any(NOT_MENTIONED.search(text) for text in answers)


def test_sample_has_answers_at_every_position(root: Path) -> None:
    """Prevents a sample with answers in one third only, or in other words than the passage."""
    with gzip.open(
        root / "assets/sample/sft/redgpt/RedGPT-Dataset-V1-CN.json.gz", "rt", encoding="utf-8"
    ) as file:
        rows = [json.loads(line) for line in itertools.islice(file, 300)]
    from data.sources import find_source

    records = [find_source("redgpt").parse(json.dumps(row).encode()) for row in rows]
    places = [
        locate_answer(question)
        for record in records
        if isinstance(record, Conversation)
        for question in extract_questions(record)
        if not NOT_MENTIONED.search(question.answer)
    ]
    assert len(places) > 600 and ANSWER_POSITIONS[3] not in places
    assert min(places.count(name) for name in ANSWER_POSITIONS[:3]) > len(places) / 5


@pytest.mark.slow
def test_questions_exceeding_context_are_skipped(
    teach: Callable[..., Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents a crash on a long passage, and a truncated answer that counts as wrong."""
    folder = teach([(Template().encode_prompt(tokenizer, [], "问"), "答")], tmp_path / "model")
    model, _ = weights.load_checkpoint(folder, torch.device("cpu"))
    asked = [Question((), "问", "答", "长" * 300), Question((), "问", "答", "")]
    seen: list[int] = []
    answers = answer_questions(
        model, tokenizer, Template(), asked, max_new_tokens=20, on_progress=seen.append
    )
    assert (
        answers[0] is None and answers[1] is not None and answers[1].text == "答" and sum(seen) == 2
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--source: is required\n--input: is required"),
        (["--checkpoint", "x"], "--source: is required"),
        (["--source", "redgpt", "--input", "README.md"], "--checkpoint: is required"),
        (
            ["--checkpoint", "x", "--source", "csl", "--input", "README.md"],
            "this measures conversations",
        ),
    ],
)
def test_user_errors_are_one_line(run_command: Run, arguments: list[str], message: str) -> None:
    """Prevents a traceback, or a rate of nothing."""
    with pytest.raises(UserError, match=message):
        run_command(passage_qa, *arguments)
