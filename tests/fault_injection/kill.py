"""Kill training runs with SIGKILL at random moments, many times each, and resume them to the end.

    python -m tests.fault_injection.kill                       60 kills
    python -m tests.fault_injection.kill --kills 500 --seed 7

The kills are spread over pretraining, fine-tuning, an adapter, a run that stops early, one on
preferences, and one on rewards. Each run must end like a run that was never stopped: the same bytes
in all remaining checkpoints (weights, optimizer, state), the same `metrics.jsonl` except for
speeds, the same samples and best checkpoint, and no temporary files. The model is tiny, but all the
code of training runs: gradient accumulation, epoch borders, evaluation, rotation, early stopping.
Files are written in two halves with a pause between them, so that many kills hit a checkpoint while
it is written.
"""

import functools
import mmap
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from common.errors import UserError, run_main
from common.files import atomic_folder, check_manifest
from common.options import Options, parse_options
from common.run_layout import CHECKPOINTS_DIR, EARLY_STOP_FILE, list_steps, step_folder
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from model.checkpoint.weights import save_checkpoint
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer import load_tokenizer
from tests.fault_injection.child import ChildProcess
from tests.helpers.preferences import write_pairs
from tests.helpers.questions import write_questions
from tests.helpers.training import (
    TINY_SHAPE,
    comparable_records,
    to_arguments,
    truncate_tokenizer,
    write_text_set,
)

ROOT = Path(__file__).resolve().parents[2]
# The phases of training that a kill can hit; the shared byte of `SlowDiskFault` holds an index.
PHASES = (
    "start",
    "opening",
    "plan",
    "reference",
    "answers",
    "step",
    "record",
    "checkpoint",
    "rotation",
    "evaluation",
    "ending",
)
TINY_MODEL_ARGUMENTS = to_arguments({"model": TINY_SHAPE, "device": "cpu"})
MAX_KILLS_PER_RUN = 6
# Phases to kill in, repeated where more can break.
WEIGHTED_PHASES = (
    "checkpoint",
    "checkpoint",
    "checkpoint",
    "rotation",
    "rotation",
    "evaluation",
    "evaluation",
    "record",
    "opening",
    "ending",
)


@dataclass(frozen=True)
class Scenario:
    """A training command without the option --run."""

    module: str
    arguments: list[str]

    def start(
        self, run: Path, fault: Callable[[], None] | None = None, *, fresh_interpreter: bool = False
    ) -> ChildProcess:
        """Start the run, or resume it."""
        return ChildProcess(
            self.module,
            [*self.arguments, "--run", str(run)],
            run.with_suffix(".log"),
            fault,
            fresh_interpreter=fresh_interpreter,
        )


def pretrain_scenario(folder: Path) -> Scenario:
    """Return a pretraining run of 20 steps of two micro-batches; an epoch has about 13 steps.

    Writes the text that it trains on into `folder`.
    """
    tokenizer = truncate_tokenizer(load_tokenizer(ROOT / "assets/tokenizer"))
    data = write_text_set(folder / "text", tokenizer, train=8, validation=1)
    options = {
        "data": data,
        "sequence_length": 32,
        "batch_tokens": 64,
        "micro_batch": 1,
        "max_steps": 20,
        "checkpoint.every": 4,
        "evaluation.every": 6,
        "log_every": 3,
        "evaluation.sample_tokens": 2,
    }
    return Scenario("train.pretrain", [*to_arguments(options), *TINY_MODEL_ARGUMENTS])


def sft_scenario(folder: Path) -> Scenario:
    """Return a fine-tuning run of three epochs on a part of the sample."""
    return _build_sft_scenario(folder, "--base", "none", *TINY_MODEL_ARGUMENTS, "--epochs", "3")


def lora_scenario(folder: Path) -> Scenario:
    """Return a fine-tuning run that trains an adapter with dropout on a base of random weights."""
    options = {
        "base": _save_random_base(folder / "base"),
        "device": "cpu",
        "epochs": 3,
        "adapter": "lora",
        "lora.dropout": 0.2,
    }
    return _build_sft_scenario(folder, *to_arguments(options))


