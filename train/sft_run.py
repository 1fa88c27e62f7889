"""Fine-tuning: resolve the options into the `RunSpec` of a run, and train it."""

import shlex
from dataclasses import replace
from pathlib import Path

from common.errors import UserError
from data.corpora.sample import SMALL_TOKENIZER
from data.kinds import summaries
from data.mixture import REPLAY, parse_mixture
from data.shards import ShardSet
from evaluate.metrics.rouge_table import find_rouge_case
from model.chat_template.template import Template, load_template
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer
from train import distributed
from train.cli import default_run_folder
from train.objective import CrossEntropy
from train.options import SftOptions
from train.replay import open_replay_set, scale_replay_weights
from train.run.default_base import resolve_newest_base
from train.run.example_data import ExampleData
from train.run.initial_checkpoint import InitialCheckpoint, resolve_initial_checkpoint
from train.run.mixture import MixtureSet, check_same_template, open_mixture, open_named_set
from train.run.model_config import resolve_model_config
from train.run.spec import RunSpec
from train.run.start import resolve_device_for_training, run_training, start
from train.sft_eval import AnswerEvaluator, DevSet


def fine_tune(options: SftOptions) -> int:
    """Train a new run, or resume the run in its directory; return the exit code."""
    spec = resolve_run(options)
    run_argument = shlex.quote(f"RUN={spec.folder}")
    return run_training(
        start(spec),
        hint=f"Talk to it: make chat {run_argument}; measure it: make evaluate {run_argument}; for "
        f"other programs: make export {run_argument}",
    )


def resolve_run(options: SftOptions) -> RunSpec:
    """Resolve the options into the `RunSpec` of a run.

    Raises UserError if the options do not fit the base, the data, or each other.
    """
    device = resolve_device_for_training(options)
    uses_lora = options.adapter == "lora"
    if distributed.world_size() > 1 and options.parallel == "fsdp" and uses_lora:
        raise UserError(
            "--parallel fsdp: divides weights that train, and an adapter's are few: use --parallel "
            "ddp"
        )
    folder = options.run or default_run_folder("sft", options.data)
    base = resolve_initial_checkpoint(_resolve_base_option(options), options.tokenizer, folder)
    # Without a base and without --tokenizer, a new run uses the tokenizer of the project.
    tokenizer_path = base.tokenizer_path or SMALL_TOKENIZER
    tokenizer = load_tokenizer(tokenizer_path)
    template = build_sft_template(options, tokenizer_path)
    model_config = resolve_model_config(options.model, base, tokenizer, options.sequence_length)
    sets = _open_sets(options.data, folder, base, tokenizer_path)
    for mixture_set in sets:
        check_same_template(mixture_set, tokenizer_path, template)
    has_summaries = any(mixture_set.shards.kind is summaries.KIND for mixture_set in sets)
    if has_summaries:
        # Titles are put together from several sentences, which heads that repeat a clause hinder.
        model_config = replace(model_config, reading_heads=False)
    changes: dict[str, object] = {
        "optimizer": options.optimizer.resolve(has_summaries=has_summaries)
    }
    if options.epochs == "auto":
        changes["epochs"] = 2.0 if has_summaries else 1.0
    options = options.model_copy(update=changes)
    data = build_data(options, sets, tokenizer, template)
    dev_sets = build_dev_sets(options, sets, tokenizer, template)
    return RunSpec(
        command="sft",
        # "none" rather than null, which would stand for the newest pretraining run on resume.
        options=options.model_copy(update={"base": base.folder or "none"}),
        folder=folder,
        device=device,
        base=base,
        tokenizer=tokenizer,
        template=template,
        model_config=model_config,
        model_name=str(base.folder or options.model.preset),
        lora=options.lora if uses_lora else None,
        data=data,
        objective=CrossEntropy(),
        evaluator=AnswerEvaluator(options, tokenizer, template, dev_sets),
        command_fingerprints={
            "template": template.__dict__,
            "epochs": options.epochs,
            "max_steps": options.max_steps,
            "adapter": options.adapter_fingerprint,
        },
        quantize=options.quantization,
    )


