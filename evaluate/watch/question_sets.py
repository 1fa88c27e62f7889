"""The fixed questions that every checkpoint of a run is asked."""

from pathlib import Path

from common.errors import UserError
from common.files import read_limited
from common.run_layout import list_steps, step_folder
from data.kinds import find_kind
from data.readers.encoding import describe_encoding
from data.shards import ShardSet, load_run_shard_sets
from data.sources import find_source
from evaluate.input_records import read_split_records, read_usable_records
from evaluate.kinds import find_evaluation
from evaluate.kinds.conversations import ChatQuestions, Question
from evaluate.kinds.documents import TextBeginnings
from evaluate.kinds.question_sets import QuestionSet
from evaluate.metrics.rouge_table import find_rouge_case
from evaluate.watch.options import WatchOptions
from model.chat_template.template import TEMPLATE_FILE

# Records of each set that are asked about without --limit.
DEFAULT_LIMIT = 32


def load_question_sets(options: WatchOptions) -> list[QuestionSet]:
    """Return the questions that the options name; by default those of the run's dev splits.

    Raises UserError if they cannot be read, or if there are none.
    """
    if options.questions:
        return [_read_question_file(options.questions, options.run, options.limit)]
    limit = options.limit or DEFAULT_LIMIT
    if not options.source:
        return _read_dev_splits(options.run, limit)
    source = find_source(options.source)
    kind = find_kind(source.kind)
    records = read_usable_records(options.source, options.input, kind, limit)
    label = f"{' '.join(options.input)} ({options.source})"
    question_set = find_evaluation(kind).question_set(label, records, source.rouge_case)
    if question_set is None:
        raise UserError(f"--input {' '.join(options.input)}: no record has a question to ask")
    return [question_set]


def _read_question_file(path: Path, run: Path, limit: int | None) -> QuestionSet:
    """Return the lines of a text file as questions or, for a pretraining run, as beginnings.

    White space around them, blank lines and repeated lines are left out.
    """
    try:
        lines = read_limited(path).removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise UserError(f"--questions {path} cannot be read: {error.strerror}") from None
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.decode("utf-8").strip())
        except UnicodeDecodeError:
            raise UserError(f"{path} line {number}: {describe_encoding(line, path)}") from None
    unique = tuple(dict.fromkeys(text for text in texts if text))[:limit]
    if not unique:
        raise UserError(f"--questions {path} has no questions: write one a line")
    # Pretraining saves no chat template.
    if any((step_folder(run, step) / TEMPLATE_FILE).is_file() for step in list_steps(run)):
        questions = tuple(Question((), text, answer="", passage="") for text in unique)
        return ChatQuestions(str(path), questions)
    return TextBeginnings(str(path), unique)


def _read_dev_splits(run: Path, limit: int) -> list[QuestionSet]:
    """Return the questions of the dev split of each set that a run was trained on.

    Text beside other kinds is replay, which has no questions.
    """
    advice = "name questions with --questions FILE, or records with --source NAME --input FILE"
    shard_sets = load_run_shard_sets(run, hint=advice)
    if not shard_sets:
        raise UserError(f"{run} was imported and has no data of its own: {advice}")
    question_sets = []
    for shards in [shards for shards in shard_sets if not shards.kind.is_text] or shard_sets:
        question_set = _read_dev_split(shards, limit)
        if question_set is None:
            print(f"{shards.folder} has nothing to ask in its validation split: left out")
        else:
            question_sets.append(question_set)
    if not question_sets:
        raise UserError(f"the data of {run} has no validation split to ask about: {advice}")
    return question_sets


def _read_dev_split(shards: ShardSet, limit: int) -> QuestionSet | None:
    """Return the questions of the dev split of a set, None if it has none."""
    records = read_split_records(shards, "validation", limit)
    label = f"{shards.folder} validation"
    return find_evaluation(shards.kind).question_set(label, records, find_rouge_case(shards))
