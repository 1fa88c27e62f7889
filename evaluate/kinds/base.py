"""The interface that a kind of records implements so that a checkpoint can be measured on it.

The defaults are those of a kind with answers: a loss on the answers of its records, and sample
answers during fine-tuning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from common.errors import UserError
from common.progress import progress_bar
from data.kinds.base import RecordKind
from data.records import Conversation, Record
from data.shards import ShardSet
from data.sources.base import LetterCase
from data.stored_records import RecordList, Records
from evaluate.input_records import read_usable_records
from evaluate.kinds.question_sets import QuestionSet
from evaluate.load_model import LoadedCheckpoint
from evaluate.metrics.language_model import LMScore, score_each_example, score_examples
from evaluate.model_answer import ModelAnswer
from model.chat_template.template import Template

# Length in tokens of the rows that answers are scored in, unless the model was trained on shorter
# ones.
MAX_ROW_TOKENS = 1024
# Invented rules, on fewer items than by default: some 20 seconds for a model of 3M parameters.
RULES_COMMAND = ("evaluate.rules", "--method", "likelihood", "--count", "60")
# Commands `python -m`, each a module and its options, by the names of their results files.
Commands = dict[str, list[str]]


@dataclass(frozen=True)
class CheckpointScore:
    """The score of a checkpoint on one text.

    `label` names the text, and `method` says how it was scored, such as "windows of 256". `counts`
    are further numbers for the results file, such as that of records left out.
    """

    label: str
    method: str
    score: LMScore
    counts: dict[str, int] = field(default_factory=dict)


class KindEvaluation:
    """How a checkpoint is measured on one kind of records; the other half is `RecordKind`."""

    kind: RecordKind[Any]
    # The reason in the error message if nothing was scored.
    nothing_to_score: ClassVar[str] = "no record whose answer fits a row"
    # Whether `generate_answers` is implemented.
    has_questions: ClassVar[bool] = False
    # The kind of the records about generated answers in the metrics of a run.
    answers_metric: ClassVar[str] = "answers"
    # The field of these records that selects the best checkpoint, higher is better. None: the
    # validation loss selects it.
    selection_key: ClassVar[str | None] = None

    def score_shards(
        self, loaded: LoadedCheckpoint, shards: ShardSet, split: str, limit: int | None
    ) -> CheckpointScore:
        """Score the answers of the first `limit` records of a split (None: all).

        Raises UserError if the set was prepared with another tokenizer or chat template than
        that of the checkpoint.
        """
        difference = None
        if shards.load_tokenizer().fingerprint != loaded.tokenizer.fingerprint:
            difference = "tokenizer"
        elif not shards.matches_template(loaded.template):
            difference = "chat template"
        if difference is not None:
            raise UserError(
                f"{shards.folder} was prepared with another {difference} than that of "
                f"{loaded.provenance['checkpoint']}: score the native files with --source NAME "
                "--input FILE"
            )
        all_records = shards.load_records(split)
        records = _take_records(all_records, limit) if limit else all_records
        return self.score_answers(loaded, records, f"{shards.folder} {split}")

    def score_files(
        self, loaded: LoadedCheckpoint, source: str, inputs: Sequence[str], limit: int | None
    ) -> CheckpointScore:
        """Score the answers of the first `limit` records of native files (None: all)."""
        records = read_usable_records(source, inputs, self.kind, limit)
        template = loaded.template
        encoded = self.kind.encode_records(loaded.tokenizer, template, records)
        return self.score_answers(loaded, encoded, " ".join(inputs))

    def score_answers(
        self, loaded: LoadedCheckpoint, records: Records[Any], label: str
    ) -> CheckpointScore:
        """Score the answers that fit a row; print how many records fit, do not fit, or are cut."""
        length = min(MAX_ROW_TOKENS, loaded.model.trained_context)
        # Without a seed nothing about an example is random, and all epochs are the same.
        examples = self.kind.examples(records, length, loaded.tokenizer, loaded.template, seed=None)
        is_fitting = examples.lengths(epoch=0) > 0
        num_fitting = int(is_fitting.sum())
        with progress_bar("scoring", num_fitting, "examples") as bar:
            score = score_examples(
                loaded.model,
                examples,
                length,
                loaded.tokenizer.characters_per_id,
                on_progress=bar.update,
            )
        counts = {
            "records": num_fitting,
            "left_out": len(is_fitting) - num_fitting,
            "cut": examples.num_truncated,
        }
        print(
            f"{counts['records']:,} records scored, {counts['left_out']:,} left out (no answer "
            f"fits a row of {length} tokens), {counts['cut']:,} cut to the row"
        )
        return CheckpointScore(label, f"answers only, rows of {length}", score, counts)

    def score_each(self, loaded: LoadedCheckpoint, records: Sequence[Any]) -> list[LMScore]:
        """Return the score of the answers of each record, of no tokens if none fits a row.

        The sum of the scores is that of `score_answers`.
        """
        length = min(MAX_ROW_TOKENS, loaded.model.trained_context)
        encoded = self.kind.encode_records(loaded.tokenizer, loaded.template, records)
        examples = self.kind.examples(encoded, length, loaded.tokenizer, loaded.template, seed=None)
        return score_each_example(loaded.model, examples, loaded.tokenizer.characters_per_id)

    def validation_commands(
        self,
        data_options: list[str],
        model_options: list[str],
        limit_options: list[str],
        *,
        is_fine_tuned: bool,
    ) -> Commands:
        """Return the commands that measure a run on the validation split of one of its sets.

        The options are arguments of the commands: `data_options` name the set, `model_options` the
        checkpoint, and `limit_options` the number of records.
        """
        arguments = [*model_options, *data_options, *limit_options]
        return {"perplexity": ["evaluate.perplexity", *arguments]}

    def test_commands(
        self, source: str, test_options: list[str], model_options: list[str], predictions: str
    ) -> Commands:
        """Return the commands that measure a run on the test split of its data; by default none.

        `test_options` are the arguments that name the test files, which are native files of
        `source` (in the format of the published dataset), and `model_options` are those that name
        the checkpoint. `predictions` is the path of a file in the run's results folder, where one
        command may write the answers of the model for the next one to score.
        """
        return {}

    def generated_commands(self, model_options: list[str]) -> Commands:
        """Return the commands that ask questions of their own; by default none.

        They fit a run with data of this kind, and are run once for all of its sets.
        """
        return {}

    def generate_answers(
        self,
        loaded: LoadedCheckpoint,
        records: Sequence[Record],
        *,
        max_new_tokens: int,
        batch: int,
    ) -> list[tuple[str, ModelAnswer | None]]:
        """Return each question about the records, or each article, with the model's greedy answer.

        An answer is None if the prompt leaves no room for one. Only kinds with `has_questions`
        implement this method. `batch` answers are decoded together.
        """
        raise NotImplementedError

    def as_conversation(self, record: Record) -> Conversation | None:
        """Return the questions about a record and the true answers, as a conversation.

        Returns None if the records have no questions, as by default.
        """
        return None

    def question_set(
        self, label: str, records: Sequence[Record], case: LetterCase
    ) -> QuestionSet | None:
        """Return one question about each record, none of them twice, to ask several checkpoints.

        Returns None if the records have none, as by default. `label` says where they are from, and
        `case` is the letter case that ROUGE of their source is counted in.
        """
        return None

    def strip_answer(self, template: Template, text: str) -> str:
        """Return an answer without a lead-in such as 总结如下：, if the kind has lead-ins."""
        return text


def _take_records(records: Records[Any], count: int) -> RecordList[Any]:
    """Return the first `count` records of a split, in memory."""
    indices = range(min(count, len(records)))
    return RecordList(
        [records.record(index) for index in indices],
        [records.spans(index).tolist() for index in indices],
    )
