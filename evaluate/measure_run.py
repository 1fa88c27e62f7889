"""Measure a run with each command that fits it, and write a report."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common import run_layout
from common.errors import UserError
from data.corpora.resolver import find_test_split
from data.shards import ShardSet, load_run_shard_sets
from evaluate.before_after.base import find_base
from evaluate.kinds import find_evaluation
from evaluate.kinds.base import Commands
from evaluate.options import EvaluateOptions
from model.checkpoint import locate


def measure_run(options: EvaluateOptions) -> None:
    """Run each command that fits the run; write its results and its report.

    What cannot be measured is left out, and named at the end. Raises UserError for that, if there
    is no run, or if it has no data. Exits with the code of a command that a signal stopped.
    """
    checkpoint = options.checkpoint or _find_newest_run()
    run = resolve_run(checkpoint)
    advice = (
        "use the single commands, such as python -m evaluate.perplexity --source NAME --input FILE"
    )
    shard_sets = load_run_shard_sets(run, hint=advice)
    if not shard_sets:
        raise UserError(f"{run} was imported and has no data of its own to measure it on: {advice}")
    results = run / run_layout.RESULTS_DIR
    results.mkdir(exist_ok=True)
    device_options = []
    if options.device != "auto":
        device_options += ["--device", options.device]
    if options.quantize:
        device_options += ["--quantize", options.quantize]
    if options.kv_cache:
        device_options += ["--kv_cache", options.kv_cache]
    model_options = ["--checkpoint", str(checkpoint), *device_options]
    limit_options = ["--limit", str(options.limit)] if options.limit is not None else []
    # Only fine-tuning has sets of other kinds than text.
    is_fine_tuned = any(not shards.kind.is_text for shards in shard_sets)
    generated: Commands = {}
    failed: list[str] = []
    for shards, suffix in zip(shard_sets, result_suffixes(shard_sets), strict=True):
        commands = build_commands(
            run,
            shards,
            suffix,
            model_options=model_options,
            limit_options=limit_options,
            is_fine_tuned=is_fine_tuned,
        )
        failed += _run_commands(commands, results, suffix)
        # Replay in a fine-tuning run is not what the run is for.
        if not (is_fine_tuned and shards.kind.is_text):
            generated |= find_evaluation(shards.kind).generated_commands(model_options)
    failed += _run_commands(generated, results, suffix="")
    has_questions = any(len(shards.load_split("validation")) for shards in shard_sets)
    watch = ["evaluate.watch", str(run), *device_options]
    if has_questions and len(run_layout.list_steps(run)) > 1 and _run_command(watch):
        failed.append("watch")
    report = ["evaluate.report", str(run), "--out", str(run / run_layout.REPORT_NAME)]
    if base := find_base(run):
        # The step that the user named, instead of the newest.
        report[1] = str(checkpoint)
        report += ["--before", str(base), *device_options, *limit_options]
    if _run_command(report):
        failed.append("report")
    if failed:
        raise UserError(f"not measured, for the reasons above: {', '.join(failed)}")


def resolve_run(checkpoint: Path) -> Path:
    """Return `checkpoint` itself if it is a run, or the run that it is a step of.

    Raises UserError for any other path.
    """
    if (checkpoint / run_layout.RUN_FILE).is_file():
        return checkpoint
    # A step is at RUN/checkpoints/step-….
    run = checkpoint.parent.parent
    step = locate.read_step(checkpoint)
    if step is not None and (run / run_layout.RUN_FILE).is_file():
        print(
            f"evaluating step {step:,} of {run}; its results replace those in {run / 'results'}",
            flush=True,
        )
        return run
    if not checkpoint.exists():
        suggestion = locate.suggest_run(checkpoint)
        advice = "name a run with RUN=runs/NAME (--checkpoint runs/NAME)"
        if suggestion:
            advice = f"did you mean {suggestion}?"
        raise UserError(f"{checkpoint} does not exist: {advice}")
    raise UserError(
        f"{checkpoint} is neither a run nor one of its steps: for other checkpoints use the single "
        "commands, such as python -m evaluate.perplexity"
    )


def _find_newest_run() -> Path:
    """Return the run with the newest checkpoint. Raises UserError if there is none."""
    newest = locate.find_newest_run()
    if newest is None:
        raise UserError(
            f"no run with a checkpoint in {run_layout.RUNS_DIR}/: make pretrain first, or name a "
            "run with RUN=… (--checkpoint …)"
        )
    print(f"evaluating {newest}, the run with the newest checkpoint", flush=True)
    return newest


def result_suffixes(shard_sets: Sequence[ShardSet]) -> list[str]:
    """Return the suffix of the results files of each set of a mixture.

    It is empty for a single set, otherwise `-` and the name of the set's folder. If two names are
    the same, all suffixes have a number too.
    """
    if len(shard_sets) == 1:
        return [""]
    names = [shards.folder.name for shards in shard_sets]
    if len(set(names)) == len(names):
        return [f"-{name}" for name in names]
    return [f"-{number}-{name}" for number, name in enumerate(names, 1)]


def build_commands(
    run: Path,
    shards: ShardSet,
    suffix: str,
    *,
    model_options: list[str],
    limit_options: list[str],
    is_fine_tuned: bool,
) -> Commands:
    """Return the commands to run for one shard set of a run, without `--json`.

    Args:
        run: the run directory.
        shards: the shard set.
        suffix: the suffix of the results files of the set.
        model_options: which checkpoint to measure, and how.
        limit_options: how many records to measure.
        is_fine_tuned: whether the run is a fine-tuning run, in which text is replay.
    """
    evaluation = find_evaluation(shards.kind)
    commands = evaluation.validation_commands(
        ["--data", str(shards.folder)], model_options, limit_options, is_fine_tuned=is_fine_tuned
    )
    if not len(shards.load_split("validation")):
        missing = ", ".join(f"no {name}" for name in commands)
        print(f"{shards.folder} has no validation split: {missing}", flush=True)
        commands = {}
    if shards.kind.is_text:
        return commands
    try:
        source, files = find_test_split(shards)
    except UserError as error:
        print(f"{error}; only the dev split is measured", flush=True)
        return commands
    test_options = ["--source", source, "--input", *map(str, files), *limit_options]
    predictions = str(run / run_layout.RESULTS_DIR / f"predictions{suffix}.jsonl")
    return commands | evaluation.test_commands(source, test_options, model_options, predictions)


def _run_commands(commands: Commands, results: Path, suffix: str) -> list[str]:
    """Run each command; its figures go to the file of its name and `suffix` in `results`.

    Returns the names of those that failed, which have printed why.
    """
    return [
        f"{name}{suffix}"
        for name, arguments in commands.items()
        if _run_command([*arguments, "--json", str(results / f"{name}{suffix}.json")])
    ]


def _run_command(arguments: list[str]) -> int:
    """Print and run `python -m` with the arguments; return its exit code.

    Exits with the code of a command that a signal stopped.
    """
    print(f"\n$ python -m {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", *arguments]).returncode
    # A shell's code for a signal is 128 and its number; that of `subprocess` is negative.
    if code < 0 or code > 128:
        sys.exit(code if code > 0 else 128 - code)
    return code
