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
from common.progress import progress
from data.batching.collate import TextBatches
from data.corpora.resolver import resolve, stands_for
from data.batching.text_rows import Mixture, Plan
from data.shards import Sequences, ShardSet
from evaluate.scores.lm import BLOCK, WINDOW, Score, score_stream
from model.checkpoint import locate, weights
from model.checkpoint.weights import save_tokenizer
from model.config import LlamaConfig, preset, with_tokenizer
from model.decode.generate import Sampling, generate
from model.llama import Llama
from model.chat_template.template import FILE as TEMPLATE_FILE
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer
from train import distributed
from train.initial_checkpoint import Base, find_base
from train.startup import (
    MANY_EPOCHS,
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
from train.metrics_log import MetricsLog
from train.options import ModelOptions, PretrainOptions
from train.run_dir import Run

# Cooler than a chat: what a model is sure of shows what it has learned.
SAMPLING = Sampling(temperature=0.5, top_p=0.9)
DESCRIPTION = ("Pretrain a Llama from scratch, or go on with the weights of --base, an imported run's too. A run that exists "
               "is continued from its newest checkpoint; Ctrl-C saves first. Watch it with: make tensorboard")


def main() -> None:
    """Entry point."""
    with distributed.together():
        pretrain(read_options(PretrainOptions, "pretrain", DESCRIPTION))


def pretrain(options: PretrainOptions) -> None:
    """Train as the options say, into a new run or the rest of an old one."""
    device = distributed.local_device(resolve_device(options.device))
    rows = options.batch_tokens // options.sequence_length
    distributed.check_rows(rows, options.sequence_length)
    run = Run(options.run or run_name("pretrain", options.data))
    base = find_base(options, run.folder) if options.base else None
    options = options.model_copy(update={"base": base.folder if base else None})
    names, weights = parse_mixture(options.data)
    wanted = base.tokenizer if base else options.tokenizer
    sets = distributed.first_alone(lambda: [
        ShardSet.open(resolve(name, wanted), checksums=distributed.first()) for name in names])
    tokenizer = _one_tokenizer(names, sets)
    config = _shape_of(base, options.sequence_length) if base else shape(options.model, tokenizer, options.sequence_length)
    fingerprints = {
        "data": [{"set": each.fingerprint, "weight": weight} for each, weight in zip(sets, weights, strict=True)],
        "tokenizer": tokenizer.fingerprint, "base": base.fingerprint if base else "none", "model": config.to_hf(),
        "max_steps": options.max_steps, **facts_of(options),
    }
    mixture = Mixture(tuple(each.split("train") for each in sets), weights)
    plan = Plan(mixture, seed=options.seed, length=options.sequence_length, folder=run.folder / "plan")
    if plan.tokens_per_epoch < 2:
        raise UserError(f"--data {options.data}: there is no text to train on")
    tokens = options.max_steps * options.batch_tokens
    epochs = tokens / plan.tokens_per_epoch
    _check_stand_ins(options, sets, epochs)
    open_run(run, options, fingerprints, sets, device)
    model = _model(options, run, base, config, device)
    choices = machine_choices(options, run, model, device)
    validation = [each.split("validation") for each in sets]
    announce(
        options, run, model, choices, name=str(base.folder) if base else options.model.preset,
        data=f"{options.data}: {plan.tokens_per_epoch:,} tokens an epoch; {tokens:,} to train on "
             f"({epochs:.2f} epochs)",
        epochs=epochs,
        flops=tokens * config.flops_per_token(options.sequence_length),
        held_out=any(split.total_tokens > 1 for split in validation),
    )
    trainer = Trainer(
        options, Horizon(options.max_steps, options.evaluation.every), run, model,
        TextBatches(plan, rows, rank=distributed.rank(), world=distributed.size()), choices,
        _keeper(base, tokenizer),
        lambda whole, step, log, final: evaluate(options, whole, tokenizer, validation, step, log, final),
    )
    train_through(trainer, f"Measure it: make evaluate {shlex.quote(f'RUN={run.folder}')}")


def _one_tokenizer(names: list[str], sets: list[ShardSet]) -> Tokenizer:
    tokenizer = sets[0].tokenizer()
    for name, each in zip(names, sets, strict=True):
        if each.kind != "documents":
            raise UserError(f"--data {name}: holds {each.kind}, not text to pretrain on: fine-tune on it with "
                            f"python -m train.sft --data {name}")
        if each.tokenizer().fingerprint != tokenizer.fingerprint:
            raise UserError(f"--data: {name} was prepared with another tokenizer than {names[0]}: prepare both alike")
    return tokenizer


def _check_stand_ins(options: PretrainOptions, sets: list[ShardSet], epochs: float) -> None:
    """UserError where the run's steps are for a corpus that is not here, and a part of the sample would be read instead."""
    names = list(dict.fromkeys(name for each in sets if (name := stands_for(each.folder))))
    if names and epochs > MANY_EPOCHS:
        real = " && ".join(f"make data DATA={name}" for name in names)
        raise UserError(
            f"--data {options.data}: {options.max_steps:,} steps are {epochs:,.0f} epochs of the shipped sample's part, "
            f"which stands in for {' and '.join(names)}: get the real text first ({real}), or try the stand-in with fewer "
            f"steps, at most --max_steps {max(1, int(options.max_steps * MANY_EPOCHS / epochs))}")


def _shape_of(base: Base, length: int) -> LlamaConfig:
    """The shape of a base, or of the continued run, whose base may be gone. UserError if rows do not fit in its context."""
    file = base.tokenizer / locate.CONFIG
    config = LlamaConfig.from_hf(read_json(file), str(file))
    _check_context(config, length, f"{file}: max_position_embeddings")
    return config


def _model(options: PretrainOptions, run: Run, base: Base | None, config: LlamaConfig, device: torch.device) -> Llama:
    """The model to train; a continued run's weights are filled in later, from its checkpoint."""
    folder = None if base is None else run.start_folder if run.start is not None else base.folder
    if folder is None:
        model = Llama(config).initialise(options.seed).to(device)
    else:
        model, _ = weights.load(folder, device)
    model.context = options.sequence_length
    return model.train()


def _keeper(base: Base | None, tokenizer: Tokenizer) -> Callable[[Path], None]:
    """What writes into a checkpoint all that is no numbers; a base that had a template can still be talked to."""
    converses = base is not None and (base.tokenizer / TEMPLATE_FILE).is_file()
    template = Template.load(base.tokenizer) if base is not None and converses else None

    def keep(folder: Path) -> None:
        save_tokenizer(tokenizer, folder)
        if template is not None:
            template.save(folder)

    return keep


def shape(options: ModelOptions, tokenizer: Tokenizer, length: int) -> LlamaConfig:
    """The shape that the options say, for this tokenizer. UserError if rows of `length` do not fit in its context."""
    changes: dict[str, Any] = options.changes()
    config = with_tokenizer(preset(options.preset, tokenizer.vocabulary_size, **changes),
                            tokenizer.bos_id, tokenizer.eos_id)
    config.check_memory(f"--model.preset {options.preset} and what changes it")
    _check_context(config, length, "--model.max_position_embeddings")
    return config


def _check_context(config: LlamaConfig, length: int, name: str) -> None:
    if config.max_position_embeddings < max(length, WINDOW):
        raise UserError(f"{name} {config.max_position_embeddings} is shorter than a row ({length}) or the evaluation's window "
                        f"({WINDOW})")


def evaluate(
    options: PretrainOptions, model: Llama, tokenizer: Tokenizer, validation: list[Sequences], step: int, log: MetricsLog,
    final: Callable[[], bool],
) -> None:
    """Score the first tokens of the validation splits, always the same, and at the end all; continue the prompts."""
    limit = max(2, options.evaluation.tokens // len(validation))
    _score(model, tokenizer, validation, limit, "validation", step, log)
    if final() and any(split.total_tokens > limit for split in validation):
        _score(model, tokenizer, validation, sys.maxsize, "final", step, log)
    for prompt in options.evaluation.prompts if options.evaluation.sample_tokens else ():
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        text = tokenizer.decode(list(generate(
            model, ids, SAMPLING, max_new_tokens=options.evaluation.sample_tokens, seed=options.seed)))
        log.write("sample", step, prompt=prompt, text=text)
        print(f"  {prompt}|{text!r}"[:160], flush=True)


def _score(
    model: Llama, tokenizer: Tokenizer, validation: list[Sequences], limit: int, kind: str, step: int, log: MetricsLog
) -> None:
    """Score the first `limit` tokens of each split; write and print the measures. Nothing if there are no tokens."""
    total = Score(0.0, 0, 0, 0)
    wanted = [min(limit, split.total_tokens) for split in validation]
    with progress("evaluating", sum(wanted), "tokens", delay=5) as bar:
        for split, stop in zip(validation, wanted, strict=True):
            # In blocks of whole windows that overlap by one token, so that memory stays flat.
            for start in range(0, stop - 1, BLOCK):
                block = split.stream(start, min(start + BLOCK + 1, stop))
                total += score_stream(model, block, tokenizer.characters_per_id, on_progress=bar.update)
    if total.tokens:
        measures = total.measures()
        log.write(kind, step, **measures)
        print(f"step {step}  {kind}: loss {measures['loss']:.4f}  perplexity {measures['perplexity']:.2f}  "
              f"accuracy {measures['accuracy']:.1%}  bits/character {measures['bits_per_character']:.4f}  "
              f"({measures['tokens']:,} tokens)", flush=True)


if __name__ == "__main__":
    run_main(main)
