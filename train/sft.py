"""`python -m train.sft`: fine-tune on conversations and summaries, from a pretrained model or from nothing."""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from common.errors import UserError, run_main
from common.files import read_json
from common.machine import resolve_device
from common.options import load_yaml
from data.batches import PackedBatches
from data.catalog import SMALL_TOKENIZER, resolve
from data.examples import Examples, Phrasings, examples_of
from data.packing import PackedPlan
from data.shards import ShardSet, shards_of_run
from model import checkpoints
from model.checkpoints import save_tokenizer
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import Adapter, attach
from model.template import Template, template_of
from model.tokenizer import Tokenizer
from train import parallel
from train.capacity import Choices, training_flops
from train.entry import announce, facts_of, machine_choices, open_run, parse_mixture, read_options, run_name, train_through
from train.loop import Horizon, Trainer
from train.metrics import VALIDATION_LOSS, Measure
from train.options import SftOptions
from train.pretrain import shape
from train.run import CONFIG, MADE, Run
from train.sft_evaluation import DevSet, evaluate

DESCRIPTION = """Fine-tune on conversations and summaries: the loss is on the answers and their <eos> only, several examples
share a row without seeing each other. A run that exists is continued from its newest checkpoint; Ctrl-C saves first."""
REPLAY = "replay"
ROUGE = Measure("rouge", "rouge_1", higher=True)


def main() -> None:
    """Entry point."""
    with parallel.together():
        fine_tune(read_options(SftOptions, "sft", DESCRIPTION))


@dataclass(frozen=True)
class Base:
    """What a run begins with: `folder` has weights and tokenizer; without one, a tokenizer and random weights."""

    folder: Path | None
    tokenizer: Path
    fingerprint: str


def fine_tune(options: SftOptions) -> None:
    """Train as the options say, into a new run or the rest of an old one."""
    device = parallel.local_device(resolve_device(options.device))
    length = options.sequence_length
    rows = options.batch_tokens // length
    parallel.check_rows(rows, length)
    if parallel.size() > 1 and options.parallel == "fsdp" and options.adapter != "none":
        raise UserError("--parallel fsdp: divides weights that train, and an adapter's are few: use --parallel ddp")
    folder = options.run or run_name("sft", options.data)
    base = find_base(options, folder)
    options = options.model_copy(update={"base": base.folder or "none"})
    tokenizer = Tokenizer.load(base.tokenizer)
    template = replace(template_of(tokenizer), lead_ins=options.lead_ins)
    names, weights = parse_mixture(options.data)
    if set(names) == {REPLAY}:
        raise UserError("--data replay: is mixed into something, such as csl+replay:0.1")
    sets = parallel.first_alone(lambda: [
        _replayed(folder, base, index) if name == REPLAY else _shards(name, base) for index, name in enumerate(names)])
    run = Run(folder)
    phrasings = Phrasings(options.seed, options.lead_ins)
    parts = [examples_of(each.kind, each.split("train"), length, tokenizer, template, phrasings) for each in sets]
    _check_rows(options, base, tokenizer, parts)
    weights = _replay_weights(names, parts, weights)
    fingerprints = {
        "data": [{"set": each.fingerprint, "weight": weight} for each, weight in zip(sets, weights, strict=True)],
        "tokenizer": tokenizer.fingerprint, "base": base.fingerprint, "template": template.__dict__,
        "epochs": options.epochs, "max_steps": options.max_steps, **facts_of(options),
        # With a base the shape is the base's, whatever the options say.
        **({"model": shape(options.model, tokenizer, length).to_hf()} if base.folder is None else {}),
        "adapter": {options.adapter: options.lora.model_dump(mode="json")} if options.adapter == "lora" else options.adapter,
    }
    open_run(run, options, fingerprints, sets, device)
    identity = hashlib.sha256(json.dumps([fingerprints[key] for key in ("data", "template")]).encode()).hexdigest()
    plan = PackedPlan(parts, weights, seed=options.seed, length=length, folder=run.folder / "plan", identity=identity)
    model, name = _model(options, run, base, tokenizer, device)
    choices = machine_choices(options, run, model, device)
    steps = options.max_steps or max(1, math.ceil((options.epochs or 1) * plan.rows_in(0) / rows))
    batches = PackedBatches(plan, rows, rank=parallel.rank(), world=parallel.size())
    _announce(options, run, model, choices, plan, parts, batches, steps, name)
    # With lead-ins a title without one is not what the model was taught: its loss would say nothing.
    asked = Phrasings(None, options.lead_ins)
    dev = [
        DevSet(name, each, examples_of(each.kind, each.split("validation"), length, tokenizer, template, asked))
        for name, each in zip(names, sets, strict=True) if name != REPLAY
    ]
    answered = options.evaluation.examples > 0 and any(
        each.shards.kind == "summaries" and each.examples.lengths(0).any() for each in dev)
    trainer = Trainer(
        options,
        Horizon(steps, options.evaluation.every, ROUGE if answered else VALIDATION_LOSS, options.evaluation.patience),
        run, model, batches, choices,
        lambda into: _keep(tokenizer, template, into),
        lambda whole, step, log, final: evaluate(options, whole, tokenizer, template, dev, step, log),
    )
    train_through(trainer, f"Talk to it: make chat RUN={run.folder}; measure it: make evaluate RUN={run.folder}")


def _keep(tokenizer: Tokenizer, template: Template, folder: Path) -> None:
    """What a checkpoint needs besides numbers in order to be asked as it was trained."""
    save_tokenizer(tokenizer, folder)
    template.save(folder)


