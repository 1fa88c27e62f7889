"""`python -m train.sft`: fine-tune on conversations and summaries, from a pretrained model or from nothing."""

import hashlib
import json
import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError, run_main
from common.files import read_json
from common.machine import resolve_device
from data.batching.collate import PackedBatches
from data.batching.examples import Examples, Phrasings, examples_of
from data.batching.packed_rows import PackedPlan
from data.shards import ShardSet
from model.checkpoint import locate, weights
from model.checkpoint.weights import save_tokenizer
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import Adapter, attach
from model.chat_template.template import Template, template_of
from model.tokenizer.base import Tokenizer
from train import distributed
from train.initial_checkpoint import REPLAY, Base, find_base, open_sets
from train.autotune import Choices, training_flops
from train.throughput import attended, row_length
from train.startup import (
    announce,
    facts_of,
    machine_choices,
    open_run,
    parse_mixture,
    read_options,
    run_name,
    train_through,
)
from train.trainer import Horizon, Trainer
from train.metrics_log import VALIDATION_LOSS, Measure
from train.options import SftOptions
from train.pretrain import shape
from train.run_dir import Run
from train.sft_eval import DevSet, evaluate

DESCRIPTION = """Fine-tune on conversations and summaries: the loss is on the answers and their <eos> only, several examples
share a row without seeing each other. A run that exists is continued from its newest checkpoint; Ctrl-C saves first."""
ROUGE = Measure("rouge", "rouge_1", higher=True)


def main() -> None:
    """Entry point."""
    with distributed.together():
        fine_tune(read_options(SftOptions, "sft", DESCRIPTION))


@dataclass(frozen=True)
class Mix:
    """The sets that a run trains on: their names, their training examples and weights, and what measures them."""

    names: list[str]
    sets: list[ShardSet]
    parts: list[Examples]
    weights: tuple[float, ...]
    dev: list[DevSet]

    @property
    def best(self) -> Measure:
        """By what a checkpoint is the best: ROUGE where there are summaries to answer."""
        summaries = (each for each in self.dev if each.shards.kind == "summaries")
        return ROUGE if any(each.fitting for each in summaries) else VALIDATION_LOSS


def sft_template(options: SftOptions, tokenizer: Tokenizer) -> Template:
    """The template of the model that is tuned. UserError for lead-ins where it has words of its own before answers."""
    template = replace(template_of(tokenizer), lead_ins=options.lead_ins)
    if options.lead_ins and not template.answered("x").startswith("x"):
        raise UserError("--lead_ins: this model's chat template puts words or a space before every answer, and a lead-in would "
                        "stand before those: leave lead-ins out")
    return template


def fine_tune(options: SftOptions) -> None:
    """Train as the options say, into a new run or the rest of an old one."""
    device = distributed.local_device(resolve_device(options.device))
    length = options.sequence_length
    rows = options.batch_tokens // length
    distributed.check_rows(rows, length)
    if distributed.size() > 1 and options.parallel == "fsdp" and options.adapter != "none":
        raise UserError("--parallel fsdp: divides weights that train, and an adapter's are few: use --parallel ddp")
    run = Run(options.run or run_name("sft", options.data))
    base = find_base(options, run.folder)
    options = options.model_copy(update={"base": base.folder or "none"})
    tokenizer = Tokenizer.load(base.tokenizer)
    template = sft_template(options, tokenizer)
    mix = _mix(options, run.folder, base, tokenizer, template)
    fingerprints = _fingerprints(options, base, tokenizer, template, mix)
    open_run(run, options, fingerprints, mix.sets, device)
    identity = hashlib.sha256(json.dumps([fingerprints[key] for key in ("data", "template")]).encode()).hexdigest()
    plan = PackedPlan(
        mix.parts, mix.weights, seed=options.seed, length=length, folder=run.folder / "plan", identity=identity)
    model, name = _model(options, run, base, tokenizer, device)
    choices = machine_choices(options, run, model, device)
    steps = options.max_steps or max(1, math.ceil((options.epochs or 1) * plan.rows_in(0) / rows))
    batches = PackedBatches(plan, rows, rank=distributed.rank(), world=distributed.size())
    _announce(options, run, model, choices, plan, mix, batches, steps, name)
    best = mix.best if options.evaluation.examples else VALIDATION_LOSS
    trainer = Trainer(
        options, Horizon(steps, options.evaluation.every, best, options.evaluation.patience), run, model, batches, choices,
        lambda into: _keep(tokenizer, template, into),
        lambda whole, step, log, final: evaluate(options, whole, tokenizer, template, mix.dev, step, log, final),
    )
    named = shlex.quote(f"RUN={run.folder}")
    train_through(trainer, f"Talk to it: make chat {named}; measure it: make evaluate {named}; for other programs: make export "
                           f"{named}")


