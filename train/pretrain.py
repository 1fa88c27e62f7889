"""`python -m train.pretrain`: a Llama from nothing on prepared text."""

import argparse
import errno
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError, run_main
from common.machine import peak_memory_bytes, resolve_device
from common.options import parse
from common.progress import progress
from data.batches import Batches
from data.catalog import resolve
from data.plan import Mixture, Plan
from data.shards import Sequences, ShardSet
from evaluate.metrics import BLOCK, WINDOW, Score, score_stream
from model.config import LlamaConfig, preset, with_tokenizer
from model.generate import Sampling, generate
from model.llama import Llama
from model.tokenizer import Tokenizer
from train.capacity import Choices, measure, memory_needed
from train.loop import Trainer
from train.metrics import MetricsLog
from train.options import PretrainOptions
from train.run import CONFIG, Run

DEFAULT_CONFIG = Path("configs/pretrain.yaml")
DESCRIPTION = ("Pretrain a Llama from scratch. A run that exists is continued from its newest checkpoint; Ctrl-C saves "
               "first. Watch it with: make tensorboard")


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    config = _config_of_existing_run(arguments) or DEFAULT_CONFIG
    options, _ = parse(PretrainOptions, arguments, name="train.pretrain", description=DESCRIPTION, default_config=config)
    pretrain(options)


def _config_of_existing_run(arguments: list[str]) -> Path | None:
    """A run is continued with its own options unless a file of others is named."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data", default=PretrainOptions.model_fields["data"].default)
    said, _ = parser.parse_known_args(arguments)
    config = (said.run or default_run(said.data)) / CONFIG
    return config if config.is_file() else None


def default_run(data: str) -> Path:
    """Where a run goes that was given no name."""
    return Path("runs") / ("pretrain-" + "+".join(Path(name).resolve().name for name in parse_mixture(data)[0]))


def pretrain(options: PretrainOptions) -> None:
    """Train as the options say, into a new run or the rest of an old one."""
    device = resolve_device(options.device)
    names, weights = parse_mixture(options.data)
    sets = [ShardSet.open(resolve(name, options.tokenizer), checksums=True) for name in names]
    tokenizer = sets[0].tokenizer()
    for name, other in zip(names[1:], sets[1:], strict=True):
        if other.tokenizer().fingerprint != tokenizer.fingerprint:
            raise UserError(f"--data: {name} was prepared with another tokenizer than {names[0]}: prepare both alike")
    config = _shape(options, tokenizer)
    run = Run(options.run or default_run(options.data))
    fingerprints = {
        "data": [{"set": each.fingerprint, "weight": weight} for each, weight in zip(sets, weights, strict=True)],
        "tokenizer": tokenizer.fingerprint, "model": config.to_hf(), "seed": options.seed,
        "batch_tokens": options.batch_tokens, "sequence_length": options.sequence_length, "max_steps": options.max_steps,
        "optimizer": options.optimizer.model_dump(), "schedule": options.schedule.model_dump(),
    }
    run.open(options.model_dump(mode="json"), fingerprints, [each.folder for each in sets], device)
    mixture = Mixture(tuple(each.split("train") for each in sets), weights)
    plan = Plan(mixture, seed=options.seed, length=options.sequence_length, folder=run.folder / "plan")
    if plan.tokens_per_epoch < 2:
        raise UserError(f"--data {options.data}: there is no text to train on")
    model = Llama(config).initialise(options.seed).to(device).train()
    choices = _choices(options, run, model, device)
    _announce(options, run, model, choices, plan)
    validation = [each.split("validation") for each in sets]
    trainer = Trainer(
        options, run, model, tokenizer, Batches(plan, options.batch_tokens // options.sequence_length), choices,
        lambda step, log, final: evaluate(options, model, tokenizer, validation, step, log, final),
    )
    try:
        complete = trainer.train()
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"the GPU's memory is full with {choices.micro_rows} rows at once: continue with a smaller "
                        f"--micro_batch, such as {max(1, choices.micro_rows // 2)}") from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"{run.folder}: the disk is full; the last whole checkpoint is kept. Make room, then run the same "
                        "command again") from None
    finally:
        trainer.close()
    _farewell(run, complete, trainer.state.step, options.max_steps)


def parse_mixture(text: str) -> tuple[list[str], tuple[float, ...]]:
    """`wikipedia:0.5+zhihu` → names and weights; a weight left out is 1."""
    names, weights = [], []
    for part in [text] if Path(text).exists() else text.split("+"):
        name, colon, weight = part.rpartition(":")
        try:
            number = float(weight) if colon else 1.0
        except ValueError:
            name, number = part, 1.0
        if not (math.isfinite(number) and number > 0):
            raise UserError(f"--data {text}: the weight of {name} must be above 0")
        names.append(name if colon and name != part else part)
        weights.append(number)
    return names, tuple(weights)


def _shape(options: PretrainOptions, tokenizer: Tokenizer) -> LlamaConfig:
    changes: dict[str, Any] = options.model.changes()
    config = with_tokenizer(preset(options.model.preset, tokenizer.vocabulary_size, **changes),
                            tokenizer.bos_id, tokenizer.eos_id)
    if config.max_position_embeddings < max(options.sequence_length, WINDOW):
        raise UserError(f"--model.max_position_embeddings {config.max_position_embeddings} is shorter than a row "
                        f"({options.sequence_length}) or the evaluation's window ({WINDOW})")
    return config


def _choices(options: PretrainOptions, run: Run, model: Llama, device: torch.device) -> Choices:
    """The run's own choices where they were made on such a device and nothing else was asked for; else measured."""
    kept = run.choices()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    asked = {"precision": options.precision, "compile": options.compile, "micro_batch": options.micro_batch}
    if kept and kept["choices"]["device"] == name and kept["asked"] == asked:
        return Choices(**kept["choices"])
    choices = measure(model, device, precision=options.precision, compile_wish=options.compile,
                      micro_batch=options.micro_batch, rows=options.batch_tokens // options.sequence_length,
                      length=options.sequence_length)
    run.keep_choices({"asked": asked, "choices": asdict(choices)})
    return choices


