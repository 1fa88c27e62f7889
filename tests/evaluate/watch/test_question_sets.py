"""The fixed questions of a run: its dev splits, native files, or a file of questions."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.files import write_checksummed_json
from common.options import validate_options
from data.prepare.options import PrepareOptions
from data.shards import ShardSet
from evaluate.kinds.conversations import EXACT, ChatQuestions, Question
from evaluate.kinds.documents import BEGINNING_CHARACTERS, TextBeginnings
from evaluate.kinds.summaries import SummaryQuestions
from evaluate.model_answer import ModelAnswer
from evaluate.watch.options import WatchOptions
from evaluate.watch.question_sets import load_question_sets
from tests.helpers.prepare import prepare_source

SAMPLES = {
    "csl": "summary/csl/dev.tsv",
    "redgpt": "sft/redgpt",
    "wikipedia": "pretrain/wikipedia.jsonl",
}


def make_options(run: Path, **values: Any) -> WatchOptions:
    return validate_options(WatchOptions, {"run": run, **values})


@pytest.fixture(scope="module")
def shard_sets(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardSet]:
    """Return small sets of the sample by their source."""
    folder = tmp_path_factory.mktemp("sets")
    options = PrepareOptions(workers=1, limit=60, validation=0.2)
    for source, path in SAMPLES.items():
        inputs = [str(root / "assets" / "sample" / path)]
        prepare_source(source, inputs, folder / source, root / "assets" / "tokenizer", options)
    return {source: ShardSet.open(folder / source) for source in SAMPLES}


def make_run(folder: Path, *sets: ShardSet) -> Path:
    """Write the run.json of a run that was trained on these sets."""
    fingerprints = [{"set": shards.fingerprint, "weight": 1.0} for shards in sets]
    record = {
        "shards": [str(shards.folder) for shards in sets],
        "fingerprints": {"data": fingerprints},
    }
    write_checksummed_json(folder / "run.json", record)
    return folder


@pytest.mark.slow
def test_questions_are_those_of_the_dev_splits(
    shard_sets: dict[str, ShardSet], tmp_path: Path
) -> None:
    """Prevents questions that the model was trained on, several of a record, and replayed text."""
    run = make_run(tmp_path / "run", *shard_sets.values())
    question_sets = load_question_sets(make_options(run))
    assert [type(question_set) for question_set in question_sets] == [
        SummaryQuestions,
        ChatQuestions,
    ]
    titles, chat = question_sets
    split = shard_sets["csl"].load_records("validation")
    assert list(titles.questions) == [split.record(index) for index in range(len(split))]
    conversations = shard_sets["redgpt"].load_records("validation")
    assert len(chat.questions) == len(conversations) > 1
    for index, question in enumerate(chat.questions):
        conversation = conversations.record(index)
        assert question.history == () and question.passage == conversation.reference
        assert question.question == conversation.turns[0].question
    assert [len(each.questions) for each in load_question_sets(make_options(run, limit=2))] == [
        2,
        2,
    ]


@pytest.mark.slow
def test_a_pretraining_run_continues_beginnings(
    shard_sets: dict[str, ShardSet], tmp_path: Path
) -> None:
    """Prevents beginnings with special ids or half a character, and whole texts as beginnings."""
    run = make_run(tmp_path / "run", shard_sets["wikipedia"])
    [question_set] = load_question_sets(make_options(run, limit=5))
    assert isinstance(question_set, TextBeginnings) and len(question_set.questions) == 5
    sequences = shard_sets["wikipedia"].load_text("validation")
    tokenizer = shard_sets["wikipedia"].load_tokenizer()
    for index, beginning in enumerate(question_set.questions):
        text = tokenizer.decode(sequences.tokens(index).tolist())
        assert len(beginning) == BEGINNING_CHARACTERS and text.strip().startswith(beginning)


def test_lines_of_a_file_are_questions(tmp_path: Path) -> None:
    """Prevents a byte order mark or line end in a question, and questions that count twice."""
    run = make_run(tmp_path / "run")
    file = tmp_path / "questions.txt"
    file.write_bytes("\ufeff 你好？\r\n\r\n山有多高？\r\n你好？".encode())
    [question_set] = load_question_sets(make_options(run, questions=file))
    # Without a chat template among its checkpoints, the run is one of pretraining.
    assert question_set == TextBeginnings(str(file), ("你好？", "山有多高？"))
    step = run / "checkpoints" / "step-00000005"
    step.mkdir(parents=True)
    (step / "template.json").write_text("{}")
    [question_set] = load_question_sets(make_options(run, questions=file, limit=1))
    assert question_set == ChatQuestions(str(file), (Question((), "你好？", "", ""),))
    assert question_set.references is None and EXACT not in question_set.measures


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no questions: write one a line"),
        ("\ufeff \n\n".encode(), "has no questions: write one a line"),
        ("你好吗？今天的天气真的很不错。\n".encode("gb18030"), "line 1: not UTF-8 but GBK"),
        (b"\xff\xff", "line 1: not UTF-8"),
        (None, "cannot be read: No such file or directory"),
    ],
    ids=str,
)
def test_bad_question_files_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    """Prevents a traceback, or questions of broken characters."""
    file = tmp_path / "questions.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_question_sets(make_options(make_run(tmp_path / "run"), questions=file))
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_without_data_needs_questions(tmp_path: Path) -> None:
    """Prevents a traceback for an imported run, and a silent choice between two kinds of input."""
    with pytest.raises(UserError, match=r"was imported and has no data of its own: .*--questions"):
        load_question_sets(make_options(make_run(tmp_path / "run")))
    for values, message in (
        ({"source": "csl"}, "--source and --input belong together"),
        ({"questions": "x", "source": "csl", "input": ["y"]}, "leave out --source and --input"),
    ):
        with pytest.raises(UserError, match=message):
            make_options(tmp_path, **values)


@pytest.mark.slow
def test_native_files_are_asked_about(root: Path, tmp_path: Path) -> None:
    """Prevents ROUGE in another letter case than that of published scores of the source."""
    run = make_run(tmp_path / "run")
    file = str(root / "assets" / "sample" / SAMPLES["csl"])
    [question_set] = load_question_sets(make_options(run, source="csl", input=[file], limit=3))
    assert isinstance(question_set, SummaryQuestions) and question_set.case == "lower"
    assert len(question_set.questions) == len(question_set.texts) == 3
    silent = tmp_path / "silent.jsonl"
    silent.write_text(json.dumps({"text": "短"}, ensure_ascii=False) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="no record has a question to ask"):
        load_question_sets(make_options(run, source="jsonl", input=[str(silent)]))


def answer(text: str, *, has_eos: bool = True) -> ModelAnswer:
    return ModelAnswer(text, len(text), has_eos=has_eos)


def test_answers_to_questions_are_scored() -> None:
    """Prevents scores of other answers, and white space that makes an answer wrong or longer."""
    questions = tuple(
        Question((), f"问题{number}", text, "文章")
        for number, text in enumerate(("河西", "东山", "东山"))
    )
    question_set = ChatQuestions("x", questions)
    answers = [answer(" 河西\n"), answer("东 山", has_eos=False), answer("山" * 20)]
    scores = question_set.score(answers)
    assert {key: values.tolist() for key, values in scores.items()} == {
        "exact": [1, 0, 0],
        "loops": [0, 0, 1],
        "stopped": [1, 0, 1],
        "characters": [2, 2, 20],
    }
    assert question_set.trivial_scores() == {"exact": "66.7 % (most frequent answer)"}
