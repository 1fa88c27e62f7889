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
from data.batching.collate import PackedBatchLoader
from data.batching.examples import Examples, RequestSampling, build_examples
from data.batching.packed_rows import PackedPlan
from data.shards import ShardSet
from model.chat_template.template import TEMPLATE_FILE, Template, load_template
from model.checkpoint import locate, weights
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import Adapter, attach_adapter
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer
from train import distributed
from train.autotune import ComputePlan, training_flops_per_token
from train.initial_checkpoint import (
    REPLAY,
    InitialCheckpoint,
    open_shard_sets,
    resolve_initial_checkpoint,
)
from train.metrics_log import VALIDATION_LOSS, SelectionMetric
from train.options import SftOptions
from train.pretrain import build_model_config
from train.run_dir import RunDir
from train.sft_eval import DevSet, evaluate
from train.startup import (
    build_common_fingerprints,
    default_run_folder,
    open_run,
    parse_mixture,
    parse_train_options,
    print_run_summary,
    resolve_compute_plan,
    run_training,
)
from train.throughput import count_attention_pairs, effective_row_length
from train.trainer import RunLength, Trainer

DESCRIPTION = """Fine-tune on conversations and summaries: the loss is on the answers and their <eos> only, several examples
share a row without seeing each other. A run that exists is continued from its newest checkpoint; Ctrl-C saves first."""
ROUGE_METRIC = SelectionMetric("rouge", "rouge_1", higher_is_better=True)


def main() -> None:
    """Entry point."""
    with distributed.distributed_session():
        fine_tune(parse_train_options(SftOptions, "sft", DESCRIPTION))


@dataclass(frozen=True)
class SftMixture:
    """The sets that a run trains on: their names, their training examples and weights, and what measures them."""

    names: list[str]
    shard_sets: list[ShardSet]
    train_examples: list[Examples]
    weights: tuple[float, ...]
    dev_sets: list[DevSet]

    @property
    def best_metric(self) -> SelectionMetric:
        """By what a checkpoint is the best: ROUGE where there are summaries to answer."""
        summaries = (each for each in self.dev_sets if each.shards.kind == "summaries")
        return ROUGE_METRIC if any(each.num_fitting for each in summaries) else VALIDATION_LOSS


def build_sft_template(options: SftOptions, tokenizer_path: Path) -> Template:
    """The template of the model that is tuned. UserError for lead-ins where it has words of its own before answers."""
    template = replace(load_template(tokenizer_path), lead_ins=options.lead_ins)
    if options.lead_ins and not template.render_answer("x").startswith("x"):
        raise UserError(
            "--lead_ins: this model's chat template puts words or a space before every answer, and a lead-in would "
            "stand before those: leave lead-ins out"
        )
    return template


def fine_tune(options: SftOptions) -> None:
    """Train as the options say, into a new run or the rest of an old one."""
    device = distributed.local_device(resolve_device(options.device))
    length = options.sequence_length
    rows = options.batch_tokens // length
    distributed.check_rows_divisible(rows, length)
    if distributed.world_size() > 1 and options.parallel == "fsdp" and options.adapter != "none":
        raise UserError(
            "--parallel fsdp: divides weights that train, and an adapter's are few: use --parallel ddp"
        )
    run = RunDir(options.run or default_run_folder("sft", options.data))
    base = resolve_initial_checkpoint(options, run.folder)
    options = options.model_copy(update={"base": base.folder or "none"})
    tokenizer = load_tokenizer(base.tokenizer_path)
    template = build_sft_template(options, base.tokenizer_path)
    mixture = _open_mixture(options, run.folder, base, tokenizer, template)
    fingerprints = _build_fingerprints(options, base, tokenizer, template, mixture)
    open_run(run, options, fingerprints, mixture.shard_sets, device)
    identity = hashlib.sha256(
        json.dumps([fingerprints[key] for key in ("data", "template")]).encode()
    ).hexdigest()
    plan = PackedPlan(
        mixture.train_examples,
        mixture.weights,
        seed=options.seed,
        length=length,
        folder=run.folder / "plan",
        identity=identity,
    )
    model, name = _build_model(options, run, base, tokenizer, device)
    compute_plan = resolve_compute_plan(options, run, model, device)
    max_steps = options.max_steps or max(
        1, math.ceil((options.epochs or 1) * plan.num_rows(0) / rows)
    )
    batches = PackedBatchLoader(
        plan, rows, rank=distributed.rank(), world_size=distributed.world_size()
    )
    _print_sft_summary(options, run, model, compute_plan, plan, mixture, batches, max_steps, name)
    best = mixture.best_metric if options.evaluation.examples else VALIDATION_LOSS
    trainer = Trainer(
        options,
        RunLength(max_steps, options.evaluation.every, best, options.evaluation.patience),
        run,
        model,
        batches,
        compute_plan,
        lambda into: _save_extras(tokenizer, template, into),
        lambda whole, step, log, final: evaluate(
            options, whole, tokenizer, template, mixture.dev_sets, step, log, final
        ),
    )
    named = shlex.quote(f"RUN={run.folder}")
    run_training(
        trainer,
        f"Talk to it: make chat {named}; measure it: make evaluate {named}; for other programs: make export "
        f"{named}",
    )