def early_stopping_scenario(folder: Path) -> Scenario:
    """Return a fine-tuning run that early stopping ends long before the last epoch."""
    options = to_arguments({"base": "none", "epochs": 30, "evaluation.patience": 2})
    return _build_sft_scenario(folder, *TINY_MODEL_ARGUMENTS, *options)


def dpo_scenario(folder: Path) -> Scenario:
    """Return a run on preferences of three epochs, from a base of random weights."""
    source = SourceGroup("preferences", (str(write_pairs(folder / "pairs.jsonl", 24)),))
    prepare_groups([source], folder / "pairs", ROOT / "assets/tokenizer", PrepareOptions(workers=1))
    options = {
        "data": folder / "pairs",
        "base": _save_random_base(folder / "base"),
        "device": "cpu",
        "epochs": 3,
        "sequence_length": 128,
        "batch_tokens": 256,
        "micro_batch": 1,
        "optimizer.lr": 1e-3,
        "checkpoint.every": 5,
        "evaluation.every": 4,
        "evaluation.examples": 1,
        "evaluation.max_new_tokens": 2,
        "log_every": 2,
    }
    return Scenario("train.dpo", to_arguments(options))


def grpo_scenario(folder: Path) -> Scenario:
    """Return a run on rewards, with three updates on the same answers, from random weights."""
    source = SourceGroup("redgpt", (str(write_questions(folder / "questions.jsonl", 40)),))
    prepare_groups([source], folder / "set", ROOT / "assets/tokenizer", PrepareOptions(workers=1))
    options = {
        "data": folder / "set",
        "base": _save_random_base(folder / "base"),
        "device": "cpu",
        "max_steps": 14,
        "sequence_length": 128,
        "micro_batch": 1,
        "optimizer.lr": 1e-3,
        "grpo.rewards": "length,repetition:0.5",
        "grpo.prompts": 3,
        "grpo.samples": 3,
        "grpo.max_new_tokens": 4,
        "grpo.updates": 3,
        "checkpoint.every": 4,
        "evaluation.every": 5,
        "evaluation.examples": 2,
        "log_every": 2,
    }
    return Scenario("train.grpo", to_arguments(options))


def _save_random_base(folder: Path) -> Path:
    """Write a tiny model with random weights into a folder, and return it."""
    tokenizer = load_tokenizer(ROOT / "assets/tokenizer")
    config = LlamaConfig(
        tokenizer.vocab_size, num_key_value_heads=4, max_position_embeddings=256, **TINY_SHAPE
    )
    with atomic_folder(folder, {}) as base:
        save_checkpoint(Llama(config).init_weights(0), tokenizer, base)
    return folder


def _build_sft_scenario(folder: Path, *extra_arguments: str) -> Scenario:
    """Return fine-tuning on 8 abstracts of the sample, prepared in `folder` on the first call."""
    sample = ROOT / "assets/sample/summary/csl"
    if not (folder / "csl").exists():
        group = SourceGroup("csl", (str(sample / "train.tsv"),), (str(sample / "dev.tsv"),))
        prepare_groups(
            [group], folder / "csl", ROOT / "assets/tokenizer", PrepareOptions(workers=1, limit=8)
        )
    options = {
        "data": folder / "csl",
        "sequence_length": 128,
        "batch_tokens": 256,
        "micro_batch": 1,
        "checkpoint.every": 5,
        "evaluation.every": 4,
        "log_every": 2,
        "evaluation.examples": 2,
        "evaluation.max_new_tokens": 2,
    }
    return Scenario("train.sft", [*to_arguments(options), *extra_arguments])


SCENARIOS = {
    "pretraining": pretrain_scenario,
    "fine-tuning": sft_scenario,
    "an adapter": lora_scenario,
    "ending early": early_stopping_scenario,
    "preferences": dpo_scenario,
    "rewards": grpo_scenario,
}


@dataclass(frozen=True)
class KillPoint:
    """The moment of a kill: `delay_seconds` after a phase begins for the `occurrence`-th time.

    Occurrences count from 1 and in one process.
    """

    phase: str
    occurrence: int
    delay_seconds: float


