"""`python -m train.pretrain`: a Llama on prepared text, from nothing or from the weights of another one."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError, run_main
from common.files import read_json
from common.machine import resolve_device
from common.progress import progress_bar
from data.batching.collate import TextBatchLoader
from data.batching.text_rows import Mixture, TextPlan
from data.corpora.resolver import replaced_corpus_name, resolve_shard_set
from data.shards import Sequences, ShardSet
from evaluate.scores.lm import BLOCK_TOKENS, WINDOW_TOKENS, LMScore, score_stream
from model.chat_template.template import TEMPLATE_FILE as TEMPLATE_FILE
from model.chat_template.template import load_template
from model.checkpoint import locate, weights
from model.config import LlamaConfig, config_from_preset, with_tokenizer_ids
from model.decode.generate import Sampling, generate
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from train import distributed
from train.initial_checkpoint import InitialCheckpoint, resolve_initial_checkpoint
from train.metrics_log import MetricsLog
from train.options import ModelOptions, PretrainOptions
from train.run_dir import RunDir
from train.startup import (
    MAX_USEFUL_EPOCHS,
    build_common_fingerprints,
    default_run_folder,
    open_run,
    parse_mixture,
    parse_train_options,
    print_run_summary,
    resolve_compute_plan,
    run_training,
)
from train.trainer import RunLength, Trainer

# Cooler than a chat: what a model is sure of shows what it has learned.
SAMPLING = Sampling(temperature=0.5, top_p=0.9)
DESCRIPTION = (
    "Pretrain a Llama from scratch, or go on with the weights of --base, an imported run's too. A run that exists "
    "is continued from its newest checkpoint; Ctrl-C saves first. Watch it with: make tensorboard"
)


def main() -> None:
    """Entry point."""
    with distributed.distributed_session():
        pretrain(parse_train_options(PretrainOptions, "pretrain", DESCRIPTION))


def pretrain(options: PretrainOptions) -> None:
    """Train as the options say, into a new run or the rest of an old one."""
    device = distributed.local_device(resolve_device(options.device))
    rows = options.batch_tokens // options.sequence_length
    distributed.check_rows_divisible(rows, options.sequence_length)
    run = RunDir(options.run or default_run_folder("pretrain", options.data))
    base = resolve_initial_checkpoint(options, run.folder) if options.base else None
    options = options.model_copy(update={"base": base.folder if base else None})
    names, weights = parse_mixture(options.data)
    wanted = base.tokenizer_path if base else options.tokenizer
    sets = distributed.main_process_first(
        lambda: [
            ShardSet.open(resolve_shard_set(name, wanted), checksums=distributed.is_main_process())
            for name in names
        ]
    )
    tokenizer = _load_shared_tokenizer(names, sets)
    config = (
        _load_base_config(base, options.sequence_length)
        if base
        else build_model_config(options.model, tokenizer, options.sequence_length)
    )
    fingerprints = {
        "data": [
            {"set": each.fingerprint, "weight": weight}
            for each, weight in zip(sets, weights, strict=True)
        ],
        "tokenizer": tokenizer.fingerprint,
        "base": base.fingerprint if base else "none",
        "model": config.to_hf(),
        "max_steps": options.max_steps,
        **build_common_fingerprints(options),
    }
    mixture = Mixture(tuple(each.load_split("train") for each in sets), weights)
    plan = TextPlan(
        mixture, seed=options.seed, length=options.sequence_length, folder=run.folder / "plan"
    )
    if plan.tokens_per_epoch < 2:
        raise UserError(f"--data {options.data}: there is no text to train on")
    tokens = options.max_steps * options.batch_tokens
    epochs = tokens / plan.tokens_per_epoch
    _check_stand_in_epochs(options, sets, epochs)
    open_run(run, options, fingerprints, sets, device)
    model = _build_model(options, run, base, config, device)
    compute_plan = resolve_compute_plan(options, run, model, device)
    validation = [each.load_split("validation") for each in sets]
    print_run_summary(
        options,
        run,
        model,
        compute_plan,
        name=str(base.folder) if base else options.model.preset,
        data=f"{options.data}: {plan.tokens_per_epoch:,} tokens an epoch; {tokens:,} to train on "
        f"({epochs:.2f} epochs)",
        epochs=epochs,
        flops=tokens * config.flops_per_token(options.sequence_length),
        has_validation_data=any(split.num_tokens > 1 for split in validation),
    )
    trainer = Trainer(
        options,
        RunLength(options.max_steps, options.evaluation.every),
        run,
        model,
        TextBatchLoader(plan, rows, rank=distributed.rank(), world_size=distributed.world_size()),
        compute_plan,
        _make_save_extras(base, tokenizer),
        lambda whole, step, log, final: evaluate(
            options, whole, tokenizer, validation, step, log, final
        ),
    )
    run_training(trainer, f"Measure it: make evaluate {shlex.quote(f'RUN={run.folder}')}")


def _load_shared_tokenizer(names: list[str], sets: list[ShardSet]) -> Tokenizer:
    tokenizer = sets[0].load_tokenizer()
    for name, each in zip(names, sets, strict=True):
        if each.kind != "documents":
            raise UserError(
                f"--data {name}: holds {each.kind}, not text to pretrain on: fine-tune on it with "
                f"python -m train.sft --data {name}"
            )
        if each.load_tokenizer().fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"--data: {name} was prepared with another tokenizer than {names[0]}: prepare both alike"
            )
    return tokenizer


def _check_stand_in_epochs(options: PretrainOptions, sets: list[ShardSet], epochs: float) -> None:
    """UserError where the run's steps are for a corpus that is not here, and a part of the sample would be read instead."""
    names = list(
        dict.fromkeys(name for each in sets if (name := replaced_corpus_name(each.folder)))
    )
    if names and epochs > MAX_USEFUL_EPOCHS:
        real = " && ".join(f"make data DATA={name}" for name in names)
        raise UserError(
            f"--data {options.data}: {options.max_steps:,} steps are {epochs:,.0f} epochs of the shipped sample's part, "
            f"which stands in for {' and '.join(names)}: get the real text first ({real}), or try the stand-in with fewer "
            f"steps, at most --max_steps {max(1, int(options.max_steps * MAX_USEFUL_EPOCHS / epochs))}"
        )


