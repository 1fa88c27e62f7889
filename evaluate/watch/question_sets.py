"""The fixed questions that every checkpoint of a run is asked, and what answers are scored by."""

import abc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from common.errors import UserError
from common.files import read_limited
from common.run_layout import list_steps, step_folder
from data.kinds import documents, find_kind
from data.readers.encoding import describe_encoding
from data.records import Conversation, Document, Record, Summary
from data.shards import ShardSet, load_run_shard_sets
from data.sources import find_source
from data.sources.base import LetterCase
from evaluate.input_records import read_usable_records
from evaluate.kinds.base import ModelAnswer
from evaluate.kinds.conversations import Question, answer_questions, extract_questions
from evaluate.kinds.summaries import summarize_articles
from evaluate.load_model import LoadedCheckpoint
from evaluate.metrics.baselines import first_sentence
from evaluate.metrics.repetition import is_looping
from evaluate.metrics.rouge import ROUGE_VARIANTS, compute_rouge
from evaluate.metrics.rouge_table import find_rouge_case
from evaluate.watch.options import WatchOptions
from model.chat_template.template import TEMPLATE_FILE
from model.decode.batch_generate import generate_batch
from model.decode.generate import max_prompt_tokens

# Records of each set that are asked about without --limit.
DEFAULT_LIMIT = 32
# Length of the beginning of a text that a model continues.
BEGINNING_CHARACTERS = 16
# No character of UTF-8 has more bytes, and no id stands for less than a byte.
_MAX_IDS_PER_CHARACTER = 4


@dataclass(frozen=True)
class Measure:
    """A score of single answers, which is averaged over the questions of a set."""

    key: str
    """Its name in results files."""
    label: str
    is_rate: bool = False
    """Whether the score of an answer is 0 or 1, so that the mean is the rate of such answers."""
    is_quality: bool = False
    """Whether its change for the worse counts as a decline of quality. Length and <eos> do not:
    answers may well become longer than the limit for a good reason."""
    higher_is_better: bool = True
    decimals: int = 4
    """Of a mean; rates are percentages with one."""

    def format_mean(self, mean: float) -> str:
        """Return a mean or rate as text, such as `41.2 %`."""
        return f"{100 * mean:.1f} %" if self.is_rate else f"{mean:.{self.decimals}f}"

    def format_change(self, change: float) -> str:
        """Return a difference of means or rates as text, such as `12.5 points`."""
        return f"{100 * change:.1f} points" if self.is_rate else f"{change:.{self.decimals}f}"

    def format_figure(self, figure: dict[str, float]) -> str:
        """Return a mean or rate with its interval, such as `41.2 % (38.9 – 43.5)`.

        `figure` has the keys `low`, `high`, and `rate` or `mean`.
        """
        if self.is_rate:
            return (
                f"{self.format_mean(figure['rate'])} "
                f"({100 * figure['low']:.1f} – {100 * figure['high']:.1f})"
            )
        low, high = (self.format_mean(figure[key]) for key in ("low", "high"))
        return f"{self.format_mean(figure['mean'])} ({low} – {high})"


LOOPS = Measure("loops", "looping answers", True, is_quality=True, higher_is_better=False)
STOPPED = Measure("stopped", "answers ended by <eos>", is_rate=True)
CHARACTERS = Measure("characters", "characters per answer", decimals=1)
EXACT = Measure("exact", "exact answers", is_rate=True, is_quality=True)
ROUGE = tuple(
    Measure(f"rouge_{variant}", f"ROUGE-{variant.upper()} F", is_quality=variant == "1")
    for variant in ROUGE_VARIANTS
)


