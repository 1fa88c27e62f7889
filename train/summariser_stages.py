"""The stages of a summariser: ordinary commands, which are printed and skipped once done.

`RUN-recipe/stages.json` has the command of each stage that is done. A stage whose command is the
same, and whose result is there, is skipped; any other is run, and refuses by itself what does not
fit an existing run.
"""

import shlex
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from common import run_layout
from common.errors import UserError
from common.files import read_json, write_json
from common.flat_tables import flatten
from common.metrics_file import read_metrics
from common.options import default_values
from data.corpora.resolver import parse_name, replaced_corpus_name, resolve_shard_set
from data.corpora.sample import SAMPLE_NAME
from data.derived_name import parse_derived_name
from data.kinds import summaries
from data.mixture import REPLAY, parse_mixture
from data.shards import ShardSet
from train.options import GrpoOptions, PretrainOptions, SftOptions
from train.summariser_options import SummariserOptions

# Steps that measure the speed, and those at their beginning that do not count.
_SPEED_STEPS = 20
_LOG_EVERY = 5
_STAGES_FILE = "stages.json"


def make_summariser(options: SummariserOptions) -> None:
    """Run the stages that are not done yet.

    Raises UserError if the text or the data does not exist. Exits with the code of a stage that
    fails.
    """
    named = parse_name(options.text)
    if named is not None and named.derivation != "decontaminated":
        raise UserError(
            f"--text {options.text}: has to be a file or folder, the sample, or "
            "decontaminated(FILE,TEST_FILE…)"
        )
    raw_text, test_files = (options.text, ()) if named is None else (named.source, named.arguments)
    is_sample = raw_text == SAMPLE_NAME
    if not is_sample and not Path(raw_text).exists():
        raise UserError(f"--text {options.text}: no such file or folder, and not the sample")
    checked_text = ",".join((raw_text, *test_files))
    text = options.text if is_sample else f"decontaminated({checked_text})"
    recipe = options.run.with_name(f"{options.run.name}-recipe")
    recipe.mkdir(parents=True, exist_ok=True)
    stages = Stages(recipe / _STAGES_FILE)
    tokenizer = recipe / "tokenizer"
    # Without inputs the command takes those of the sample.
    inputs = [] if is_sample else ["--input", raw_text]
    stages.run(
        "tokenizer",
        [
            *("data.tokenizer", "train", *inputs),
            *("--vocabulary", str(options.vocabulary), "--out", str(tokenizer)),
        ],
        result=tokenizer,
    )
    sets = prepare_sets("data", options.data, tokenizer)
    rewarded = sets
    if options.reward_data is not None:
        rewarded = prepare_sets("reward_data", options.reward_data, tokenizer)
        if rewarded.all != rewarded.summaries:
            raise UserError(
                f"--reward_data {options.reward_data}: all of it has to be summaries, such as csl "
                "or headlines(news.jsonl)"
            )
    base = options.run.with_name(f"{options.run.name}-base")
    pretrain = _to_arguments(options.pretrain)
    pretrain |= {"tokenizer": tokenizer, "data": text, "run": base}
    if options.hours is not None:
        pretrain["max_steps"] = _plan_steps(options, stages, recipe / "speed", pretrain)
    pretrain["curriculum.data"] = options.tasks or f"titles_as_text({checked_text})"
    stages.run("pretrain", ["train.pretrain", *_arguments(pretrain)], result=base)
    tuned = options.run.with_name(f"{options.run.name}-sft") if options.rewards else options.run
    sft = _to_arguments(options.sft) | {"base": base, "data": sets.all, "run": tuned}
    stages.run("sft", ["train.sft", *_arguments(sft)], result=tuned)
    if options.rewards:
        grpo = _to_arguments(options.grpo)
        grpo |= {"base": tuned, "data": rewarded.summaries, "run": options.run}
        stages.run("grpo", ["train.grpo", *_arguments(grpo)], result=options.run)
    limit = [] if options.limit is None else ["--limit", str(options.limit)]
    # The sets of the last run are those that it is evaluated on.
    if rewarded.have_dev:
        # With a file of its figures, an interrupted stage goes on where it was.
        figures = ["--json", str(recipe / run_layout.DECODING_FILE)]
        stages.run(
            "decoding",
            ["evaluate.decoding", "--checkpoint", str(options.run), *limit, *figures],
            result=options.run / run_layout.DECODING_FILE,
        )
    stages.run(
        "evaluate",
        ["evaluate", "--checkpoint", str(options.run), *limit],
        result=options.run / f"{run_layout.REPORT_NAME}.md",
    )


class FineTuningSets(NamedTuple):
    """Mixtures to fine-tune on, decontaminated."""

    all: str
    summaries: str  # the part of them that is summaries
    have_dev: bool  # whether there are summaries to choose the decoding on


