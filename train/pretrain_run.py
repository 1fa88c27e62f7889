"""Pretraining: resolve the options into the `RunSpec` of a run, and train it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from data.batching.collate import TextBatchLoader
from data.batching.curriculum import CurriculumPlan, Ramp
from data.batching.text_rows import Mixture, TextPlan
from data.corpora.resolver import replaced_corpus_name
from data.kinds import preferences
from data.sequences import Sequences
from data.shards import ShardSet
from evaluate.metrics.language_model import WINDOW_TOKENS
from model.chat_template.template import TEMPLATE_FILE, load_template
from model.tokenizer.base import Tokenizer
from train import distributed
from train.cli import default_run_folder
from train.lr_schedule import first_decay_step
from train.objective import CrossEntropy
from train.options import PretrainOptions
from train.pretrain_eval import TextEvaluator
from train.run.initial_checkpoint import resolve_initial_checkpoint
from train.run.mixture import MixtureSet, open_mixture, open_named_set
from train.run.model_config import resolve_model_config
from train.run.spec import RunSpec, TrainingPlan
from train.run.start import resolve_device_for_training, run_training, start
from train.run.summary import MAX_USEFUL_EPOCHS


@dataclass(frozen=True)
class TextData:
    """Text of one or more sets, cut into rows. It implements `train.run.spec.TrainingData`.

    `tasks` are the sets of --curriculum.data, which are text, too.
    """

    options: PretrainOptions
    text: tuple[MixtureSet, ...]
    tasks: tuple[MixtureSet, ...] = ()

    @property
    def sets(self) -> tuple[MixtureSet, ...]:
        """The sets of --data, then those of --curriculum.data."""
        return self.text + self.tasks

    @property
    def epochs(self) -> float:
        """Number of epochs of --data in the whole run, usually not a whole number."""
        tokens = self.options.max_steps * self.options.batch_tokens - self.task_tokens
        return tokens / tokens_per_epoch(self.text)

    @property
    def task_epochs(self) -> float:
        """Number of epochs of --curriculum.data in the whole run."""
        return self.task_tokens / tokens_per_epoch(self.tasks) if self.tasks else 0.0

    @property
    def task_tokens(self) -> int:
        """Number of tokens of the whole run that are of --curriculum.data."""
        options = self.options
        if not self.tasks:
            return 0
        return self._ramp.rows_before(options.max_steps) * options.sequence_length

    @property
    def validation_splits(self) -> list[Sequences]:
        """The text held out from each set."""
        return [mixture_set.shards.load_text("validation") for mixture_set in self.sets]

    def plan(self, folder: Path) -> TrainingPlan:
        """Return the batches and the length of the run; epoch plans are stored in `folder`."""
        options = self.options
        row_plan: TextPlan | CurriculumPlan
        text_plan = row_plan = self._plan_text(self.text, folder)
        if self.tasks:
            task_plan = self._plan_text(self.tasks, folder / "curriculum")
            row_plan = CurriculumPlan(text_plan, task_plan, self._ramp)
        batches = TextBatchLoader(
            row_plan,
            options.rows_per_step,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        return TrainingPlan(
            batches,
            options.max_steps,
            max(self.epochs, self.task_epochs),
            options.max_steps * options.batch_tokens,
            self._describe(),
            document_parts=text_plan.document_parts(epoch=0),
        )

    @property
    def _ramp(self) -> Ramp:
        """How many rows of each step are of --curriculum.data."""
        options = self.options
        return Ramp(
            options.rows_per_step,
            start=first_decay_step(options.schedule, options.max_steps),
            stop=options.max_steps,
            share=options.curriculum.share,
        )

    def _plan_text(self, sets: tuple[MixtureSet, ...], folder: Path) -> TextPlan:
        """Return the rows of some sets; epoch plans are stored in `folder`."""
        splits = tuple(mixture_set.shards.load_text("train") for mixture_set in sets)
        mixture = Mixture(splits, tuple(mixture_set.weight for mixture_set in sets))
        options = self.options
        return TextPlan(mixture, seed=options.seed, length=options.sequence_length, folder=folder)

    def _describe(self) -> str:
        """Return the line of the summary about the data."""
        options = self.options
        num_held_out = sum(split.num_tokens for split in self.validation_splits)
        num_tokens = options.max_steps * options.batch_tokens
        line = (
            f"{options.data}: {tokens_per_epoch(self.text):,} tokens an epoch, {num_held_out:,} "
            f"held out; {num_tokens:,} to train on ({self.epochs:.2f} epochs)"
        )
        if not self.tasks:
            return line
        return (
            f"{line}; of these {self.task_tokens:,} of {options.curriculum.data} "
            f"({self.task_epochs:.2f} epochs): from step {self._ramp.start + 1:,} on, from 0% to "
            f"{options.curriculum.share:.0%} at the end"
        )


def tokens_per_epoch(sets: tuple[MixtureSet, ...]) -> int:
    """Return the training tokens of an epoch; the mean over epochs if a weight is fractional."""
    return int(
        sum(
            mixture_set.weight * mixture_set.shards.load_text("train").num_tokens
            for mixture_set in sets
        )
    )


def pretrain(options: PretrainOptions) -> int:
    """Train a new run, or resume the run in its directory; return the exit code."""
    spec = resolve_run(options)
    return run_training(
        start(spec), hint=f"Measure it: make evaluate {shlex.quote(f'RUN={spec.folder}')}"
    )


def resolve_run(options: PretrainOptions) -> RunSpec:
    """Resolve the options into the `RunSpec` of a run.

    Raises UserError if the options do not fit the base, the data, or each other.
    """
    device = resolve_device_for_training(options)
    folder = options.run or default_run_folder("pretrain", options.data)
    base = resolve_initial_checkpoint(options.base, options.tokenizer, folder)
    # Without a base, a resumed run looks up its data with the options of a new run. If the name in
    # --data stands for other data now, the comparison with run.json reports it.
    data_tokenizer = base.tokenizer_path if base.folder else options.tokenizer
    curriculum = options.curriculum
    tasks: tuple[MixtureSet, ...] = ()
    text = _open_text_sets("--data", options.data, data_tokenizer)
    if curriculum.data is not None:
        tasks = _open_text_sets(
            "--curriculum.data", curriculum.data, data_tokenizer, curriculum.share
        )
    data = TextData(options, text, tasks)
    _check_substituted_sets(data)
    tokenizer = _load_shared_tokenizer(data)
    # Keep the chat template of the base, so that one can still chat with the model.
    template = None
    if (
        base.folder is not None
        and base.config_folder is not None
        and (base.config_folder / TEMPLATE_FILE).is_file()
    ):
        template = load_template(base.config_folder)
    return RunSpec(
        command="pretrain",
        options=options.model_copy(update={"base": base.folder}),
        folder=folder,
        device=device,
        base=base,
        tokenizer=tokenizer,
        template=template,
        # Validation scores the text in windows of WINDOW_TOKENS.
        model_config=resolve_model_config(
            options.model,
            base,
            tokenizer,
            options.sequence_length,
            window=WINDOW_TOKENS,
        ),
        model_name=str(base.folder or options.model.preset),
        lora=None,
        data=data,
        objective=CrossEntropy(),
        evaluator=TextEvaluator(options, tokenizer, data.validation_splits),
        command_fingerprints={"max_steps": options.max_steps},
    )


def _open_text_sets(
    option: str, value: str, tokenizer: Path | None, final_share: float | None = None
) -> tuple[MixtureSet, ...]:
    """Open the shard sets that the value of an option names.

    Those that are not prepared yet are prepared with `tokenizer`. Raises UserError if a set is not
    text, or if there are fewer than the two tokens that make a target.
    """

    def open_set(_index: int, name: str) -> ShardSet:
        shards = open_named_set(name, tokenizer)
        if not shards.kind.is_text:
            data = shlex.quote(name)
            advice = f"fine-tune on it with python -m train.sft --data {data}"
            if shards.kind is preferences.KIND:
                advice = f"learn from it with python -m train.dpo --data {data}"
            raise UserError(
                f"{option} {name}: holds {shards.kind.name}, not text to pretrain on: {advice}"
            )
        return shards

    sets = open_mixture(value, open_set, final_share)
    if tokens_per_epoch(sets) < 2:
        raise UserError(f"{option} {value}: there is no text to train on")
    return sets


def _load_shared_tokenizer(data: TextData) -> Tokenizer:
    """Return the tokenizer of all sets. Raises UserError if the sets have different tokenizers."""
    first, *others = data.sets
    tokenizer = first.shards.load_tokenizer()
    for other in others:
        if other.shards.load_tokenizer().fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"--data: {other.name} was prepared with another tokenizer than {first.name}: "
                "prepare both with the same"
            )
    return tokenizer


def _check_substituted_sets(data: TextData) -> None:
    """Raise UserError if a long run would train on the shipped sample in place of a corpus.

    The sample replaces a corpus that is named in --data and not prepared; it is only large enough
    for short runs.
    """
    replaced_names = (replaced_corpus_name(mixture_set.shards.folder) for mixture_set in data.sets)
    # dict.fromkeys drops repeated names and keeps their order.
    names = list(dict.fromkeys(name for name in replaced_names if name))
    if not names or data.epochs <= MAX_USEFUL_EPOCHS:
        return
    options = data.options
    prepare_commands = " && ".join(f"make data DATA={name}" for name in names)
    # The number of steps that are MAX_USEFUL_EPOCHS of the sample.
    max_steps = max(1, int(options.max_steps * MAX_USEFUL_EPOCHS / data.epochs))
    raise UserError(
        f"--data {options.data}: {options.max_steps:,} steps are {data.epochs:,.0f} epochs of the "
        f"shipped sample, which is used because {' and '.join(names)} is not prepared: prepare it "
        f"first ({prepare_commands}), or train on the sample for fewer steps, at most --max_steps "
        f"{max_steps}"
    )