@dataclass(frozen=True)
class QuestionSet(abc.ABC):
    """Questions of one kind from one place."""

    label: str
    """Where the questions are from."""
    questions: tuple[Any, ...]
    """All of one type, and none of them twice."""
    # What a question is called in the header of a table.
    question_name: ClassVar[str] = "question"

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Return the measures of `score`."""
        return (LOOPS, STOPPED, CHARACTERS)

    @property
    @abc.abstractmethod
    def texts(self) -> list[str]:
        """Return the text of each question, to show."""

    @property
    def references(self) -> list[str] | None:
        """Return the true answer to each question; None if they have none."""
        return None

    @abc.abstractmethod
    def generate(
        self, loaded: LoadedCheckpoint, chunk: Sequence[Any], max_new_tokens: int, batch: int
    ) -> Sequence[ModelAnswer | None]:
        """Return the greedy answer to each question of `chunk`; None if there is no room for one.

        `batch` answers are decoded together.
        """

    def score(self, answers: Sequence[ModelAnswer]) -> dict[str, np.ndarray]:
        """Return the scores of the answers to all questions by the key of the measure, float64[n].

        All but the lengths are between 0 and 1.
        """
        texts = [answer.text for answer in answers]
        return {
            LOOPS.key: np.array([is_looping(text) for text in texts], np.float64),
            STOPPED.key: np.array([answer.has_eos for answer in answers], np.float64),
            CHARACTERS.key: np.array([len("".join(text.split())) for text in texts], np.float64),
        }

    def trivial_scores(self) -> dict[str, str]:
        """Return what a method without a model reaches, by the key of the measure."""
        return {}


@dataclass(frozen=True)
class SummaryQuestions(QuestionSet):
    """Articles whose title is asked for."""

    questions: tuple[Summary, ...]
    case: LetterCase
    """The letter case that ROUGE is counted in."""
    question_name = "article"

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Add ROUGE."""
        return (*ROUGE, *super().measures)

    @property
    def texts(self) -> list[str]:
        """Return the articles."""
        return [record.article for record in self.questions]

    @property
    def references(self) -> list[str]:
        """Return the true titles."""
        return [record.title for record in self.questions]

    def generate(
        self, loaded: LoadedCheckpoint, chunk: Sequence[Any], max_new_tokens: int, batch: int
    ) -> Sequence[ModelAnswer | None]:
        """See `QuestionSet`. A long article is cut to the context."""
        return summarize_articles(
            loaded.model,
            loaded.tokenizer,
            loaded.template,
            [record.article for record in chunk],
            max_new_tokens=max_new_tokens,
            batch=batch,
        )

    def score(self, answers: Sequence[ModelAnswer]) -> dict[str, np.ndarray]:
        """Add ROUGE F on characters."""
        return super().score(answers) | self._rouge([answer.text for answer in answers])

    def trivial_scores(self) -> dict[str, str]:
        """Return the ROUGE of the first sentence of each article."""
        sentences = [
            first_sentence(record.article, record.title, self.case) for record in self.questions
        ]
        return {
            key: f"{values.mean():.4f} (first sentence)"
            for key, values in self._rouge(sentences).items()
        }

    def _rouge(self, predictions: Sequence[str]) -> dict[str, np.ndarray]:
        scores = [
            compute_rouge(prediction, reference, case=self.case)
            for prediction, reference in zip(predictions, self.references, strict=True)
        ]
        return {
            measure.key: np.array([score[variant].f for score in scores])
            for measure, variant in zip(ROUGE, ROUGE_VARIANTS, strict=True)
        }