def _load_base_config(base: InitialCheckpoint, length: int) -> LlamaConfig:
    """The shape of a base, or of the continued run, whose base may be gone. UserError if rows do not fit in its context."""
    file = base.tokenizer_path / locate.CONFIG_FILE
    config = LlamaConfig.from_hf(read_json(file), str(file))
    _check_context_length(config, length, f"{file}: max_position_embeddings")
    return config


def _build_model(
    options: PretrainOptions,
    run: RunDir,
    base: InitialCheckpoint | None,
    config: LlamaConfig,
    device: torch.device,
) -> Llama:
    """The model to train; a continued run's weights are filled in later, from its checkpoint."""
    folder = (
        None
        if base is None
        else run.start_checkpoint
        if run.start_step is not None
        else base.folder
    )
    if folder is None:
        model = Llama(config).init_weights(options.seed).to(device)
    else:
        model, _ = weights.load_checkpoint(folder, device)
    model.trained_context = options.sequence_length
    return model.train()


def _make_save_extras(
    base: InitialCheckpoint | None, tokenizer: Tokenizer
) -> Callable[[Path], None]:
    """What writes into a checkpoint all that is no numbers; a base that had a template can still be talked to."""
    converses = base is not None and (base.tokenizer_path / TEMPLATE_FILE).is_file()
    template = load_template(base.tokenizer_path) if base is not None and converses else None

    def keep(folder: Path) -> None:
        tokenizer.save(folder)
        if template is not None:
            template.save(folder)

    return keep


def build_model_config(options: ModelOptions, tokenizer: Tokenizer, length: int) -> LlamaConfig:
    """The shape that the options say, for this tokenizer. UserError if rows of `length` do not fit in its context."""
    changes: dict[str, Any] = options.preset_overrides()
    config = with_tokenizer_ids(
        config_from_preset(options.preset, tokenizer.vocab_size, **changes),
        tokenizer.bos_id,
        tokenizer.eos_id,
    )
    config.check_memory(f"--model.preset {options.preset} and what changes it")
    _check_context_length(config, length, "--model.max_position_embeddings")
    return config


def _check_context_length(config: LlamaConfig, length: int, name: str) -> None:
    if config.max_position_embeddings < max(length, WINDOW_TOKENS):
        raise UserError(
            f"{name} {config.max_position_embeddings} is shorter than a row ({length}) or the evaluation's window "
            f"({WINDOW_TOKENS})"
        )


def evaluate(
    options: PretrainOptions,
    model: Llama,
    tokenizer: Tokenizer,
    validation: list[Sequences],
    step: int,
    log: MetricsLog,
    is_final_evaluation: Callable[[], bool],
) -> None:
    """Score the first tokens of the validation splits, always the same, and at the end all; continue the prompts."""
    limit = max(2, options.evaluation.tokens // len(validation))
    _score_validation(model, tokenizer, validation, limit, "validation", step, log)
    if is_final_evaluation() and any(split.num_tokens > limit for split in validation):
        _score_validation(model, tokenizer, validation, sys.maxsize, "final", step, log)
    for prompt in options.evaluation.prompts if options.evaluation.sample_tokens else ():
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        text = tokenizer.decode(
            list(
                generate(
                    model,
                    ids,
                    SAMPLING,
                    max_new_tokens=options.evaluation.sample_tokens,
                    seed=options.seed,
                )
            )
        )
        log.write("sample", step, prompt=prompt, text=text)
        print(f"  {prompt}|{text!r}"[:160], flush=True)


def _score_validation(
    model: Llama,
    tokenizer: Tokenizer,
    validation: list[Sequences],
    max_tokens: int,
    kind: str,
    step: int,
    log: MetricsLog,
) -> None:
    """Score the first `max_tokens` tokens of each split; write and print the measures. Nothing if there are no tokens."""
    total = LMScore(0.0, 0, 0, 0)
    wanted = [min(max_tokens, split.num_tokens) for split in validation]
    with progress_bar("evaluating", sum(wanted), "tokens", delay=5) as bar:
        for split, stop in zip(validation, wanted, strict=True):
            # In blocks of whole windows that overlap by one token, so that memory stays flat.
            for start in range(0, stop - 1, BLOCK_TOKENS):
                block = split.read_stream(start, min(start + BLOCK_TOKENS + 1, stop))
                total += score_stream(
                    model, block, tokenizer.characters_per_id, on_progress=bar.update
                )
    if total.num_tokens:
        measures = total.compute_metrics()
        log.write(kind, step, **measures)
        print(
            f"step {step}  {kind}: loss {measures['loss']:.4f}  perplexity {measures['perplexity']:.2f}  "
            f"accuracy {measures['accuracy']:.1%}  bits/character {measures['bits_per_character']:.4f}  "
            f"({measures['tokens']:,} tokens)",
            flush=True,
        )


if __name__ == "__main__":
    run_main(main)