def find_base(options: SftOptions, run: Path) -> Base:
    """What the options' `base` means. A run that has a checkpoint needs its base no more: the base may be gone."""
    made = run / MADE
    if made.is_file() and (step := checkpoints.newest(run)) is not None:
        folder, fingerprint = _own_base(options, run)
        own = checkpoints.step_folder(run, step)
        _check_tokenizer(options.tokenizer, run, own)
        return Base(folder, own, fingerprint)
    if options.base == "none":
        return Base(None, options.tokenizer or SMALL_TOKENIZER, "none")
    path = options.base or newest_pretrained(Path("runs"))
    if path is None:
        raise UserError("--base: there is no pretrained run in runs/ yet: make pretrain first, or begin from nothing with "
                        "--base none")
    folder = checkpoints.find(Path(path))
    if options.tokenizer is not None:
        raise UserError(f"--tokenizer is for --base none: {path} has its own")
    return Base(folder, folder, checkpoints.digest(folder))


def _own_base(options: SftOptions, run: Path) -> tuple[Path | None, str]:
    """The base that a continued run has on record and its fingerprint; another one's, if the options name one that is here."""
    recorded = str(read_json(run / MADE)["fingerprints"].get("base", ""))
    config = run / CONFIG
    said = (load_yaml(config, "").get("base") if config.is_file() else None) or options.base
    if options.base == "none" and recorded != "none":
        return None, "none"
    if isinstance(options.base, Path) and str(options.base) != str(said) and options.base.exists():
        other = checkpoints.find(options.base)
        return other, checkpoints.digest(other)
    return (None if said in (None, "none") else Path(said)), recorded


def _check_tokenizer(named: Path | None, run: Path, own: Path) -> None:
    """UserError where a continued run is told another tokenizer than it has. The file of its own may be gone by now."""
    config = run / CONFIG
    said = load_yaml(config, "").get("tokenizer") if config.is_file() else None
    if named is None or (str(named) == said and not named.exists()):
        return
    if Tokenizer.load(named).fingerprint != Tokenizer.load(own).fingerprint:
        raise UserError(f"--tokenizer {named}: {run} was made with another tokenizer; leave --tokenizer out, or name a new "
                        "--run")


def newest_pretrained(runs: Path) -> Path | None:
    """The pretraining run (whatever its name) whose newest checkpoint is the latest."""
    found = [(checkpoints.step_folder(run, steps[-1]).stat().st_mtime_ns, run)
             for run in (path.parent for path in runs.glob(f"*/{MADE}"))
             if (steps := checkpoints.steps(run)) and "base" not in read_json(run / MADE)["fingerprints"]]
    return max(found)[1] if found else None


def _replayed(run: Path, base: Base, index: int) -> ShardSet:
    """The pretraining text of the base; a run that exists has written down where it lies."""
    made = run / MADE
    if made.is_file() and index < len(folders := read_json(made)["shards"]):
        return ShardSet.open(Path(folders[index]), checksums=parallel.first())
    if base.folder is None:
        raise UserError("--data replay: is the base's pretraining text, and there is no base to have any")
    shards = shards_of_run(base.folder, "leave replay out of --data, or begin from a run that was pretrained here on one set")
    if shards.kind != "documents":
        raise UserError(f"--data replay: {base.folder} was fine-tuned, so what it was trained on is no text to replay: name "
                        "its data in --data, or begin from a pretraining run")
    return shards


def _shards(name: str, base: Base) -> ShardSet:
    shards = ShardSet.open(resolve(name, base.tokenizer), checksums=parallel.first())
    if shards.kind == "documents":
        raise UserError(f"--data {name}: is text without questions and answers: pretrain on it (python -m train.pretrain "
                        f"--data {name}); a mix has text only as replay, which is the base's own")
    return shards


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
            folder = checkpoints.base_of(folder)
        model, _ = checkpoints.load(folder, device)
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
        # A continued run's own weights say it too, and its base may be gone.
        file = (base.folder if base.folder.is_dir() else base.tokenizer) / checkpoints.CONFIG
        context = LlamaConfig.from_hf(read_json(file), str(file)).max_position_embeddings
        if context < length:
            raise UserError(f"--sequence_length {length}: the model's context is {context} tokens")
    if not any(part.lengths(0).any() for part in parts):
        raise UserError(f"--data {options.data}: no example fits a row of {length} tokens: raise --sequence_length")


def _announce(
    options: SftOptions, run: Run, model: Llama, choices: Choices, plan: PackedPlan, parts: list[Examples],
    batches: PackedBatches, steps: int, name: str,
) -> None:
    counts = [part.lengths(0) for part in parts]
    left_out, cut = sum(int((count == 0).sum()) for count in counts), sum(part.cut for part in parts)
    examples = sum(len(count) for count in counts) - left_out
    rows = plan.rows_in(0)
    tokens = plan.tokens_in(0) / rows * steps * (options.batch_tokens // options.sequence_length)
    # Only what has a loss passes through the head, most of a small model: how much that is, the first step tells.
    [first] = batches.step(0, batches.rows_per_step)
    body, head = training_flops(model, options.sequence_length)
    announce(
        options, run, model, choices, name=name,
        data=f"{options.data}: {examples:,} examples, {cut:,} cut to {options.sequence_length} tokens, {left_out:,} too long "
             f"and left out; {plan.tokens_in(0):,} tokens an epoch in {rows:,} rows "
             f"({plan.tokens_in(0) / rows / options.sequence_length:.0%} full); {steps:,} steps "
             f"({steps * (options.batch_tokens // options.sequence_length) / rows:.2f} epochs)",
        flops=tokens * (body + head * len(first.targets) / first.tokens),
    )


if __name__ == "__main__":
    run_main(main)