@dataclass(frozen=True)
class ChatQuestions(QuestionSet):
    """Questions of conversations, or without a true answer."""

    questions: tuple[Question, ...]

    @property
    def _have_passages(self) -> bool:
        """Return whether exact answers can be expected: all questions are about a passage."""
        return all(question.passage and question.answer for question in self.questions)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Add exact answers, if the questions are about passages."""
        return (EXACT, *super().measures) if self._have_passages else super().measures

    @property
    def texts(self) -> list[str]:
        """Return the questions."""
        return [question.question for question in self.questions]

    @property
    def references(self) -> list[str] | None:
        """Return the true answers, if all questions have one."""
        answers = [question.answer.strip() for question in self.questions]
        return answers if all(answers) else None

    def generate(
        self, loaded: LoadedCheckpoint, chunk: Sequence[Any], max_new_tokens: int, batch: int
    ) -> Sequence[ModelAnswer | None]:
        """See `QuestionSet`."""
        return answer_questions(
            loaded.model,
            loaded.tokenizer,
            loaded.template,
            chunk,
            max_new_tokens=max_new_tokens,
            batch=batch,
        )

    def score(self, answers: Sequence[ModelAnswer]) -> dict[str, np.ndarray]:
        """Add exact answers: equal to the true one except for white space around it."""
        scores = super().score(answers)
        if self._have_passages:
            is_exact = [
                answer.text.strip() == question.answer.strip()
                for answer, question in zip(answers, self.questions, strict=True)
            ]
            scores[EXACT.key] = np.array(is_exact, np.float64)
        return scores

    def trivial_scores(self) -> dict[str, str]:
        """Return the rate of the most frequent true answer."""
        if not self._have_passages:
            return {}
        counts = Counter(question.answer.strip() for question in self.questions)
        [(_, count)] = counts.most_common(1)
        rate = count / len(self.questions)
        return {EXACT.key: f"{EXACT.format_mean(rate)} (most frequent answer)"}


@dataclass(frozen=True)
class TextBeginnings(QuestionSet):
    """Beginnings of texts, which the model continues."""

    questions: tuple[str, ...]
    question_name = "beginning"

    @property
    def texts(self) -> list[str]:
        """Return the beginnings."""
        return list(self.questions)

    def generate(
        self, loaded: LoadedCheckpoint, chunk: Sequence[Any], max_new_tokens: int, batch: int
    ) -> Sequence[ModelAnswer | None]:
        """See `QuestionSet`."""
        prompts = [documents.KIND.encode_prompt(loaded.tokenizer, text) for text in chunk]
        max_tokens = max_prompt_tokens(loaded.model.trained_context, max_new_tokens)
        fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= max_tokens]
        decoded = generate_batch(
            loaded.model,
            [prompts[index] for index in fitting],
            max_new_tokens=max_new_tokens,
            batch_size=batch,
        )
        answers: list[ModelAnswer | None] = [None] * len(prompts)
        for index, answer in zip(fitting, decoded, strict=True):
            answers[index] = ModelAnswer(
                loaded.tokenizer.decode(answer.ids),
                len(answer.ids),
                has_eos=answer.reached_stop_id,
            )
        return answers


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
    question_set = _ask_about(label, records, source.rouge_case)
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
    label = f"{shards.folder} validation"
    records: list[Record] = []
    if shards.kind.is_text:
        sequences = shards.load_text("validation")
        tokenizer = shards.load_tokenizer()
        # One more id for `<bos>`, and one more character, by which a text is known to go on.
        num_ids = 1 + _MAX_IDS_PER_CHARACTER * (BEGINNING_CHARACTERS + 1)
        for index in range(min(limit, len(sequences))):
            ids = sequences.tokens(index, 0, num_ids)
            records.append(Document(tokenizer.decode(ids.tolist())))
    else:
        split = shards.load_records("validation")
        records += [split.record(index) for index in range(min(limit, len(split)))]
    return _ask_about(label, records, find_rouge_case(shards))


def _ask_about(label: str, records: Sequence[Record], case: LetterCase) -> QuestionSet | None:
    """Return one question about each record, none of them twice; None if there is nothing to ask.

    Of a conversation, that is its first question: a later one depends on it.
    """
    articles = dict.fromkeys(record for record in records if isinstance(record, Summary))
    if articles:
        return SummaryQuestions(label, tuple(articles), case)
    questions = dict.fromkeys(
        question
        for record in records
        if isinstance(record, Conversation)
        for question in extract_questions(record)[:1]
    )
    if questions:
        return ChatQuestions(label, tuple(questions))
    texts = [record.text.strip() for record in records if isinstance(record, Document)]
    beginnings = dict.fromkeys(
        text[:BEGINNING_CHARACTERS] for text in texts if len(text) > BEGINNING_CHARACTERS
    )
    return TextBeginnings(label, tuple(beginnings)) if beginnings else None
