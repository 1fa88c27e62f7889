"""`python -m evaluate.rouge` scores a checkpoint, a baseline or a file."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common.errors import UserError
from data.batching.summary_prompts import summary_prompt
from data.records import Summary
from data.sources.base import LetterCase
from evaluate import rouge
from evaluate.kinds.summaries import summarize_articles
from evaluate.measures import rouge as rouge_measure
from evaluate.metrics.rouge import compute_rouge
from evaluate.model_answer import ModelAnswer
from model.chat_template.template import Template
from model.checkpoint import weights
from model.decode.batch_generate import generate_batch
from model.decode.logits_processors import build_logits_processors
from model.tokenizer.base import Tokenizer
from tests.helpers import processes

Run = Callable[..., None]
CSL = "assets/sample/summary/csl/test.tsv"


def studies(root: Path, count: int) -> list[tuple[str, str]]:
    """Return (title, abstract) of the first lines of the test split of the sample."""
    lines = (root / CSL).read_text(encoding="utf-8").splitlines()[:count]
    return [(title, abstract) for title, abstract in (line.split("\t") for line in lines)]


@pytest.fixture(scope="module")
def taught(
    root: Path,
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return a checkpoint that knows three titles, and answers 方法 to the fourth abstract."""
    pairs = [
        (summary_prompt(tokenizer, Template(), abstract, max_tokens=192)[0], title)
        for title, abstract in studies(root, 4)
    ]
    return teach([*pairs[:3], (pairs[3][0], "方法")], tmp_path_factory.mktemp("rouge") / "model")


