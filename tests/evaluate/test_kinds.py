"""A record kind is one file in `data.kinds` and one in `evaluate.kinds`."""

import ast
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import data.kinds
import evaluate.kinds
from common.errors import UserError
from common.metrics_file import read_metrics
from data.kinds import find_kind, kind_names
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import ShardSet
from data.sources import SOURCES
from data.sources.base import Source
from data.tokenizer.texts import read_texts
from evaluate import __main__ as evaluate_command
from evaluate import measure_run, perplexity, repetition
from evaluate.kinds import find_evaluation
from evaluate.report.run_reader import read_run
from model.tokenizer.base import Tokenizer
from train import sft

KINDS = ("documents", "conversations", "summaries", "preferences")
RECORD_CLASSES = ("Document", "Conversation", "Summary", "Preference")
# The half in `data` of a throw-away kind: sentences with a mistake, and the same without it.
DATA_HALF = """
import json
from dataclasses import dataclass

from data.kinds.base import RecordKind
from data.records import Record, SkippedRecord


@dataclass(frozen=True, slots=True)
class Correction(Record):
    wrong: str
    right: str

    def plain_text(self):
        return f"{self.wrong}\\n{self.right}"


def parse_correction(row):
    return Correction(**json.loads(row))


class CorrectionKind(RecordKind):
    name = "corrections"
    record_type = Correction
    chat_hint = "请给一个有错的句子"

    def clean(self, record, options):
        return SkippedRecord("no mistake") if record.wrong == record.right else record

    def encode(self, tokenizer, template, records):
        segments = [template.segments([(record.wrong, record.right)]) for record in records]
        return template.encode_batch(tokenizer, segments, num_threads=1)


KIND = CorrectionKind()
"""
EVALUATE_HALF = """
from data.kinds.corrections import KIND
from evaluate.kinds.base import KindEvaluation
from evaluate.model_answer import ModelAnswer


class CorrectionEvaluation(KindEvaluation):
    kind = KIND
    has_questions = True
    answers_metric = "corrections"
    selection_key = "exact"

    def test_commands(self, source, test_options, model_options, predictions):
        return {"repetition": ["evaluate.repetition", *model_options, *test_options]}

    def generate_answers(self, loaded, records, *, max_new_tokens, batch):
        return [(record.wrong, ModelAnswer("改好了", 3, True)) for record in records]

    def strip_answer(self, template, text):
        return text.strip()


EVALUATION = CorrectionEvaluation()
"""
SENTENCES = [f"第{number}天，小驼在河边等船，船来了他就上船。" for number in range(150)]


