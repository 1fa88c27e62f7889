"""Repetition equals counts by hand, on the answers of the checkpoint."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from common.errors import UserError
from common.files import write_json, write_manifest
from evaluate import repetition, rouge
from evaluate.metrics.repetition import is_looping, measure_repetition
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

Run = Callable[..., None]


def test_repetition_scores_match_hand_computed_values() -> None:
    """Prevents n-grams across answers, distinct counts per answer, a division by zero."""
    metrics = measure_repetition(["甲乙丙丁 甲乙丙丁", "甲乙丙丁", "", "甲"])
    # 4-grams of the first: 甲乙丙丁 乙丙丁甲 丙丁甲乙 丁甲乙丙 甲乙丙丁.
    # The last one is a repetition. The second has one, which is not.
    assert metrics.repeated_4grams == pytest.approx(1 / 6)
    assert metrics.distinct_1 == pytest.approx(4 / 13)
    # Pairs: 甲乙 乙丙 丙丁 丁甲 甲乙 乙丙 丙丁 and 甲乙 乙丙 丙丁.
    assert metrics.distinct_2 == pytest.approx(4 / 10)
    assert (metrics.loops, metrics.empty, metrics.characters) == (0, 0.25, 13 / 4)
    assert measure_repetition([""]).repeated_4grams == measure_repetition([""]).distinct_2 == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("他说：" + "我知道。" * 4, True),
        ("我知道。" * 3 + "我知道", False),
        ("我知道。" * 2 + "好的。" + "我知道。" * 2, False),
        ("哈" * 16, True),
        ("哈" * 15, False),
        ("一二" * 8 + "三", True),
        ("一二" * 7 + "一", False),
        ("开头不同，" + "这是一个相当长的句子，它一次又一次地出现。\n" * 4, True),
        ("一、苹果；二、梨子；三、桃子；四、李子；五、杏子；六、枣子。", False),
        ("", False),
        ("好", False),
    ],
    ids=str,
)
def test_loops_are_detected(text: str, expected: bool) -> None:
    """Prevents lists or short laughter that count as loops, and missed loops of long sentences."""
    assert is_looping(text) is expected


def loops_plainly(text: str) -> bool:
    """Detect loops character by character, by definition."""
    for period in range(1, len(text) // 4 + 1):
        run = period
        for index in range(period, len(text)):
            run = run + 1 if text[index] == text[index - period] else period
            if run >= max(4 * period, 16):
                return True
    return False


def test_loops_are_detected_at_any_position() -> None:
    """Prevents missed loops at either end, and off-by-one lengths."""
    draw, detected = random.Random(1), []
    for _ in range(400):
        before, unit, after = (
            "".join(draw.choice("甲乙丙") for _ in range(draw.randrange(low, 9)))
            for low in (0, 1, 0)
        )
        text = before + unit * draw.randrange(1, 9) + after
        detected.append(is_looping(text))
        assert detected[-1] is loops_plainly(text), text
    assert 100 < sum(detected) < 300


def test_predictions_file_is_scored(
    run_command: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents invented metrics for fields that the lines lack."""
    file, out = tmp_path / "answers.jsonl", tmp_path / "out.json"
    lines = [
        {"prediction": "我知道。" * 5, "stopped": False},
        {"prediction": "好的", "stopped": True, "tokens": 2},
    ]
    file.write_text(
        "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n", encoding="utf-8"
    )
    run_command(repetition, "--score", file, "--json", out)
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert (
        figures["answers"] == 2
        and figures["loops"] == figures["stopped"] == 0.5
        and "tokens" not in figures
    )
    assert figures["repeated_4grams"] == pytest.approx(13 / 17) and figures["characters"] == 11
    printed = capsys.readouterr().out
    assert "76.47%" in printed and "loops: 我知道。" in printed and "tokens" not in printed