@pytest.mark.slow
def test_checkpoint_is_scored_on_full_answers(
    run_command: Run, taught: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents answers that are truncated or paired with wrong titles."""
    out, lines = tmp_path / "out.json", tmp_path / "lines.jsonl"
    run_command(
        rouge,
        "--checkpoint",
        taught,
        "--source",
        "csl",
        "--input",
        CSL,
        "--limit",
        4,
        "--device",
        "cpu",
        "--json",
        out,
        "--predictions",
        lines,
    )
    truth = studies(root, 4)
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert [(row["reference"], row["input"]) for row in rows] == truth
    assert [row["prediction"] for row in rows] == [*(title for title, _ in truth[:3]), "方法"]
    figures = json.loads(out.read_text(encoding="utf-8"))
    last = compute_rouge("方法", truth[3][0], case="lower")
    for kind, score in figures["scores"]["characters"].items():
        expected = last[kind.removeprefix("rouge-")]
        assert score["precision"]["mean"] == pytest.approx((3 + expected.precision) / 4)
        assert score["f"]["mean"] == pytest.approx((3 + expected.f) / 4)
        assert score["f"]["low"] < score["f"]["mean"] < score["f"]["high"]
    assert (figures["examples"], figures["stopped"], figures["trimmed"]) == (
        4,
        4,
        sum(row["trimmed"] for row in rows),
    )
    printed = capsys.readouterr().out
    assert "stopped by <eos>: 4 of 4 (100.0%)" in printed and "jieba words" in printed
    assert "loops: 0 of 4 (0.0%)" in printed
    # What needs no model, on the same articles: the difference is that of pairs.
    first20 = [
        compute_rouge(article.strip()[:20], title, case="lower")["1"].f for title, article in truth
    ]
    trivial = figures["trivial"]["characters"]["rouge-1"]["first20"]
    assert trivial["f"]["mean"] == pytest.approx(sum(first20) / 4)
    differences = [row_f(row) - score for row, score in zip(rows, first20, strict=True)]
    assert trivial["difference"]["mean"] == pytest.approx(sum(differences) / 4)
    assert min(differences) <= trivial["difference"]["low"] < trivial["difference"]["mean"]
    assert f"the model against it {trivial['difference']['mean']:+.4f} (" in printed
    assert f"{figures['scores']['characters']['rouge-1']['f']['mean']:.4f}" in printed
    worst = printed.split("worst, ROUGE-1 F on characters")[1]
    assert "answer  方法" in worst and truth[3][0][:50] in worst

    # A file of predictions scores as the run that wrote it.
    again = tmp_path / "again.json"
    run_command(rouge, "--score", lines, "--json", again)
    assert json.loads(again.read_text(encoding="utf-8"))["scores"] == figures["scores"]
    assert json.loads(again.read_text(encoding="utf-8"))["stopped"] == 4


def test_answers_that_loop_are_counted() -> None:
    """Prevents a score that hides answers without an end."""
    record = Summary(title="图像去噪", article="提出了一种图像去噪的方法。")
    answers = [
        ModelAnswer(text=text, num_tokens=4, has_eos=True) for text in ("图像去噪", "方法" * 20)
    ]
    loaded = SimpleNamespace(template=Template())
    rows = rouge_measure._prediction_rows(loaded, [record] * 2, answers)  # type: ignore[arg-type]
    assert [row["loops"] for row in rows] == [False, True]
    assert rouge_measure._count_flags(rows)["loops"] == 1


def row_f(row: dict[str, Any]) -> float:
    """Return ROUGE-1 F on characters of a line of predictions."""
    f_score: float = row["scores"]["characters"]["rouge-1"]["f"]
    return f_score


@pytest.mark.slow
def test_search_and_penalty_options_take_effect(
    run_command: Run, taught: Path, tmp_path: Path
) -> None:
    """Prevents options without effect."""
    out, lines = tmp_path / "out.json", tmp_path / "lines.jsonl"
    run_command(
        rouge,
        "--checkpoint",
        taught,
        "--source",
        "csl",
        "--input",
        CSL,
        "--limit",
        8,
        "--device",
        "cpu",
        "--beams",
        3,
        "--length_penalty",
        -2,
        "--repetition_penalty",
        1.5,
        "--no_repeat_ngram",
        1,
        "--max_new_tokens",
        12,
        "--json",
        out,
        "--predictions",
        lines,
    )
    model, tokenizer = weights.load_checkpoint(taught, torch.device("cpu"))
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    prompts = [
        summary_prompt(tokenizer, Template(), row["input"], max_tokens=256 - 12)[0] for row in rows
    ]
    options: dict[str, Any] = {
        "num_beams": 3,
        "length_penalty": -2,
        "processors": build_logits_processors(repetition_penalty=1.5, no_repeat_ngram=1),
    }
    expected = generate_batch(model, prompts, max_new_tokens=12, **options)
    for name in options:
        others = {key: value for key, value in options.items() if key != name}
        assert expected != generate_batch(model, prompts, max_new_tokens=12, **others), name
    assert [row["prediction"] for row in rows] == [tokenizer.decode(each.ids) for each in expected]
    assert [(row["stopped"], row["tokens"]) for row in rows] == [
        (each.reached_stop_id, len(each.ids)) for each in expected
    ]
    assert json.loads(out.read_text(encoding="utf-8"))["decoding"] == (
        "3 beams, length penalty -2, repetition penalty 1.5, no repeated 1-grams, at most 12 tokens"
    )


@pytest.mark.slow
def test_long_articles_are_truncated_and_counted(taught: Path) -> None:
    """Prevents prompts beyond the context, lost requests, and silent truncation."""
    model, tokenizer = weights.load_checkpoint(taught, torch.device("cpu"))
    articles = ["短文。", "很长的文章。" * 400]
    answers = summarize_articles(model, tokenizer, Template(), articles, max_new_tokens=8)
    assert [answer.is_truncated for answer in answers] == [False, True]
    shorter = tokenizer.decode(tokenizer.encode(articles[1])[:60])
    expected = summarize_articles(model, tokenizer, Template(), [shorter], max_new_tokens=8)
    room = len(summary_prompt(tokenizer, Template(), shorter, max_tokens=1000)[0])
    model.trained_context = room + 8
    answers = summarize_articles(model, tokenizer, Template(), articles, max_new_tokens=8)
    assert answers[1].text == expected[0].text
    # An answer gets a quarter of the context at most.
    model.trained_context = 8
    with pytest.raises(UserError, match=r"request for a title alone takes .* 6 are left"):
        summarize_articles(model, tokenizer, Template(), articles)


@pytest.mark.slow
def test_lead_in_is_stripped_only_for_models_trained_with_it(
    teach: Callable[..., Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents a lead-in in the score, or its removal from a model trained without."""
    prompt, _ = summary_prompt(tokenizer, Template(), "一篇文章。", max_tokens=200)
    model, _ = weights.load_checkpoint(
        teach([(prompt, "标题：小驼过河")], tmp_path / "model"), torch.device("cpu")
    )
    for lead_ins, expected in ((True, "小驼过河"), (False, "标题：小驼过河")):
        assert (
            summarize_articles(model, tokenizer, Template(lead_ins=lead_ins), ["一篇文章。"])[
                0
            ].text
            == expected
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first20", "first_sentence", "best_sentence"])
def test_baselines_need_no_model(run_command: Run, root: Path, tmp_path: Path, name: str) -> None:
    """Prevents baselines that differ from their definition."""
    out = tmp_path / "out.json"
    run_command(
        rouge,
        "--baseline",
        name,
        "--source",
        "csl",
        "--input",
        CSL,
        "--limit",
        60,
        "--json",
        out,
        "--checkpoint",
        "runs/x",
    )
    figures = json.loads(out.read_text(encoding="utf-8"))
    score = figures["scores"]["characters"]["rouge-1"]["f"]["mean"]
    if name == "first20":
        assert score == pytest.approx(
            sum(
                compute_rouge(text[:20], title, case="lower")["1"].f
                for title, text in studies(root, 60)
            )
            / 60
        )
    assert 0.05 < score < 0.5 and not {"stopped", "checkpoint", "step"} & figures.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "options", "case", "label"),
    [
        ("csl", [], "lower", "lower-cased"),
        ("lcsts", [], "kept", "case kept"),
        ("csl", ["--case", "kept"], "kept", "case kept"),
        ("lcsts", ["--case", "lower"], "lower", "lower-cased"),
    ],
)
def test_case_is_that_of_published_scores_of_the_source(
    run_command: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    options: list[str],
    case: LetterCase,
    label: str,
) -> None:
    """Prevents one letter case for all sources, and one that the result does not name."""
    article, title = "iphone六在香港遭遇爆炒,一天之内就售罄。", "iPhone六香港遭遇爆炒"
    field = {"csl": "content", "lcsts": "text"}[source]
    file, out, lines = (tmp_path / name for name in ("a.jsonl", "out.json", "lines.jsonl"))
    file.write_text(json.dumps({field: article, "summary": title}), encoding="utf-8")
    written = ["--json", out, "--predictions", lines]
    run_command(
        rouge, "--baseline", "first20", "--source", source, "--input", file, *written, *options
    )
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["case"] == case and label in figures["method"]
    assert figures["scores"]["characters"]["rouge-1"]["f"]["mean"] == pytest.approx(
        compute_rouge(article[:20], title, case=case)["1"].f
    )
    assert f": 1 examples, {label}, no model" in capsys.readouterr().out

    # A file of predictions scores as the run that wrote it, unless another case is asked for.
    again = tmp_path / "again.json"
    run_command(rouge, "--score", lines, "--json", again)
    assert json.loads(again.read_text(encoding="utf-8"))["scores"] == figures["scores"]
    assert "does not name one letter case" not in capsys.readouterr().out
    run_command(rouge, "--score", lines, "--json", again, "--case", "kept")
    assert json.loads(again.read_text(encoding="utf-8"))["case"] == "kept"


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases", [(None, None), ("kept", "lower"), ("kept", None), (["kept"],) * 2]
)
def test_file_without_one_case_is_scored_in_lower_case_and_says_so(
    run_command: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], cases: tuple[object, ...]
) -> None:
    """Prevents a guessed letter case that no line names."""
    file, out = tmp_path / "p.jsonl", tmp_path / "out.json"
    row = {"prediction": "iphone", "reference": "iPhone"}
    rows = [row if case is None else {**row, "case": case} for case in cases]
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    run_command(rouge, "--score", file, "--json", out)
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["case"] == "lower"
    assert figures["scores"]["characters"]["rouge-1"]["f"]["mean"] == pytest.approx(1)
    assert "p.jsonl does not name one letter case: lower-cased" in capsys.readouterr().out
    run_command(rouge, "--score", file, "--json", out, "--case", "kept")
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["scores"]["characters"]["rouge-1"]["f"]["mean"] == pytest.approx(5 / 6)
    assert "does not name one letter case" not in capsys.readouterr().out