def _mix(options: SftOptions, run: Path, base: Base, tokenizer: Tokenizer, template: Template) -> Mix:
    """What `--data` says, opened. UserError where it is nothing that a run could be trained on."""
    names, weights = parse_mixture(options.data)
    sets, length = open_sets(names, run, base), options.sequence_length
    # With lead-ins a title without one is not what the model was taught: its loss would say nothing.
    phrasings, asked = Phrasings(options.seed, options.lead_ins), Phrasings(None, options.lead_ins)
    parts = [examples_of(each.kind, each.split("train"), length, tokenizer, template, phrasings) for each in sets]
    _check_rows(options, base, tokenizer, parts)
    for name, part in zip(names, parts, strict=True):
        if name == REPLAY and not len(part.lengths(0)):
            raise UserError(f"--data {options.data}: there is nothing to replay: the base's pretraining text is shorter than "
                            f"one row of {length} tokens; leave replay out, or lower --sequence_length")
    dev = [
        DevSet(name, each, examples_of(each.kind, each.split("validation"), length, tokenizer, template, asked))
        for name, each in zip(names, sets, strict=True) if name != REPLAY
    ]
    return Mix(names, sets, parts, _replay_weights(names, parts, weights), dev)


def _fingerprints(options: SftOptions, base: Base, tokenizer: Tokenizer, template: Template, mix: Mix) -> dict[str, Any]:
    """What makes the run this run, see `Run.open`."""
    return {
        "data": [{"set": each.fingerprint, "weight": weight} for each, weight in zip(mix.sets, mix.weights, strict=True)],
        "tokenizer": tokenizer.fingerprint, "base": base.fingerprint, "template": template.__dict__,
        "epochs": options.epochs, "max_steps": options.max_steps, **facts_of(options),
        # With a base the shape is the base's, whatever the options say.
        **({"model": shape(options.model, tokenizer, options.sequence_length).to_hf()} if base.folder is None else {}),
        "adapter": {options.adapter: options.lora.model_dump(mode="json")} if options.adapter == "lora" else options.adapter,
    }


def _keep(tokenizer: Tokenizer, template: Template, folder: Path) -> None:
    """What a checkpoint needs besides numbers in order to be asked as it was trained."""
    save_tokenizer(tokenizer, folder)
    template.save(folder)


def _replay_weights(names: list[str], parts: list[Examples], weights: tuple[float, ...]) -> tuple[float, ...]:
    """`replay:0.1` is a tenth as many tokens as the rest has; the plan wants a share of the replayed text itself."""
    totals = [int(part.lengths(0).sum()) for part in parts]
    rest = sum(w * total for name, w, total in zip(names, weights, totals, strict=True) if name != REPLAY)
    return tuple(
        w * rest / max(total, 1) if name == REPLAY else w for name, w, total in zip(names, weights, totals, strict=True)
    )


def _model(options: SftOptions, run: Run, base: Base, tokenizer: Tokenizer, device: torch.device) -> tuple[Llama, str]:
    """The model to train, and what to call it; a continued run's weights are filled in later, from its checkpoint."""
    folder = run.start_folder if run.start is not None else base.folder
    if folder is not None:
        if options.adapter == "lora" and run.start is not None:
            folder = locate.base_of(folder)
        model, _ = weights.load(folder, device)
        name = str(base.folder or options.model.preset)
        if options.adapter == "lora":
            attach(model, Adapter(options.lora, folder, base.fingerprint), options.seed)
    else:
        config = shape(options.model, tokenizer, options.sequence_length)
        model, name = Llama(config).initialise(options.seed).to(device), options.model.preset
    model.context = options.sequence_length
    return model.train(), name


def _check_rows(options: SftOptions, base: Base, tokenizer: Tokenizer, parts: list[Examples]) -> None:
    """UserError where rows are too long for the model or too short for every example, before there is a run to repair."""
    length = options.sequence_length
    if base.folder is None:
        shape(options.model, tokenizer, length)
    else:
        # A continued run's own checkpoint says it: its base may be gone.
        file = base.tokenizer / locate.CONFIG
        context = LlamaConfig.from_hf(read_json(file), str(file)).max_position_embeddings
        if context < length:
            raise UserError(f"--sequence_length {length}: the model's context is {context} tokens")
    if not any(part.lengths(0).any() for part in parts):
        raise UserError(f"--data {options.data}: no example fits a row of {length} tokens: raise --sequence_length")


def _announce(
    options: SftOptions, run: Run, model: Llama, choices: Choices, plan: PackedPlan, mix: Mix,
    batches: PackedBatches, steps: int, name: str,
) -> None:
    counts = [part.lengths(0) for part in mix.parts]
    left_out, cut = sum(int((count == 0).sum()) for count in counts), sum(part.cut for part in mix.parts)
    examples = sum(len(count) for count in counts) - left_out
    rows = plan.rows_in(0)
    epochs = steps * (options.batch_tokens // options.sequence_length) / rows
    # Only what has a loss passes through the head, most of a small model: how much that is, the first step tells.
    [first] = batches.step(0, batches.rows_per_step)
    body, head = training_flops(model, row_length(first.tokens, attended(first)))
    announce(
        options, run, model, choices, name=name,
        data=f"{options.data}: {examples:,} examples, {cut:,} cut to {options.sequence_length} tokens, {left_out:,} too long "
             f"and left out; {plan.tokens_in(0):,} tokens an epoch in {rows:,} rows "
             f"({plan.tokens_in(0) / rows / options.sequence_length:.0%} full); {steps:,} steps "
             f"({epochs:.2f} epochs)",
        epochs=epochs, flops=plan.tokens_in(0) * epochs * (body + head * len(first.targets) / first.tokens),
        held_out=any(each.fitting for each in mix.dev),
    )


if __name__ == "__main__":
    run_main(main)