def _resolve_base_option(options: SftOptions) -> Path | None:
    """Return the path of --base, by default the newest pretraining run; None is no base.

    Raises UserError if there is no pretraining run to default to, or if it is unfinished: a script
    (`make pretrain && make sft`) or a user may take it for a finished one.
    """
    if options.base is not None:
        return None if options.base == "none" else options.base
    return resolve_newest_base(
        "pretrain",
        advice="make pretrain first, or start from random weights with --base none",
    )


def build_sft_template(options: SftOptions, tokenizer_path: Path) -> Template:
    """Return the chat template beside the tokenizer, with the lead-ins of --lead_ins.

    Raises UserError for lead-ins if the template puts text before answers.
    """
    template = replace(load_template(tokenizer_path), lead_ins=options.lead_ins)
    # Here "x" stands for any answer: the rendered text must begin with the answer itself.
    if options.lead_ins and not template.render_answer("x").startswith("x"):
        raise UserError(
            "--lead_ins: this model's chat template puts text or a space before every answer, and "
            "a lead-in would precede it: leave lead-ins out"
        )
    return template


def _open_sets(
    data: str, run: Path, base: InitialCheckpoint, tokenizer: Path
) -> tuple[MixtureSet, ...]:
    """Open the shard sets of --data; prepare those that are not prepared yet with `tokenizer`.

    `run` is the run directory, whose run.json records the replayed set. Raises UserError if --data
    names nothing but replay, or text.
    """
    names, _weights = parse_mixture(data)
    if set(names) == {REPLAY}:
        raise UserError("--data replay: has to be mixed into other data, such as csl+replay:0.1")

    def open_set(index: int, name: str) -> ShardSet:
        if name == REPLAY:
            return open_replay_set(run, base, index)
        return _open_set(name, tokenizer)

    return open_mixture(data, open_set)


def _open_set(name: str, tokenizer: Path) -> ShardSet:
    """Open one shard set of --data, prepared with `tokenizer`. Raises UserError if it is text."""
    shards = open_named_set(name, tokenizer)
    if shards.kind.is_text:
        raise UserError(
            f"--data {name}: is text without questions and answers: pretrain on it (python -m "
            f"train.pretrain --data {shlex.quote(name)}); the only text in a mixture is replay, "
            "the base's own"
        )
    return shards


def build_data(
    options: SftOptions, sets: tuple[MixtureSet, ...], tokenizer: Tokenizer, template: Template
) -> ExampleData:
    """Return the training examples of all sets.

    Raises UserError if no example fits a row, or if replay is shorter than one row.
    """
    length = options.sequence_length
    example_sets = []
    for mixture_set in sets:
        split = mixture_set.shards.load_split("train")
        example_sets.append(
            mixture_set.shards.examples(split, length, tokenizer, template, options.seed)
        )
    # An example that does not fit a row has length 0.
    if not any(examples.lengths(epoch=0).any() for examples in example_sets):
        raise UserError(
            f"--data {options.data}: no example fits a row of {length} tokens: raise "
            "--sequence_length"
        )
    for mixture_set, examples in zip(sets, example_sets, strict=True):
        # Replay has whole rows only: text shorter than a row gives no example at all.
        if mixture_set.name == REPLAY and not len(examples.lengths(epoch=0)):
            raise UserError(
                f"--data {options.data}: there is nothing to replay: the base's pretraining text "
                f"is shorter than a row of {length} tokens; leave replay out, or lower "
                "--sequence_length"
            )
    return ExampleData(options, scale_replay_weights(sets, example_sets), template, example_sets)


def build_dev_sets(
    options: SftOptions, sets: tuple[MixtureSet, ...], tokenizer: Tokenizer, template: Template
) -> list[DevSet]:
    """Return the validation split of every set except replay, as examples without randomness.

    Replay is left out: it is text, and has no answers to score.
    """
    dev_sets = []
    for mixture_set in sets:
        if mixture_set.name == REPLAY:
            continue
        split = mixture_set.shards.load_split("validation")
        # Without a seed nothing is drawn at random: all summaries get the same request.
        examples = mixture_set.shards.examples(
            split, options.sequence_length, tokenizer, template, seed=None
        )
        case = find_rouge_case(mixture_set.shards)
        dev_sets.append(DevSet(mixture_set.name, mixture_set.shards, examples, case))
    return dev_sets