def _open_mixture(
    options: SftOptions,
    run: Path,
    base: InitialCheckpoint,
    tokenizer: Tokenizer,
    template: Template,
) -> SftMixture:
    """What `--data` says, opened. UserError where it is nothing that a run could be trained on."""
    names, weights = parse_mixture(options.data)
    sets, length = open_shard_sets(names, run, base), options.sequence_length
    for name, shards in zip(names, sets, strict=True):
        _check_same_template(name, shards, base, template)
    # With lead-ins a title without one is not what the model was taught: its loss would say nothing.
    phrasings, eval_phrasings = (
        RequestSampling(options.seed, options.lead_ins),
        RequestSampling(None, options.lead_ins),
    )
    train_examples = [
        build_examples(each.kind, each.load_split("train"), length, tokenizer, template, phrasings)
        for each in sets
    ]
    _check_row_length(options, base, tokenizer, train_examples)
    for name, part in zip(names, train_examples, strict=True):
        if name == REPLAY and not len(part.lengths(0)):
            raise UserError(
                f"--data {options.data}: there is nothing to replay: the base's pretraining text is shorter than "
                f"one row of {length} tokens; leave replay out, or lower --sequence_length"
            )
    dev = [
        DevSet(
            name,
            each,
            build_examples(
                each.kind,
                each.load_split("validation"),
                length,
                tokenizer,
                template,
                eval_phrasings,
            ),
        )
        for name, each in zip(names, sets, strict=True)
        if name != REPLAY
    ]
    return SftMixture(
        names, sets, train_examples, _replay_weights(names, train_examples, weights), dev
    )


def _check_same_template(
    name: str, shards: ShardSet, base: InitialCheckpoint, template: Template
) -> None:
    """Raise UserError if a set of conversations was prepared with another chat template."""
    if not (shards.folder / TEMPLATE_FILE).is_file():
        return
    if replace(load_template(shards.folder), lead_ins=template.lead_ins) != template:
        raise UserError(
            f"--data {name}: was prepared with another chat template than the model's: prepare the "
            f"raw files again with --tokenizer {base.tokenizer_path}"
        )


def _build_fingerprints(
    options: SftOptions,
    base: InitialCheckpoint,
    tokenizer: Tokenizer,
    template: Template,
    mixture: SftMixture,
) -> dict[str, Any]:
    """What makes the run this run, see `Run.open`."""
    return {
        "data": [
            {"set": each.fingerprint, "weight": weight}
            for each, weight in zip(mixture.shard_sets, mixture.weights, strict=True)
        ],
        "tokenizer": tokenizer.fingerprint,
        "base": base.fingerprint,
        "template": template.__dict__,
        "epochs": options.epochs,
        "max_steps": options.max_steps,
        **build_common_fingerprints(options),
        # With a base the shape is the base's, whatever the options say.
        **(
            {"model": build_model_config(options.model, tokenizer, options.sequence_length).to_hf()}
            if base.folder is None
            else {}
        ),
        "adapter": {options.adapter: options.lora.model_dump(mode="json")}
        if options.adapter == "lora"
        else options.adapter,
    }


def _save_extras(tokenizer: Tokenizer, template: Template, folder: Path) -> None:
    """What a checkpoint needs besides numbers in order to be asked as it was trained."""
    tokenizer.save(folder)
    template.save(folder)