@pytest.mark.slow
def test_empty_predictions_count_as_zero(run_command: Run, tmp_path: Path) -> None:
    """Prevents a crash on empty answers, and a mean without them."""
    file, out = tmp_path / "p.jsonl", tmp_path / "out.json"
    rows = [
        {"prediction": "", "reference": "小驼过河"},
        {"prediction": "小驼过河", "reference": "小驼过河"},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    run_command(rouge, "--score", file, "--json", out)
    for units in json.loads(out.read_text(encoding="utf-8"))["scores"].values():
        assert units["rouge-1"]["f"]["mean"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prediction": "甲", "reference": "乙"', "line 3: not valid JSON"),
        ('{"prediction": "甲"}', "line 3: has no string 'reference'"),
        ('{"prediction": null, "reference": "乙"}', "line 3: has no string 'prediction'"),
        ('["甲", "乙"]', "line 3: has no string 'prediction'"),
        # 甲乙 in GBK, as surrogateescape carries it.
        ('{"prediction": "\udcbc\udcd7\udcd2\udcd2"}', "line 3: not UTF-8 but GBK: .* iconv"),
    ],
)
def test_bad_line_error_names_the_line(
    run_command: Run, tmp_path: Path, line: str, message: str
) -> None:
    """Prevents lines that are silently left out of the score."""
    file = tmp_path / "p.jsonl"
    text = '{"prediction": "甲", "reference": "乙"}\n\n' + line + "\n"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"p.jsonl {message}"):
        run_command(rouge, "--score", file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to score"),
        (["--baseline", "first20"], "nothing to score"),
        (["--score", "x", "--checkpoint", "y"], "leave out --checkpoint"),
        (["--score", "x", "--input", "y"], "leave out --checkpoint"),
        (["--checkpoint", "x", "--source", "csl"], "belong together"),
        (["--checkpoint", "x", "--beams", "0"], "--beams: .0. is not valid"),
        (
            ["--baseline", "first20", "--source", "redgpt", "--input", CSL],
            "this measures summaries",
        ),
        (["--baseline", "first20", "--source", "csl", "--input", "no/such.tsv"], "no such file"),
    ],
)
def test_user_errors_are_one_line(run_command: Run, arguments: list[str], message: str) -> None:
    """Prevents a traceback, or results for other inputs."""
    with pytest.raises(UserError, match=message):
        run_command(rouge, *arguments)


@pytest.mark.slow
def test_rouge_command_end_to_end(tmp_path: Path) -> None:
    """Prevents a traceback in place of exit code 2."""
    (tmp_path / "p.jsonl").write_bytes(b'{"prediction": "\xff", "reference": "a"}\n')
    done = processes.run_command("evaluate.rouge", "--score", str(tmp_path / "p.jsonl"))
    assert (
        done.returncode == 2
        and "line 1: not UTF-8" in done.stderr
        and "Traceback" not in done.stderr
    ), done.stderr
