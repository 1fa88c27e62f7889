"""`python -m evaluate.rouge --dialogue` compares ways to ask a checkpoint for the same titles."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from data.batching.summary_prompts import ALL_REQUESTS, LEAD_INS, sample_requests, summary_prompt
from evaluate import rouge
from evaluate.kinds.summaries import TitleQuestion, answer_title_questions
from evaluate.measures import rouge as rouge_measure
from evaluate.measures.rouge_dialogue import CHAT_TURNS
from evaluate.metrics.rouge import compute_rouge
from evaluate.model_answer import ModelAnswer
from model.chat_template.template import Template
from model.checkpoint import weights
from model.tokenizer.base import Tokenizer

Run = Callable[..., None]
CSL = "assets/sample/summary/csl/test.tsv"
# The last title begins like a lead-in, but with none.
STUDIES = (
    ("山里的风从东边来。", "山风的方向"),
    ("河边的船每天下午开。", "渡船的时刻"),
    ("会上谈了一年的工作。", "总结会议报告"),
)
LEAD_IN = LEAD_INS[3]
OTHER_REQUEST = ALL_REQUESTS[-1]
# The name of the condition with each lead-in, in the output.
BEGUN = [f"answer begun with {lead_in}" for lead_in in LEAD_INS]


def build_question(article: str, request: int = 0) -> str:
    return ALL_REQUESTS[request].prefix + article + ALL_REQUESTS[request].suffix


@pytest.fixture(scope="module")
def taught(
    teach: Callable[..., Path], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a checkpoint that was taught lead-ins, and another answer under four conditions.

    The canonical request: two titles with a lead-in, and one without. The last phrasing, of the
    first article: 方法. After two turns of chat: 报告. After another lead-in: the title without its
    first character.
    """
    pairs = []
    for article, title in STUDIES:
        lead_in = "" if title.startswith("总结") else LEAD_IN
        canonical, _ = summary_prompt(tokenizer, Template(), article, max_tokens=200)
        after_chat = Template().encode_prompt(tokenizer, CHAT_TURNS[:2], build_question(article))
        pairs += [
            (canonical, lead_in + title),
            (after_chat, "报告"),
            (canonical + tokenizer.encode(LEAD_INS[0]), title[1:]),
        ]
    other, _ = summary_prompt(
        tokenizer, Template(), STUDIES[0][0], max_tokens=200, request=OTHER_REQUEST
    )
    pairs.append((other, "方法"))
    folder = teach(pairs, tmp_path_factory.mktemp("dialogue") / "model")
    Template(lead_ins=True).save(folder)
    return folder