def _announce(options: PretrainOptions, run: Run, model: Llama, choices: Choices, plan: Plan) -> None:
    config = model.config
    tokens = options.max_steps * options.batch_tokens
    flops = config.flops_per_token(options.sequence_length)
    print(f"model     {options.model.preset}: {config.parameters / 1e6:.1f}M parameters, vocabulary {config.vocab_size:,}, "
          f"{flops / 1e6:.1f} MFLOP per token")
    print(f"data      {options.data}: {plan.tokens_per_epoch:,} tokens an epoch; {tokens:,} to train on "
          f"({tokens / plan.tokens_per_epoch:.2f} epochs, {tokens * flops:.2e} FLOP)")
    print(f"machine   {choices.device}, {choices.precision}, {choices.micro_rows} × {options.sequence_length} tokens at once"
          f" of {options.batch_tokens:,} a step, loss path {choices.loss_path}"
          f"{', compiled' if choices.compile else ''}; about {memory_needed(model, choices, options.sequence_length) / 1e9:.1f}"
          " GB of memory")
    if model.lm_head.weight.device.type == "cpu" and tokens * flops > 1e15:
        print("          this is many hours of work for a CPU: fewer --max_steps or a smaller --model.preset end sooner")
    before = f"continues after step {run.start}" if run.start is not None else "new"
    print(f"run       {run.folder} ({before})", flush=True)


def _farewell(run: Run, complete: bool, step: int, max_steps: int) -> None:
    if complete:
        print(f"complete: {run.folder}, {step} steps; peak memory of the process {peak_memory_bytes() / 1e9:.2f} GB. "
              f"Measure it: make evaluate RUN={run.folder}")
    else:
        print(f"saved after step {step} of {max_steps}; the same command goes on from there")


def evaluate(
    options: PretrainOptions, model: Llama, tokenizer: Tokenizer, validation: list[Sequences], step: int, log: MetricsLog,
    final: bool,
) -> None:
    """Score the first tokens of the validation splits, always the same, and at the end all; continue the prompts."""
    limit = max(2, options.evaluation.tokens // len(validation))
    _score(model, tokenizer, validation, limit, "validation", step, log)
    if final and any(split.total_tokens > limit for split in validation):
        _score(model, tokenizer, validation, sys.maxsize, "final", step, log)
    for prompt in options.evaluation.prompts if options.evaluation.sample_tokens else ():
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        text = tokenizer.decode(list(generate(
            model, ids, Sampling(), max_new_tokens=options.evaluation.sample_tokens, seed=options.seed)))
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