@dataclass(frozen=True)
class SlowDiskFault:
    """A fault: slow writes, so that kills hit them, and reports of the phase that training is in.

    The phase is a byte in a file mapped into memory, which is current even after a kill. When the
    kill point is reached, a byte is written to a FIFO that the parent waits for.
    """

    run_folder: Path
    kill_point: KillPoint
    pause_seconds: float = 0.004

    def __call__(self) -> None:
        """Inject the fault into this process."""
        import model.checkpoint.weights
        import train.checkpoint
        from data.batching.epoch_plan import EpochPlan
        from train import preference_objective, rollouts
        from train.dpo_eval import PreferenceEvaluator
        from train.grpo_eval import RewardEvaluator
        from train.monitoring.metrics_log import MetricsLog
        from train.pretrain_eval import TextEvaluator
        from train.sft_eval import AnswerEvaluator
        from train.trainer import Trainer

        fifo = os.open(self.run_folder.with_suffix(".fifo"), os.O_WRONLY)
        with self.run_folder.with_suffix(".phase").open("r+b") as file:
            shared_phase = mmap.mmap(file.fileno(), 1)
        phase_counts: Counter[str] = Counter()
        for owner, name, phase in (
            (train.checkpoint, "save", "checkpoint"),
            (train.checkpoint, "rotate_checkpoints", "rotation"),
            (TextEvaluator, "evaluate", "evaluation"),
            (AnswerEvaluator, "evaluate", "evaluation"),
            (PreferenceEvaluator, "evaluate", "evaluation"),
            (RewardEvaluator, "evaluate", "evaluation"),
            (rollouts, "save_groups", "answers"),
            (preference_objective, "load_or_compute_reference", "reference"),
            (EpochPlan, "_build_epoch", "plan"),
            (Trainer, "train_step", "step"),
            (Trainer, "_write_early_stop", "ending"),
            (MetricsLog, "write", "record"),
            (MetricsLog, "__init__", "opening"),
        ):
            setattr(
                owner,
                name,
                self._report_phase(getattr(owner, name), phase, shared_phase, phase_counts, fifo),
            )
        for owner, name in (
            (os, "fsync"),
            (os, "replace"),
            (os, "rename"),
            (os, "unlink"),
            (shutil, "rmtree"),
        ):
            setattr(owner, name, self._slow_down(getattr(owner, name)))
        for module in (model.checkpoint.weights, train.checkpoint):
            module.save_file = self._write_in_halves(module.save_file)  # type: ignore[attr-defined]

    def _report_phase(
        self,
        function: Callable[..., Any],
        phase: str,
        shared_phase: mmap.mmap,
        phase_counts: Counter[str],
        fifo: int,
    ) -> Callable[..., Any]:
        """Return `function` such that a call of it counts as `phase`, which may nest in another."""

        @functools.wraps(function)
        def report_and_call(*arguments: Any, **named_arguments: Any) -> Any:
            outer_phase = shared_phase[0]
            shared_phase[0] = PHASES.index(phase)
            phase_counts[phase] += 1
            if (phase, phase_counts[phase]) == (self.kill_point.phase, self.kill_point.occurrence):
                os.write(fifo, b"!")
            try:
                return function(*arguments, **named_arguments)
            finally:
                shared_phase[0] = outer_phase

        return report_and_call

    def _slow_down(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with a pause before and after it."""

        def pause_and_call(*arguments: Any, **named_arguments: Any) -> Any:
            time.sleep(self.pause_seconds)
            result = function(*arguments, **named_arguments)
            time.sleep(self.pause_seconds)
            return result

        return pause_and_call

    def _write_in_halves(self, save_file: Callable[..., Any]) -> Callable[..., Any]:
        """Return `save_file` of safetensors such that its file is incomplete for a while."""

        def save_in_halves(tensors: Any, path: Path, **named_arguments: Any) -> None:
            save_file(tensors, path, **named_arguments)
            content = path.read_bytes()
            middle = len(content) // 2
            with path.open("wb") as file:
                for half in (content[:middle], content[middle:]):
                    file.write(half)
                    file.flush()
                    time.sleep(self.pause_seconds)

        return save_in_halves


def find_differences(run: Path, reference: Path) -> list[str]:
    """Return a line for each difference between a finished run and one that was never stopped.

    Compares checkpoints, metrics, samples and the mark of an early stop, and looks for temporary
    files.
    """
    differing = []
    if (run_steps := list_steps(run)) != (reference_steps := list_steps(reference)):
        differing.append(f"checkpoints of steps {run_steps} instead of {reference_steps}")
    for step in sorted({*run_steps} & {*reference_steps}):
        run_step, reference_step = step_folder(run, step), step_folder(reference, step)
        names = {path.name for path in (*run_step.iterdir(), *reference_step.iterdir())}
        differing += [
            f"step {step}: {name}"
            for name in sorted(names)
            if not (run_step / name).is_file()
            or (run_step / name).read_bytes() != (reference_step / name).read_bytes()
        ]
    if os.readlink(run / CHECKPOINTS_DIR / "best") != os.readlink(
        reference / CHECKPOINTS_DIR / "best"
    ):
        differing.append("the best checkpoint")
    if comparable_records(run) != comparable_records(reference):
        differing.append("metrics.jsonl")
    if (run / "samples.md").read_bytes() != (reference / "samples.md").read_bytes():
        differing.append("samples.md")
    if read_early_stop(run) != read_early_stop(reference):
        differing.append(EARLY_STOP_FILE)
    leftovers = [
        path.name
        for path in (*run.iterdir(), *(run / CHECKPOINTS_DIR).iterdir())
        if path.suffix in (".tmp", ".old")
    ]
    return differing + [f"left over: {name}" for name in leftovers]


def read_early_stop(run: Path) -> bytes | None:
    """Return the contents of the file that marks a run as stopped early, or None without one."""
    file = run / EARLY_STOP_FILE
    return file.read_bytes() if file.exists() else None


@dataclass
class KillResults:
    """The kills so far, and the problems that they revealed."""

    num_runs: int = 0
    kills_by_phase: Counter[str] = field(default_factory=Counter)
    kills_by_scenario: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def num_kills(self) -> int:
        """Return the number of processes that were killed before they ended."""
        return sum(self.kills_by_phase.values())


def kill_at(scenario: Scenario, run: Path, kill_point: KillPoint) -> tuple[int, str]:
    """Start or resume a run and kill it at `kill_point`; return its exit code and its phase then.

    A run that ends before the kill point has its own exit code.
    """
    fifo, phase_file = run.with_suffix(".fifo"), run.with_suffix(".phase")
    phase_file.write_bytes(b"\0")
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    fifo_descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        child = scenario.start(run, SlowDiskFault(run, kill_point))
        ready = select.select([child.sentinel, fifo_descriptor], [], [])[0]
        # A FIFO without writers is readable too, but has no byte to read: before the child opens it
        # and after the child has ended.
        while (
            fifo_descriptor in ready
            and child.sentinel not in ready
            and not os.read(fifo_descriptor, 1)
        ):
            ready = select.select([child.sentinel, fifo_descriptor], [], [], 0.01)[0]
        time.sleep(kill_point.delay_seconds)
        child.send_signal(signal.SIGKILL)
        return child.wait(), PHASES[phase_file.read_bytes()[0]]
    finally:
        os.close(fifo_descriptor)


def sample_kill_points(rng: random.Random, num_kills: int) -> list[KillPoint]:
    """Return random moments: half at any time, half in short phases where much can break."""
    kill_points = []
    for index in range(num_kills):
        # An epoch plan is stored in the run once it is built, mostly before the first kill.
        phase = "plan" if index == 0 and rng.random() < 0.5 else rng.choice(WEIGHTED_PHASES)
        if index % 2 == 1:
            kill_point = KillPoint("step", rng.randint(1, 8), rng.random() * 0.3)
        elif phase in ("plan", "opening"):  # once in a process
            kill_point = KillPoint(phase, 1, rng.random() * 0.05)
        else:
            kill_point = KillPoint(phase, rng.choice((1, 1, 2)), rng.random() * 0.05)
        kill_points.append(kill_point)
    return kill_points


def kill_and_resume(
    scenario: Scenario,
    run: Path,
    reference: Path,
    max_kills: int,
    rng: random.Random,
    results: KillResults,
) -> None:
    """Kill a run up to `max_kills` times, let it end, and compare it with `reference`.

    Kills and problems go into `results`. After each kill all checkpoints must be intact, and the
    newest must not be older than before.
    """
    previous_step = 0
    for kill_point in sample_kill_points(rng, max_kills):
        exit_code, phase = kill_at(scenario, run, kill_point)
        if exit_code != -signal.SIGKILL:
            break  # the run has ended, or failed, which the final process shows
        results.kills_by_phase[phase] += 1
        steps = list_steps(run)
        for step in steps:
            if problem := check_manifest(step_folder(run, step)):
                results.problems.append(f"{run}: {problem}")
        newest_step = max(steps, default=0)
        if newest_step < previous_step:
            results.problems.append(f"{run}: the checkpoint of step {previous_step} is gone")
        previous_step = newest_step
    final_process = scenario.start(run)
    if exit_code := final_process.wait(600):
        results.problems.append(f"{run}: exit code {exit_code}: {final_process.output[-500:]}")
        return
    results.problems += [
        f"{run}: differs from a run never stopped: {difference}"
        for difference in find_differences(run, reference)
    ]
    results.num_runs += 1


def run_kills(
    folder: Path, num_kills: int, seed: int, report: Callable[[str], None]
) -> KillResults:
    """Kill runs at least `num_kills` times, divided evenly among the scenarios.

    Stops at the first problem. `report` gets a line after each run.
    """
    rng, results = random.Random(seed), KillResults()
    scenarios = {name: build_scenario(folder) for name, build_scenario in SCENARIOS.items()}
    references = {name: folder / f"{name} whole" for name in scenarios}
    for name, scenario in scenarios.items():
        child = scenario.start(references[name], fresh_interpreter=True)
        exit_code = child.wait(600)
        has_stopped_early = read_early_stop(references[name]) is not None
        if exit_code or has_stopped_early != (name == "ending early"):
            raise UserError(
                f"the run that is never stopped failed, or stopped early or late: {child.output}"
            )
    while not results.problems and (
        unfinished := [
            name
            for name in scenarios
            if results.kills_by_scenario[name] * len(scenarios) < num_kills
        ]
    ):
        for name in unfinished:
            run, kills_before = folder / f"{name} {results.num_runs}", results.num_kills
            kill_and_resume(
                scenarios[name],
                run,
                references[name],
                min(MAX_KILLS_PER_RUN, num_kills),
                rng,
                results,
            )
            results.kills_by_scenario[name] += results.num_kills - kills_before
            report(f"{run.name}: {results.num_kills} kills so far, {len(results.problems)} faults")
    return results


class KillOptions(Options):
    """Options of `python -m tests.fault_injection.kill`."""

    kills: int = Field(60, ge=1, description="least number of kills")
    seed: int = Field(0, description="seed of the moments")


def main() -> int:
    """Run the command; return 1 if there are problems."""
    options = parse_options(
        KillOptions,
        sys.argv[1:],
        name="tests.fault_injection.kill",
        description=(__doc__ or "").split("\n")[0],
    )
    start_time = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="babyllama-kill-") as folder:
        results = run_kills(
            Path(folder), options.kills, options.seed, lambda line: print(line, flush=True)
        )
    print(
        f"{results.num_kills} kills in {results.num_runs} runs, "
        f"{time.monotonic() - start_time:.0f} s, {len(results.problems)} faults"
    )
    print("  of: " + ", ".join(f"{name} {results.kills_by_scenario[name]}" for name in SCENARIOS))
    print("  where: " + ", ".join(f"{phase} {results.kills_by_phase[phase]}" for phase in PHASES))
    for problem in results.problems:
        print(f"  FAULT {problem}", file=sys.stderr)
    return 1 if results.problems else 0


if __name__ == "__main__":
    run_main(main)