def _replay_weights(
    names: list[str], train_examples: list[Examples], weights: tuple[float, ...]
) -> tuple[float, ...]:
    """`replay:0.1` is a tenth as many tokens as the rest has; the plan wants a share of the replayed text itself."""
    totals = [int(part.lengths(0).sum()) for part in train_examples]
    rest = sum(
        w * total for name, w, total in zip(names, weights, totals, strict=True) if name != REPLAY
    )
    return tuple(
        w * rest / max(total, 1) if name == REPLAY else w
        for name, w, total in zip(names, weights, totals, strict=True)
    )


def _build_model(
    options: SftOptions,
    run: RunDir,
    base: InitialCheckpoint,
    tokenizer: Tokenizer,
    device: torch.device,
) -> tuple[Llama, str]:
    """The model to train, and what to call it; a continued run's weights are filled in later, from its checkpoint."""
    folder = run.start_checkpoint if run.start_step is not None else base.folder
    if folder is not None:
        if options.adapter == "lora" and run.start_step is not None:
            folder = locate.resolve_base(folder)
        model, _ = weights.load_checkpoint(folder, device)
        name = str(base.folder or options.model.preset)
        if options.adapter == "lora":
            attach_adapter(model, Adapter(options.lora, folder, base.fingerprint), options.seed)
    else:
        config = build_model_config(options.model, tokenizer, options.sequence_length)
        model, name = Llama(config).init_weights(options.seed).to(device), options.model.preset
    model.trained_context = options.sequence_length
    return model.train(), name


def _check_row_length(
    options: SftOptions,
    base: InitialCheckpoint,
    tokenizer: Tokenizer,
    train_examples: list[Examples],
) -> None:
    """UserError where rows are too long for the model or too short for every example, before there is a run to repair."""
    length = options.sequence_length
    if base.folder is None:
        build_model_config(options.model, tokenizer, length)
    else:
        # A continued run's own checkpoint says it: its base may be gone.
        file = base.tokenizer_path / locate.CONFIG_FILE
        context = LlamaConfig.from_hf(read_json(file), str(file)).max_position_embeddings
        if context < length:
            raise UserError(f"--sequence_length {length}: the model's context is {context} tokens")
    if not any(part.lengths(0).any() for part in train_examples):
        raise UserError(
            f"--data {options.data}: no example fits a row of {length} tokens: raise --sequence_length"
        )


def _print_sft_summary(
    options: SftOptions,
    run: RunDir,
    model: Llama,
    compute_plan: ComputePlan,
    plan: PackedPlan,
    mixture: SftMixture,
    batches: PackedBatchLoader,
    max_steps: int,
    name: str,
) -> None:
    counts = [part.lengths(0) for part in mixture.train_examples]
    num_skipped, num_truncated = (
        sum(int((count == 0).sum()) for count in counts),
        sum(part.num_truncated for part in mixture.train_examples),
    )
    examples = sum(len(count) for count in counts) - num_skipped
    rows = plan.num_rows(0)
    epochs = max_steps * (options.batch_tokens // options.sequence_length) / rows
    # Only what has a loss passes through the head, most of a small model: how much that is, the first step tells.
    [first_batch] = batches.micro_batches(0, batches.rows_per_step)
    body, head = training_flops_per_token(
        model, effective_row_length(first_batch.num_tokens, count_attention_pairs(first_batch))
    )
    print_run_summary(
        options,
        run,
        model,
        compute_plan,
        name=name,
        data=f"{options.data}: {examples:,} examples, {num_truncated:,} cut to {options.sequence_length} tokens, {num_skipped:,} too long "
        f"and left out; {plan.num_tokens(0):,} tokens an epoch in {rows:,} rows "
        f"({plan.num_tokens(0) / rows / options.sequence_length:.0%} full); {max_steps:,} steps "
        f"({epochs:.2f} epochs)",
        epochs=epochs,
        flops=plan.num_tokens(0)
        * epochs
        * (body + head * len(first_batch.targets) / first_batch.num_tokens),
        has_validation_data=any(each.num_fitting for each in mixture.dev_sets),
    )


if __name__ == "__main__":
    run_main(main)