def prepare_sets(option: str, data: str, tokenizer: Path) -> FineTuningSets:
    """Prepare the sets of the mixture that an option names, and decontaminate them.

    Done before pretraining, after which a mistake in `data` would be found too late. Raises
    UserError if a name is unknown, if a file cannot be prepared, or if there are no summaries.
    """
    parts = []
    summary_parts = []
    have_dev = False
    for name, weight in zip(*parse_mixture(data), strict=True):
        is_summaries = False
        if name != REPLAY:
            folder = resolve_shard_set(name, tokenizer)
            is_summaries = ShardSet.open(folder).kind is summaries.KIND
            if _may_share_passages(name, folder):
                name = f"decontaminated({name})"
                folder = resolve_shard_set(name, tokenizer)
            if is_summaries and len(ShardSet.open(folder).load_records("validation")):
                have_dev = True
        part = name if weight == 1 else f"{name}:{weight}"
        parts.append(part)
        if is_summaries:
            summary_parts.append(part)
    if not summary_parts:
        raise UserError(f"--{option} {data}: there are no summaries in it, such as csl or lcsts")
    return FineTuningSets("+".join(parts), "+".join(summary_parts), have_dev)


def _may_share_passages(name: str, folder: Path) -> bool:
    """Return whether a set has to be compared with the test sets.

    Those that a name derives are not: `decontaminated` takes no derived set. Those of summaries
    compare by themselves; `distractors` and `long` stay unchecked. Those of the sample are not
    either: its articles are made of the same few sentences, and none would be left.
    """
    return parse_derived_name(name) is None and replaced_corpus_name(folder) is None


class Stages:
    """The commands of the stages that are done, in a file."""

    def __init__(self, path: Path) -> None:
        """Read the file if it exists."""
        self._path = path
        self._done: dict[str, Any] = read_json(path) if path.exists() else {}

    def run(self, name: str, command: list[str], result: Path) -> None:
        """Print and run `python -m` with a stage's command, unless it is done and `result` exists.

        What follows a stage that is run is done no more. Exits with the code of a command that
        fails.
        """
        print(f"\n$ python -m {shlex.join(command)}", flush=True)
        if self._done.get(name) == command and result.exists():
            print(f"{name}: done", flush=True)
            return
        if code := run_module(command):
            # The command has printed its error.
            sys.exit(code)
        self._done = {**_before(self._done, name), name: command}
        write_json(self._path, self._done)

    def measure(self, name: str, run: Path, command: list[str]) -> float:
        """Return the tokens per second of a short run, which is measured once and then deleted."""
        if self._done.get(name, {}).get("command") != command:
            print(f"\n$ python -m {shlex.join(command)}", flush=True)
            shutil.rmtree(run, ignore_errors=True)
            if code := run_module(command):
                sys.exit(code)
            rates = [
                record["tokens_per_second"]
                for record in read_metrics(run)
                if record["kind"] == "train" and record["step"] > _LOG_EVERY
            ]
            shutil.rmtree(run)
            result = {"command": command, "tokens_per_second": statistics.median(rates)}
            self._done = {**_before(self._done, name), name: result}
            write_json(self._path, self._done)
        return float(self._done[name]["tokens_per_second"])


def run_module(command: Sequence[str]) -> int:
    """Run `python -m` with a command, and return its exit code.

    The command gets the time that it needs to save what it has when Ctrl-C or SIGTERM stops it:
    `subprocess.run` would kill it after a quarter of a second.
    """
    process: subprocess.Popen[bytes] | None = None
    stopped_by = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped_by
        stopped_by = number
        # A terminal sends Ctrl-C to the command as well.
        if number == signal.SIGTERM and process is not None:
            process.terminate()

    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, stop) for number in numbers]
    try:
        process = subprocess.Popen([sys.executable, "-m", *command])
        code = process.wait()
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    # A shell's code for a signal is 128 and its number; that of `subprocess` is negative.
    code = code if code >= 0 else 128 - code
    # A command that ends well in spite of the signal is done, but nothing is to follow it.
    return code or (128 + stopped_by if stopped_by else 0)


def _before(done: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the stages that come before one; their order is that in which they were run."""
    names = list(done)
    return {key: done[key] for key in (names[: names.index(name)] if name in done else names)}


def _plan_steps(
    options: SummariserOptions, stages: Stages, run: Path, pretrain: dict[str, Any]
) -> int:
    """Return the steps of pretraining that fit the hours, by the speed of a few of them."""
    assert options.hours is not None
    short = pretrain | {
        "run": run,
        "max_steps": _SPEED_STEPS,
        "log_every": _LOG_EVERY,
        "checkpoint.every": _SPEED_STEPS,
        "evaluation.every": 10 * _SPEED_STEPS,
        "evaluation.tokens": 2,
        "evaluation.sample_tokens": 0,
    }
    rate = stages.measure("speed", run, ["train.pretrain", *_arguments(short)])
    seconds = options.hours * 3600 * options.pretraining
    steps = max(1, int(seconds * rate / options.pretrain.batch_tokens))
    print(
        f"speed: {rate:,.0f} tokens/s; {options.pretraining:.0%} of {options.hours:g} hours are "
        f"{steps:,} steps of pretraining",
        flush=True,
    )
    return steps


def _to_arguments(options: PretrainOptions | SftOptions | GrpoOptions) -> dict[str, Any]:
    """Return the options that differ from the defaults of their command, by dotted key."""
    defaults = flatten(default_values(type(options)))
    values = flatten(options.model_dump(mode="json", by_alias=True))
    return {key: value for key, value in values.items() if value != defaults.get(key)}


def _arguments(values: dict[str, Any]) -> list[str]:
    """Return `--key value` for each option; null for None, several values for a list."""
    arguments = []
    for key, value in values.items():
        items = value if isinstance(value, list) else [value]
        arguments += [f"--{key}", *("null" if item is None else str(item) for item in items)]
    return arguments
