"""Pretraining: resolve the options into the description of a run, and run it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from data.batching.collate import TextBatchLoader
from data.batching.text_rows import Mixture, TextPlan
from data.corpora.resolver import replaced_corpus_name, resolve_shard_set
from data.shards import ShardSet
from evaluate.metrics.language_model import WINDOW_TOKENS
from model.chat_template.template import TEMPLATE_FILE, load_template
from model.tokenizer.base import Tokenizer
from train import distributed
from train.cli import default_run_folder, parse_mixture
from train.options import PretrainOptions
from train.pretrain_eval import TextEvaluator
from train.run.initial_checkpoint import resolve_initial_checkpoint
from train.run.model_config import resolve_model_config
from train.run.spec import MixtureSet, RunSpec, TrainingPlan
from train.run.start import resolve_device_for_training, run_training, start
from train.run.summary import MAX_USEFUL_EPOCHS


@dataclass(frozen=True)
class TextData:
    """Text of one or more sets, cut into rows; see `train.run.spec.TrainingData`."""

    options: PretrainOptions
    sets: tuple[MixtureSet, ...]

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of an epoch, on average where weights are fractions."""
        return int(
            sum(each.weight * each.shards.load_split("train").num_tokens for each in self.sets)
        )

    @property
    def epochs(self) -> float:
        """Epochs of the whole run."""
        return self.options.max_steps * self.options.batch_tokens / self.tokens_per_epoch

    def plan(self, folder: Path) -> TrainingPlan:
        """See `TrainingData`."""
        options = self.options
        splits = tuple(each.shards.load_split("train") for each in self.sets)
        mixture = Mixture(splits, tuple(each.weight for each in self.sets))
        rows = TextPlan(mixture, seed=options.seed, length=options.sequence_length, folder=folder)
        batches = TextBatchLoader(
            rows,
            options.batch_tokens // options.sequence_length,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        num_tokens = options.max_steps * options.batch_tokens
        description = (
            f"{options.data}: {self.tokens_per_epoch:,} tokens an epoch; {num_tokens:,} to train "
            f"on ({self.epochs:.2f} epochs)"
        )
        return TrainingPlan(batches, options.max_steps, self.epochs, num_tokens, description)


def pretrain(options: PretrainOptions) -> None:
    """Train a new run, or the rest of an old one."""
    spec = resolve_run(options)
    run_training(start(spec), f"Measure it: make evaluate {shlex.quote(f'RUN={spec.folder}')}")


def resolve_run(options: PretrainOptions) -> RunSpec:
    """Resolve the options into the description of a run.

    Raises UserError if the options do not fit the base, the data, or each other.
    """
    device = resolve_device_for_training(options)
    folder = options.run or default_run_folder("pretrain", options.data)
    base = resolve_initial_checkpoint(options.base, options.tokenizer, folder)
    # Without a base a resumed run, too, resolves its data by name. Where the name stands for other
    # data now, the comparison with the record of the run says so.
    data_tokenizer = base.tokenizer_path if base.folder else options.tokenizer
    data = TextData(options, _open_text_sets(options, data_tokenizer))
    if data.tokens_per_epoch < 2:
        raise UserError(f"--data {options.data}: there is no text to train on")
    _check_substituted_sets(data)
    tokenizer = _load_shared_tokenizer(data)
    # A base with a chat template can still be chatted with after more pretraining.
    template = None
    if (
        base.folder is not None
        and base.source is not None
        and (base.source / TEMPLATE_FILE).is_file()
    ):
        template = load_template(base.source)
    splits = [each.shards.load_split("validation") for each in data.sets]
    return RunSpec(
        command="pretrain",
        options=options.model_copy(update={"base": base.folder}),
        folder=folder,
        device=device,
        base=base,
        tokenizer=tokenizer,
        template=template,
        model_config=resolve_model_config(
            options.model, base, tokenizer, max(options.sequence_length, WINDOW_TOKENS)
        ),
        model_name=str(base.folder or options.model.preset),
        lora=None,
        data=data,
        evaluator=TextEvaluator(options, tokenizer, splits),
        command_fingerprints={"max_steps": options.max_steps},
    )


def _open_text_sets(options: PretrainOptions, tokenizer: Path | None) -> tuple[MixtureSet, ...]:
    """Open the sets of --data, prepared with `tokenizer` where they are not yet."""
    names, weights = parse_mixture(options.data)

    def open_sets() -> list[ShardSet]:
        return [
            ShardSet.open(
                resolve_shard_set(name, tokenizer), checksums=distributed.is_main_process()
            )
            for name in names
        ]

    sets = distributed.main_process_first(open_sets)
    for name, shards in zip(names, sets, strict=True):
        if not shards.kind.is_text:
            raise UserError(
                f"--data {name}: holds {shards.kind.name}, not text to pretrain on: fine-tune on "
                f"it with python -m train.sft --data {name}"
            )
    return tuple(map(MixtureSet, names, sets, weights))


def _load_shared_tokenizer(data: TextData) -> Tokenizer:
    """Return the tokenizer of all sets. Raises UserError if they have different ones."""
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
    """Raise UserError if a long run would train on the shipped sample in place of a corpus."""
    replaced = (replaced_corpus_name(each.shards.folder) for each in data.sets)
    names = list(dict.fromkeys(name for name in replaced if name))
    if not names or data.epochs <= MAX_USEFUL_EPOCHS:
        return
    options = data.options
    prepare_commands = " && ".join(f"make data DATA={name}" for name in names)
    max_steps = max(1, int(options.max_steps * MAX_USEFUL_EPOCHS / data.epochs))
    raise UserError(
        f"--data {options.data}: {options.max_steps:,} steps are {data.epochs:,.0f} epochs of the "
        f"shipped sample, which is used because {' and '.join(names)} is not prepared: prepare it "
        f"first ({prepare_commands}), or train on the sample for fewer steps, at most --max_steps "
        f"{max_steps}"
    )