@pytest.mark.slow
def test_checkpoint_is_prompted_with_source_questions(
    run_command: Run, teach: Callable[..., Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents questions without history, special ids in answers, results without a model."""
    talk = [("你好", "你好，我是小驼。"), ("你住在哪里？", "我住在驼铃谷。")]
    prompts = [Template().encode_prompt(tokenizer, talk[:turn], talk[turn][0]) for turn in range(2)]
    write_json(tmp_path / "run" / "run.json", {})
    (step := tmp_path / "run" / "checkpoints" / "step-00000007").parent.mkdir()
    write_manifest(teach([(prompts[0], talk[0][1]), (prompts[1], "好" * 30)], step), {"step": 7})
    corpus = tmp_path / "talks.jsonl"
    roles = ("user", "assistant")
    messages = [
        {"role": role, "content": text}
        for pair in talk
        for role, text in zip(roles, pair, strict=True)
    ]
    corpus.write_text(
        json.dumps({"messages": messages}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    out, lines = tmp_path / "out.json", tmp_path / "lines.jsonl"
    run_command(
        repetition,
        "--checkpoint",
        tmp_path / "run",
        "--source",
        "openai",
        "--input",
        corpus,
        "--json",
        out,
        "--device",
        "cpu",
        "--predictions",
        lines,
        "--max_new_tokens",
        100,
    )
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert [row["input"] for row in rows] == ["你好", "你住在哪里？"]
    assert [row["prediction"] for row in rows] == ["你好，我是小驼。", "好" * 30] and all(
        row["stopped"] for row in rows
    )
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["stopped"] == 1 and figures["loops"] == 0.5 and figures["answers"] == 2
    assert figures["tokens"] == sum(len(tokenizer.encode(row["prediction"])) for row in rows) / 2
    again = tmp_path / "again.json"
    run_command(repetition, "--score", lines, "--json", again)
    for metrics in (figures, json.loads(again.read_text(encoding="utf-8"))):
        assert (metrics["checkpoint"], metrics["step"]) == (
            str(tmp_path / "run"),
            7,
        ) and "weights" not in metrics


@pytest.mark.slow
@pytest.mark.parametrize("command", [repetition, rouge])
@pytest.mark.parametrize(
    ("provenances", "recorded"),
    [
        ([{}, {}], {}),
        ([{"step": 7}, {"step": 8}], {}),
        ([{"step": 7}, {}], {}),
        ([{"step": True}] * 2, {}),
        (
            [{"checkpoint": "runs/a", "step": 7, "weights": "int8", "kv_cache": "bf16"}] * 2,
            {"checkpoint": "runs/a", "step": 7, "weights": "int8", "kv_cache": "bf16"},
        ),
    ],
)
def test_predictions_file_step_is_common_to_all_lines(
    run_command: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: ModuleType,
    provenances: list[dict[str, Any]],
    recorded: dict[str, Any],
) -> None:
    """Prevents a wrong step for answers of another program or of two models."""
    file, out = tmp_path / "answers.jsonl", tmp_path / "out.json"
    file.write_text(
        "\n".join(
            json.dumps({"prediction": "好", "reference": "好", **each}) for each in provenances
        )
    )
    run_command(command, "--score", file, "--json", out)
    figures = json.loads(out.read_text(encoding="utf-8"))
    fields = ("checkpoint", "step", "weights", "kv_cache")
    assert {key: value for key, value in figures.items() if key in fields} == recorded
    assert ("does not say which model answered" in capsys.readouterr().out) is not bool(recorded)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give what to measure"),
        (["--checkpoint", "x", "--score", "y"], "give what to measure"),
        (["--checkpoint", "x"], "--checkpoint needs questions"),
        (
            ["--checkpoint", "x", "--source", "wikipedia", "--input", "README.md"],
            "this measures conversations or preferences or summaries",
        ),
        (["--score", "no/such.jsonl"], "no/such.jsonl cannot be read"),
        (["--score", "README.md"], "README.md line 1: not valid JSON"),
    ],
)
def test_user_errors_are_one_line(run_command: Run, arguments: list[str], message: str) -> None:
    """Prevents a traceback for a wrong path, or a silent zero."""
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        run_command(repetition, *arguments)