@pytest.fixture(scope="module")
def studies_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write STUDIES as a file of the source csl."""
    file = tmp_path_factory.mktemp("studies") / "test.tsv"
    file.write_text("".join(f"{title}\t{article}\n" for article, title in STUDIES), "utf-8")
    return file


def run_dialogue(run_command: Run, taught: Path, file: Path, out: Path, *options: object) -> None:
    """Run the command on the taught checkpoint; write `out`.json and `out`.jsonl."""
    run_command(
        rouge,
        "--checkpoint",
        taught,
        "--source",
        "csl",
        "--input",
        file,
        "--device",
        "cpu",
        "--max_new_tokens",
        8,
        "--json",
        out.with_suffix(".json"),
        "--predictions",
        out.with_suffix(".jsonl"),
        *options,
    )


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def mean_rouge_1(answers: Sequence[str]) -> float:
    """Return the mean of ROUGE-1 F on characters of answers to the first of STUDIES."""
    return float(
        np.mean(
            [
                compute_rouge(answer, title, case="lower")["1"].f
                for answer, (_, title) in zip(answers, STUDIES, strict=False)
            ]
        )
    )


@pytest.mark.slow
def test_drop_is_that_of_the_taught_answers(
    run_command: Run,
    taught: Path,
    studies_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents conditions that are not asked as named, and answers under the wrong one."""
    run_dialogue(
        run_command, taught, studies_file, tmp_path / "out", "--dialogue", "--phrasing_records", 1
    )
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text("utf-8"))
    rows = read_lines(tmp_path / "out.jsonl")
    conditions = figures["conditions"]
    chat = [f"after {k} {'turn' if k == 1 else 'turns'} of chat" for k in (1, 2, 3, 4)]
    names = ["canonical request", *chat, *BEGUN, "request drawn as in training"]
    assert list(conditions) == [*names, "every phrasing, mean"]
    assert [row["condition"] for row in rows[: 3 * len(names)]] == [
        name for name in names for _ in STUDIES
    ]
    assert len(rows) == 3 * len(names) + len(ALL_REQUESTS)

    def r1(name: str, text: str = "stripped", kind: str = "rouge") -> float:
        return float(conditions[name][kind][text]["rouge-1"]["mean"])

    titles = [title for _, title in STUDIES]
    canonical = [row for row in rows if row["condition"] == names[0]]
    assert [row["answer"] for row in canonical] == [
        LEAD_IN + titles[0],
        LEAD_IN + titles[1],
        titles[2],
    ]
    # 总结 is no lead-in.
    assert [row["prediction"] for row in canonical] == titles
    assert [row["lead_in"] for row in canonical] == [True, True, False]
    whole = mean_rouge_1([row["answer"] for row in canonical])
    assert r1(names[0]) == pytest.approx(1) and r1(names[0], "whole") == pytest.approx(whole)
    assert conditions[names[0]]["lead_in"]["rate"] == pytest.approx(2 / 3)
    assert conditions[names[0]]["drop"]["whole"]["rouge-l"] == {"mean": 0, "low": 0, "high": 0}

    assert [row["turns"] for row in rows[3:15]] == [k for k in (1, 2, 3, 4) for _ in STUDIES]
    after_chat = mean_rouge_1(["报告"] * 3)
    assert 0 < after_chat < 0.5
    assert r1(chat[1]) == pytest.approx(after_chat)
    assert r1(chat[1], kind="drop") == pytest.approx(1 - after_chat)
    assert r1(chat[1], "whole", "drop") == pytest.approx(whole - after_chat)

    # A lead-in that the prompt gives is a part of the whole answer.
    begun = [row for row in rows if row["condition"] == BEGUN[0]]
    assert [row["answer"] for row in begun] == [LEAD_INS[0] + title[1:] for title in titles]
    assert [row["prediction"] for row in begun] == [title[1:] for title in titles]
    assert conditions[BEGUN[0]]["lead_in"]["rate"] == 1

    other = figures["phrasings"][-1]
    assert other["request"] == OTHER_REQUEST.prefix.strip() + " {article}" + OTHER_REQUEST.suffix
    expected = mean_rouge_1(titles[:1]) - mean_rouge_1(["方法"])
    assert other["records"] == 1
    assert other["drop"]["stripped"]["rouge-1"]["mean"] == pytest.approx(expected)
    first = figures["phrasings"][0]
    assert first["drop"]["stripped"]["rouge-1"] == {"mean": 0, "low": 0, "high": 0}
    # Groups and the whole are means of their phrasings.
    means = [each["rouge"]["stripped"]["rouge-1"]["mean"] for each in figures["phrasings"]]
    assert r1("every phrasing, mean") == pytest.approx(np.mean(means))
    group = figures["templates"][-1]
    assert group["rouge"]["stripped"]["rouge-1"]["mean"] == pytest.approx(
        np.mean(means[-group["phrasings"] :])
    )
    drawn = [row["request"] for row in rows if row["condition"] == "request drawn as in training"]
    indices = sample_requests(0, 0, np.arange(3))
    assert drawn == [figures["phrasings"][index]["request"] for index in indices]

    assert figures["trivial"]["first20"]["rouge"]["stripped"]["rouge-1"]["mean"] == pytest.approx(
        mean_rouge_1([article for article, _ in STUDIES])
    )
    for row in rows:
        assert f"{row['request']}" in printed
    assert "fewer than 10 records" in printed and f"{1 - after_chat:+.4f}" in printed

    # The canonical answers are those of the plain command.
    run_dialogue(run_command, taught, studies_file, tmp_path / "plain")
    plain = json.loads((tmp_path / "plain.json").read_text("utf-8"))
    assert plain["scores"]["characters"]["rouge-1"]["f"]["mean"] == pytest.approx(r1(names[0]))
    assert [row["prediction"] for row in read_lines(tmp_path / "plain.jsonl")] == titles


