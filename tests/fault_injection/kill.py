"""Kill training runs with SIGKILL at random moments, many times each, and resume them to the end.

    python -m tests.fault_injection.kill                       60 kills
    python -m tests.fault_injection.kill --kills 500 --seed 7

The kills are spread over pretraining, fine-tuning, an adapter, and a run that stops early. Each run
must end like a run that was never stopped: the same bytes in all remaining checkpoints (weights,
optimizer, state), the same `metrics.jsonl` but for speeds, the same samples and best checkpoint,
and no temporary files. The model is tiny, the code is all of training: gradient accumulation, epoch
borders, evaluation, rotation, early stopping. Files are written in two halves with a pause between
them, so that many kills hit a checkpoint while it is written.
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
from tests.helpers.training import TINY_SHAPE, comparable_records, to_arguments, write_text_set

ROOT = Path(__file__).resolve().parents[2]
PHASES = (
    "start",
    "opening",
    "plan",
    "step",
    "record",
    "checkpoint",
    "rotation",
    "evaluation",
    "ending",
)
TINY_MODEL_ARGUMENTS = to_arguments({"model": TINY_SHAPE, "device": "cpu"})
MAX_KILLS_PER_RUN = 6
# Where to kill, more often where more can break.
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
    """A training command without its --run."""

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
    """Return 20 steps of two micro-batches, on text in `folder` of about 12 steps an epoch."""
    data = write_text_set(
        folder / "text", load_tokenizer(ROOT / "assets/tokenizer"), train=30, validation=4
    )
    options = {
        "data": data,
        "sequence_length": 64,
        "batch_tokens": 256,
        "micro_batch": 2,
        "max_steps": 20,
        "checkpoint.every": 4,
        "evaluation.every": 6,
        "log_every": 3,
        "evaluation.sample_tokens": 2,
    }
    return Scenario("train.pretrain", [*to_arguments(options), *TINY_MODEL_ARGUMENTS])


def sft_scenario(folder: Path) -> Scenario:
    """Return three epochs of fine-tuning on part of the sample, with the best step by ROUGE."""
    return _build_sft_scenario(folder, "--base", "none", *TINY_MODEL_ARGUMENTS, "--epochs", "3")


def lora_scenario(folder: Path) -> Scenario:
    """Return the same with an adapter that has dropout, beside a base of random weights."""
    tokenizer = load_tokenizer(ROOT / "assets/tokenizer")
    config = LlamaConfig(
        tokenizer.vocab_size, num_key_value_heads=4, max_position_embeddings=256, **TINY_SHAPE
    )
    with atomic_folder(folder / "base", {}) as base:
        save_checkpoint(Llama(config).init_weights(0), tokenizer, base)
    options = {
        "base": folder / "base",
        "device": "cpu",
        "epochs": 3,
        "adapter": "lora",
        "lora.dropout": 0.2,
    }
    return _build_sft_scenario(folder, *to_arguments(options))


def early_stopping_scenario(folder: Path) -> Scenario:
    """Return fine-tuning that patience ends long before the last epoch."""
    options = to_arguments({"base": "none", "epochs": 30, "evaluation.patience": 2})
    return _build_sft_scenario(folder, *TINY_MODEL_ARGUMENTS, *options)


def _build_sft_scenario(folder: Path, *extra_arguments: str) -> Scenario:
    sample = ROOT / "assets/sample/summary/csl"
    if not (folder / "csl").exists():
        group = SourceGroup("csl", (str(sample / "train.tsv"),), (str(sample / "dev.tsv"),))
        prepare_groups(
            [group], folder / "csl", ROOT / "assets/tokenizer", PrepareOptions(workers=1, limit=24)
        )
    options = {
        "data": folder / "csl",
        "sequence_length": 256,
        "batch_tokens": 512,
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
}


@dataclass(frozen=True)
class KillPoint:
    """The moment of a kill: a delay after a phase begins for the given time, counted from 1."""

    phase: str
    occurrence: int
    delay_seconds: float


@dataclass(frozen=True)
class SlowDiskFault:
    """The fault: slow writes. A mapped file holds the phase, and a FIFO signals the kill point."""

    run_folder: Path
    kill_point: KillPoint
    pause_seconds: float = 0.004

    def __call__(self) -> None:
        """Inject the fault into this process."""
        import model.checkpoint.weights
        import train.training_state
        from data.batching.epoch_plan import EpochPlan
        from train.metrics_log import MetricsLog
        from train.pretrain_eval import TextEvaluator
        from train.sft_eval import AnswerEvaluator
        from train.trainer import Trainer

        fifo = os.open(self.run_folder.with_suffix(".fifo"), os.O_WRONLY)
        with self.run_folder.with_suffix(".place").open("r+b") as file:
            shared_phase = mmap.mmap(file.fileno(), 1)
        phase_counts: Counter[str] = Counter()
        for owner, name, phase in (
            (train.training_state, "save", "checkpoint"),
            (train.training_state, "rotate_checkpoints", "rotation"),
            (TextEvaluator, "evaluate", "evaluation"),
            (AnswerEvaluator, "evaluate", "evaluation"),
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
        for module in (model.checkpoint.weights, train.training_state):
            module.save_file = self._write_in_halves(module.save_file)  # type: ignore[attr-defined]

    def _report_phase(
        self,
        function: Callable[..., Any],
        phase: str,
        shared_phase: mmap.mmap,
        phase_counts: Counter[str],
        fifo: int,
    ) -> Callable[..., Any]:
        @functools.wraps(function)
        def reporting(*arguments: Any, **named: Any) -> Any:
            outer_phase = shared_phase[0]
            shared_phase[0] = PHASES.index(phase)
            phase_counts[phase] += 1
            if (phase, phase_counts[phase]) == (self.kill_point.phase, self.kill_point.occurrence):
                os.write(fifo, b"!")
            try:
                return function(*arguments, **named)
            finally:
                shared_phase[0] = outer_phase

        return reporting

    def _slow_down(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **named: Any) -> Any:
            time.sleep(self.pause_seconds)
            result = function(*arguments, **named)
            time.sleep(self.pause_seconds)
            return result

        return slow

    def _write_in_halves(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def halves(tensors: Any, path: Path, **named: Any) -> None:
            function(tensors, path, **named)
            content = path.read_bytes()
            with path.open("wb") as file:
                for part in (content[: len(content) // 2], content[len(content) // 2 :]):
                    file.write(part)
                    file.flush()
                    time.sleep(self.pause_seconds)

        return halves


def find_differences(run: Path, reference: Path) -> list[str]:
    """Return what differs between a finished run and the one that was never stopped."""
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
    if read_end_record(run) != read_end_record(reference):
        differing.append(EARLY_STOP_FILE)
    leftovers = [
        path.name
        for path in (*run.iterdir(), *(run / CHECKPOINTS_DIR).iterdir())
        if path.suffix in (".tmp", ".old")
    ]
    return differing + [f"left over: {name}" for name in leftovers]


def read_end_record(run: Path) -> bytes | None:
    """Return the file of a run that stopped early, else None."""
    return (run / EARLY_STOP_FILE).read_bytes() if (run / EARLY_STOP_FILE).exists() else None


@dataclass
class KillResults:
    """The kills so far, and the problems that they revealed."""

    num_runs: int = 0
    kills_by_phase: Counter[str] = field(default_factory=Counter)
    kills_by_scenario: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def num_kills(self) -> int:
        """The number of processes that were killed before they ended."""
        return sum(self.kills_by_phase.values())


def kill_at(scenario: Scenario, run: Path, kill_point: KillPoint) -> tuple[int, str]:
    """Start or resume a run and kill it at `kill_point`; return its exit code and phase."""
    fifo, phase_file = run.with_suffix(".fifo"), run.with_suffix(".place")
    phase_file.write_bytes(b"\0")
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    fifo_descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        child = scenario.start(run, SlowDiskFault(run, kill_point))
        ready = select.select([child.sentinel, fifo_descriptor], [], [])[0]
        # A FIFO without writers is readable too.
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
    for number in range(num_kills):
        phase = "plan" if not number and rng.random() < 0.5 else rng.choice(WEIGHTED_PHASES)
        once = phase in ("plan", "opening")
        kill_points.append(
            KillPoint("step", rng.randint(1, 8), rng.random() * 0.3)
            if number % 2
            else KillPoint(phase, 1 if once else rng.choice((1, 1, 2)), rng.random() * 0.05)
        )
    return kill_points


def kill_and_resume(
    scenario: Scenario,
    run: Path,
    reference: Path,
    max_kills: int,
    rng: random.Random,
    results: KillResults,
) -> None:
    """Kill a run up to `max_kills` times, let it end, and compare it with `reference`."""
    previous_step = 0
    for kill_point in sample_kill_points(rng, max_kills):
        code, phase = kill_at(scenario, run, kill_point)
        if code == -signal.SIGKILL:
            results.kills_by_phase[phase] += 1
        else:
            break
        problems = [
            problem
            for step in list_steps(run)
            if (problem := check_manifest(step_folder(run, step)))
        ]
        newest_step = max(list_steps(run), default=0)
        results.problems += [f"{run}: {problem}" for problem in problems]
        if newest_step < previous_step:
            results.problems.append(f"{run}: the checkpoint of step {previous_step} is gone")
        previous_step = newest_step
    final_process = scenario.start(run)
    if code := final_process.wait(600):
        results.problems.append(f"{run}: exit code {code}: {final_process.output[-500:]}")
        return
    results.problems += [
        f"{run}: differs from a run never stopped: {what}"
        for what in find_differences(run, reference)
    ]
    results.num_runs += 1


def run_kills(
    folder: Path, num_kills: int, seed: int, report: Callable[[str], None]
) -> KillResults:
    """Run at least `num_kills` kills, divided evenly among the scenarios."""
    rng, results = random.Random(seed), KillResults()
    scenarios = {name: make(folder) for name, make in SCENARIOS.items()}
    references = {name: folder / f"{name} whole" for name in scenarios}
    for name, scenario in scenarios.items():
        child = scenario.start(references[name], fresh_interpreter=True)
        if child.wait(600) or (read_end_record(references[name]) is not None) != (
            name == "ending early"
        ):
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
    print("  where: " + ", ".join(f"{place} {results.kills_by_phase[place]}" for place in PHASES))
    for fault in results.problems:
        print(f"  FAULT {fault}", file=sys.stderr)
    return 1 if results.problems else 0


if __name__ == "__main__":
    run_main(main)