@pytest.fixture
def corrections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Add the kind `corrections`, and a source that has records of it."""
    for package, half in ((data.kinds, DATA_HALF), (evaluate.kinds, EVALUATE_HALF)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "corrections.py").write_text(half, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    importlib.invalidate_caches()
    module = importlib.import_module("data.kinds.corrections")
    source = Source(
        name="corrections",
        description="sentences and their corrections",
        parse=module.parse_correction,
        kind="corrections",
    )
    monkeypatch.setitem(SOURCES, "corrections", source)
    yield module
    for package in (data.kinds, evaluate.kinds):
        sys.modules.pop(f"{package.__name__}.corrections", None)
        if hasattr(package, "corrections"):
            delattr(package, "corrections")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """150 corrections; every tenth has nothing to correct."""
    path = tmp_path / "corrections.jsonl"
    rows = []
    for number, right in enumerate(SENTENCES):
        wrong = right.replace("船来", "来船") if number % 10 else right
        rows.append({"wrong": wrong, "right": right})
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_kind_is_two_files(
    corrections: ModuleType,
    corpus: Path,
    root: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a stage that knows kinds by name: a new one goes from raw records to a report."""
    # Preparation, with the kind's cleaning and template.
    folder = tmp_path / "set"
    group = SourceGroup("corrections", (str(corpus),))
    report = prepare_groups(
        [group], folder, root / "assets/tokenizer", PrepareOptions(workers=1, validation=0.1)
    )
    assert report["kind"] == "corrections" and report["dropped"] == {"no mistake": 15}
    shards = ShardSet.open(folder)
    assert shards.kind is find_kind("corrections") and (folder / "template.json").is_file()
    assert next(read_texts([(SOURCES["corrections"], corpus)])) == f"{SENTENCES[0]}\n{SENTENCES[0]}"

    # Training, with its examples, its dev answers and its choice of the best checkpoint.
    run = tmp_path / "run"
    run_command(
        sft,
        *(
            "--data",
            folder,
            "--run",
            run,
            "--base",
            "none",
            "--tokenizer",
            root / "assets/tokenizer",
        ),
        *("--max_steps", 2, "--sequence_length", 256, "--batch_tokens", 512, "--device", "cpu"),
        *(
            "--model.hidden_size",
            16,
            "--model.num_hidden_layers",
            1,
            "--model.num_attention_heads",
            2,
        ),
        *("--evaluation.every", 2, "--evaluation.examples", 2, "--evaluation.max_new_tokens", 2),
    )
    metrics = read_metrics(run)
    assert [each["exact"] for each in metrics if each["kind"] == "corrections"] == [0.0]
    assert any(each["kind"] == "validation" for each in metrics)

    # Its loss, on native files and on a split.
    scores = []
    for text in (
        ("--source", "corrections", "--input", corpus),
        ("--data", folder, "--split", "train"),
    ):
        out = tmp_path / "out.json"
        run_command(perplexity, "--checkpoint", run, *text, "--device", "cpu", "--json", out)
        scores.append(json.loads(out.read_text(encoding="utf-8")))
    assert scores[0]["records"] == 150 > scores[1]["records"] > 100
    assert scores[0]["tokens"] == sum(len(tokenizer.encode(text)) + 1 for text in SENTENCES)
    assert [score["measured"] for score in scores] == ["answers only, rows of 256"] * 2

    # Its answers, and the commands that fit a run.
    run_command(
        repetition,
        *("--checkpoint", run, "--source", "corrections", "--input", corpus, "--limit", 20),
        *("--device", "cpu", "--predictions", predictions := tmp_path / "answers.jsonl"),
    )
    assert predictions.read_text(encoding="utf-8").count("改好了") == 20
    commands: list[list[str]] = []
    monkeypatch.setattr(measure_run, "_run_command", commands.append)
    monkeypatch.setattr(measure_run, "find_test_split", lambda _: ("corrections", [corpus]))
    run_command(evaluate_command, "--checkpoint", run)
    assert [command[0] for command in commands] == [
        "evaluate.perplexity",
        "evaluate.repetition",
        "evaluate.report",
    ]
    report = read_run(run)
    (kind,) = (kind for kind, key in report.list_metrics() if key == "exact")
    description = report.describe_eval_data(kind)
    assert description is not None and "greedy answers to the first 2 records" in description


def test_every_kind_has_both_halves() -> None:
    """Prevents a kind that can be trained on and not be measured, or a half under another name."""
    assert set(KINDS) <= set(kind_names())
    for name in kind_names():
        kind = find_kind(name)
        assert kind.name == name and find_evaluation(kind).kind is kind
    assert {source.kind for source in SOURCES.values()} <= set(kind_names())


def test_a_missing_half_is_reported(corrections: ModuleType, tmp_path: Path) -> None:
    """Prevents a traceback of the import system for a kind without its second file."""
    with pytest.raises(UserError, match="unknown kind of records 'nothing'"):
        find_kind("nothing")
    (tmp_path / "evaluate.kinds" / "corrections.py").unlink()
    with pytest.raises(UserError, match=r"no evaluate\.kinds\.corrections"):
        find_evaluation(find_kind("corrections"))


def kind_dispatches(code: str) -> list[str]:
    """Return expressions that compare with the name of a kind or ask for a record's class."""
    dispatches = []
    for node in ast.walk(ast.parse(code)):
        is_type_check = isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
        if (
            isinstance(node, ast.Compare)
            and any(f"'{name}'" in ast.unparse(node) for name in KINDS)
        ) or (is_type_check and any(name in ast.unparse(node) for name in RECORD_CLASSES)):
            dispatches.append(ast.unparse(node))
    return dispatches


@pytest.mark.slow
def test_no_other_module_asks_for_the_kind(root: Path) -> None:
    """Prevents `if kind == "summaries"`: a new kind would have to be added there too."""
    assert len(kind_dispatches("x.kind != 'summaries' or isinstance(x, (Document, str))")) == 2
    checked = 0
    for package in ("common", "data", "train", "evaluate", "chat"):
        for path in (root / package).rglob("*.py"):
            if path.parent.name not in ("kinds", "sources"):
                checked += 1
                assert not kind_dispatches(path.read_text(encoding="utf-8")), path
    assert checked > 80
