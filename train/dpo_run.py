"""Learning from preferences: resolve the options into the `RunSpec` of a run, and train it."""

import shlex
from functools import partial
from pathlib import Path

from common.errors import UserError
from data.batching.preference_rows import PreferenceBatchLoader, PreferenceExamples
from data.kinds import preferences
from data.mixture import REPLAY, parse_mixture
from data.shards import ShardSet
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer
from train import distributed
from train.cli import default_run_folder
from train.dpo_eval import HeldOutPairs, PreferenceEvaluator
from train.options import DpoOptions
from train.preference_objective import PreferenceObjective
from train.run.example_data import ExampleData
from train.run.mixture import MixtureSet, check_same_template, open_mixture, open_named_set
from train.run.spec import RunSpec
from train.run.start import resolve_device_for_training, run_training, start
from train.run.tuned_base import resolve_tuned_base


def learn_preferences(options: DpoOptions) -> int:
    """Train a new run, or resume the run in its directory; return the exit code."""
    spec = resolve_run(options)
    run_argument = shlex.quote(f"RUN={spec.folder}")
    return run_training(
        start(spec),
        hint="Is it better, or only longer? python -m evaluate.report "
        f"{shlex.quote(str(spec.folder))} --before {shlex.quote(str(spec.base.folder))}; "
        f"talk to it: make chat {run_argument}",
    )


def resolve_run(options: DpoOptions) -> RunSpec:
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
    folder = options.run or default_run_folder("dpo", options.data)
    base = resolve_tuned_base(options.base, folder, options.sequence_length)
    tokenizer, template = base.tokenizer, base.template
    sets = _open_sets(options.data, base.tokenizer_path, template)
    loss = options.dpo.resolve()
    changes: dict[str, object] = {
        "base": base.folder,
        "dpo": loss,
        "optimizer": options.optimizer.resolve(
            num_parameters=base.model_config.num_parameters, uses_lora=uses_lora
        ),
    }
    options = options.model_copy(update=changes)
    train = number_pairs(sets, "train", options.sequence_length, tokenizer, template)
    validation = number_pairs(sets, "validation", options.sequence_length, tokenizer, template)
    if not any(examples.lengths(epoch=0).any() for examples in train):
        raise UserError(
            f"--data {options.data}: no pair fits a row of {options.sequence_length} tokens, "
            "prompt and both answers together: raise --sequence_length"
        )
    objective = PreferenceObjective(
        loss,
        options.sequence_length,
        train,
        validation,
        identity={
            "data": [mixture_set.shards.fingerprint for mixture_set in sets],
            "base": base.checkpoint.fingerprint,
            "tokenizer": tokenizer.fingerprint,
            "template": template.__dict__,
            "sequence_length": options.sequence_length,
        },
    )
    held_out = [
        HeldOutPairs(mixture_set.name, examples)
        for mixture_set, examples in zip(sets, validation, strict=True)
    ]
    return RunSpec(
        command="dpo",
        options=options,
        folder=folder,
        device=device,
        base=base.checkpoint,
        tokenizer=tokenizer,
        template=template,
        model_config=base.model_config,
        model_name=str(base.folder),
        lora=options.lora if uses_lora else None,
        data=ExampleData(options, sets, template, train, PreferenceBatchLoader),
        objective=objective,
        evaluator=PreferenceEvaluator(options, tokenizer, objective, held_out),
        command_fingerprints={
            "template": template.__dict__,
            "epochs": options.epochs,
            "max_steps": options.max_steps,
            "adapter": options.adapter_fingerprint,
            "dpo": loss.model_dump(mode="json"),
        },
        quantize=options.quantization,
    )


def _open_sets(data: str, tokenizer: Path, template: Template) -> tuple[MixtureSet, ...]:
    """Open the shard sets of --data; prepare those that are not prepared yet with `tokenizer`.

    Raises UserError if one of them does not hold preferences.
    """
    names, _weights = parse_mixture(data)
    if REPLAY in names:
        raise UserError(
            "--data replay: is text, and has no pairs: leave it out; against forgetting, the loss "
            "holds on to the base (--dpo.beta), and to the chosen answers with --dpo.nll"
        )

    def open_set(_index: int, name: str) -> ShardSet:
        shards = open_named_set(name, tokenizer)
        if shards.kind is not preferences.KIND:
            command = "pretrain" if shards.kind.is_text else "sft"
            raise UserError(
                f"--data {name}: holds {shards.kind.name}, not pairs of a chosen and a rejected "
                f"answer: train on it with make {command} (python -m train.{command}), or make "
                "pairs (docs/preferences.md)"
            )
        return shards

    sets = open_mixture(data, open_set)
    for mixture_set in sets:
        check_same_template(mixture_set, tokenizer, template)
    return sets


def number_pairs(
    sets: tuple[MixtureSet, ...],
    split: str,
    length: int,
    tokenizer: Tokenizer,
    template: Template,
) -> list[PreferenceExamples]:
    """Return the pairs of a split of all sets, numbered through, for rows of `length` positions."""
    example_sets: list[PreferenceExamples] = []
    for mixture_set in sets:
        records = mixture_set.shards.load_records(split)
        encode = partial(preferences.KIND.encode_one, tokenizer, template, records)
        first_pair = sum(map(len, example_sets))
        example_sets.append(PreferenceExamples(records, length, encode, first_pair))
    return example_sets