@pytest.mark.slow
def test_without_lead_ins_nothing_is_removed(
    run_command: Run,
    taught: Path,
    studies_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents words taken from the answers of a model that was taught no lead-ins."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in taught.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    Template().save(folder)
    options = ("--dialogue", "--limit", 1, "--phrasing_records", 1, "--batch", 64)
    run_dialogue(run_command, folder, studies_file, tmp_path / "out", *options)
    figures = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert not set(BEGUN) & set(figures["conditions"]) and not figures["lead_ins_taught"]
    for condition in figures["conditions"].values():
        assert condition["rouge"]["whole"] == condition["rouge"]["stripped"]
    assert figures["conditions"]["canonical request"]["lead_in"]["rate"] == 1
    assert "was taught no lead-ins" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "first_chunk"),
    [
        (["--dialogue", "--limit", 1, "--batch", 30], 240),
        (["--limit", 10, "--batch", 1], 8),
    ],
    ids=["dialogue", "plain"],
)
def test_interrupted_command_goes_on(
    run_command: Run,
    taught: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[object],
    first_chunk: int,
) -> None:
    """Prevents answers that are generated again, and answers with other decoding options."""
    file = tmp_path / "test.tsv"
    file.write_text("".join(f"题目\t这是第{number}篇。\n" for number in range(10)), "utf-8")
    asked: list[TitleQuestion] = []
    max_asked: float = float("inf")

    def answer(*arguments: Any, **settings: Any) -> list[ModelAnswer]:
        if len(asked) >= max_asked:
            raise KeyboardInterrupt
        asked.extend(arguments[3])
        return answer_title_questions(*arguments, **settings)

    monkeypatch.setattr(rouge_measure, "answer_title_questions", answer)
    run_dialogue(run_command, taught, file, tmp_path / "whole", *options)
    num_questions = len(asked)
    asked.clear()
    max_asked = first_chunk
    with pytest.raises(KeyboardInterrupt):
        run_dialogue(run_command, taught, file, tmp_path / "out", *options)
    assert len(asked) == first_chunk
    partial = tmp_path / "out.json.partial"
    first_answers = partial.read_bytes()
    asked.clear()
    max_asked = float("inf")
    run_dialogue(run_command, taught, file, tmp_path / "out", *options)
    assert len(asked) == num_questions - first_chunk and not partial.exists()
    whole, resumed = (
        json.loads((tmp_path / f"{name}.json").read_text("utf-8")) for name in ("whole", "out")
    )
    assert {**whole, "made": 0} == {**resumed, "made": 0}
    assert read_lines(tmp_path / "whole.jsonl") == read_lines(tmp_path / "out.jsonl")

    assert f": {first_chunk} of {num_questions} were done before" in capsys.readouterr().out

    partial.write_bytes(first_answers)
    asked.clear()
    max_asked = 0
    options.append("--repetition_penalty")
    with pytest.raises(KeyboardInterrupt):
        run_dialogue(run_command, taught, file, tmp_path / "out", *options, 1.001)
    assert "were done before" not in capsys.readouterr().out


@pytest.mark.slow
def test_chat_before_the_request_takes_room_from_the_article(taught: Path) -> None:
    """Prevents prompts beyond the context, chat that is cut, and articles cut in silence."""
    model, tokenizer = weights.load_checkpoint(taught, torch.device("cpu"))
    article = "很长的文章。" * 100
    turns = CHAT_TURNS[:3]
    request_alone = Template().encode_prompt(tokenizer, turns, build_question(""))
    lead_in = tokenizer.encode(LEAD_IN)
    model.trained_context = len(request_alone) + len(lead_in) + 10 + 8
    questions = [
        TitleQuestion(article, turns=turns, lead_in=LEAD_IN),
        TitleQuestion("短。", turns=turns),
    ]
    answers = answer_title_questions(model, tokenizer, Template(), questions, max_new_tokens=8)
    assert [answer.is_truncated for answer in answers] == [True, False]
    shorter = tokenizer.decode(tokenizer.encode(article)[:10])
    model.trained_context = 256
    [expected] = answer_title_questions(
        model,
        tokenizer,
        Template(),
        [TitleQuestion(shorter, turns=turns, lead_in=LEAD_IN)],
        max_new_tokens=8,
    )
    assert answers[0].text == expected.text
    model.trained_context = 32
    with pytest.raises(UserError, match=r"after 3 turns of chat alone takes .* 24 are left"):
        answer_title_questions(model, tokenizer, Template(), questions, max_new_tokens=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dialogue"], "nothing to score"),
        (["--dialogue", "--score", "x"], "--dialogue asks a model: leave out --score"),
        (
            ["--baseline", "first20", "--source", "csl", "--input", CSL, "--dialogue"],
            "--dialogue asks a model: leave out --score and --baseline",
        ),
        (["--checkpoint", "x", "--phrasing_records", "3"], "--phrasing_records is for --dialogue"),
        (["--checkpoint", "x", "--dialogue", "--phrasing_records", "0"], "expected at least 1"),
    ],
)
def test_user_errors_are_one_line(run_command: Run, arguments: list[str], message: str) -> None:
    """Prevents options without effect."""
    with pytest.raises(UserError, match=message) as caught:
        run_command(rouge, *arguments)
    assert "\n" not in str(caught.value)
