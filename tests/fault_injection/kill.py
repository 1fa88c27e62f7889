"""Kill -9 anywhere: training runs killed at random moments, many times each, and resumed until they end.

    python -m tests.fault_injection.kill                 60 kills over runs of pretraining, fine-tuning, an adapter, and one that ends early
    python -m tests.fault_injection.kill --kills 500 --seed 7

Each run must end as the run that was never stopped: every checkpoint that is left the same bytes (weights, optimiser,
state), the same `metrics.jsonl` but for times and speeds, the same samples, the same best checkpoint, nothing left over.
The model is tiny; the path is the whole one: gradient accumulation, epoch borders, evaluations, rotation, the best
checkpoint, the end by patience. Writing is slowed (half a file, a pause, the rest), so that many kills hit a checkpoint
as it is written.
"""

import functools
import json
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

import numpy as np

from tests.fault_injection.child import Child
from common.errors import UserError, run_main
from common.files import atomic_folder, manifest_problem
from common.options import Parser
from data.readers.source_args import Group
from data.prepare.pipeline import PrepareOptions, prepare_groups
from data.shards import FORMAT, ShardWriter
from model.checkpoint.locate import CHECKPOINTS, ENDED, step_folder, steps
from model.checkpoint.weights import save
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("start", "opening", "plan", "step", "record", "checkpoint", "rotation", "evaluation", "ending")
# Times and speeds are the only fields of a record that may differ.
CLOCKS = {"tokens_per_second", "mfu", "memory_bytes"}
TINY = ["--model.hidden_size", "32", "--model.intermediate_size", "64", "--model.num_hidden_layers", "2",
        "--model.num_attention_heads", "4", "--device", "cpu"]
KILLS_PER_RUN = 6
# Where kills are aimed at, the more dangerous the more often.
AIMS = ("checkpoint", "checkpoint", "checkpoint", "rotation", "rotation", "evaluation", "evaluation", "record", "opening",
        "ending")


@dataclass(frozen=True)
class Scenario:
    """A training run: `python -m MODULE ARGUMENTS --run …`."""

    module: str
    arguments: list[str]

    def start(self, run: Path, fault: Callable[[], None] | None = None, *, anew: bool = False) -> Child:
        """Start it, or go on with it. For `anew` see `tests.fault_injection.child.process`."""
        return Child(self.module, [*self.arguments, "--run", str(run)], run.with_suffix(".log"), fault, anew=anew)


def pretraining(folder: Path) -> Scenario:
    """40 steps of two micro-batches over a set of about 24 steps an epoch, made in `folder`."""
    tokenizer = Tokenizer.load(ROOT / "assets/tokenizer")
    draw = np.random.default_rng(0)
    with atomic_folder(folder / "text", {"format": FORMAT, "kind": "documents", "splits": {}}) as made:
        (made / "tokenizer.model").write_bytes(tokenizer.serialized)
        for split, count in (("train", 60), ("validation", 4)):
            writer = ShardWriter(made, split, tokenizer.vocabulary_size)
            for length in draw.integers(10, 200, count):
                writer.add(400 + (draw.integers(50) + 3 * np.arange(length)) % 50)
            writer.close()
    often = ["--checkpoint.every", "4", "--evaluation.every", "6", "--log_every", "3", "--evaluation.sample_tokens", "2"]
    sizes = ["--sequence_length", "64", "--batch_tokens", "256", "--micro_batch", "2", "--max_steps", "40"]
    return Scenario("train.pretrain", ["--config", str(ROOT / "configs/pretrain.yaml"), "--data", str(folder / "text"),
                                       *TINY, *sizes, *often])


def fine_tuning(folder: Path) -> Scenario:
    """Three epochs over a little of the sample's abstracts and titles, the best checkpoint by ROUGE."""
    return _tuning(folder, "--base", "none", *TINY, "--epochs", "3")


def adapting(folder: Path) -> Scenario:
    """The same with an adapter that has dropout, beside a base of random weights."""
    tokenizer = Tokenizer.load(ROOT / "assets/tokenizer")
    shape = LlamaConfig(vocab_size=tokenizer.vocabulary_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256)
    with atomic_folder(folder / "base", {}) as base:
        save(Llama(shape).initialise(0), tokenizer, base)
    return _tuning(folder, "--base", str(folder / "base"), "--device", "cpu", "--epochs", "3", "--adapter", "lora",
                   "--lora.dropout", "0.2")


def ending_early(folder: Path) -> Scenario:
    """Fine-tuning that patience ends long before its last epoch: the run then stands for its best checkpoint."""
    return _tuning(folder, "--base", "none", *TINY, "--epochs", "30", "--evaluation.patience", "2")


def _tuning(folder: Path, *more: str) -> Scenario:
    sample = ROOT / "assets/sample/summary/csl"
    if not (folder / "csl").exists():
        group = Group("csl", (str(sample / "train.tsv"),), (str(sample / "dev.tsv"),))
        prepare_groups([group], folder / "csl", ROOT / "assets/tokenizer", PrepareOptions(workers=1, limit=48))
    often = ["--checkpoint.every", "5", "--evaluation.every", "4", "--log_every", "2", "--evaluation.examples", "2",
             "--evaluation.max_new_tokens", "2"]
    sizes = ["--sequence_length", "256", "--batch_tokens", "512", "--micro_batch", "1"]
    return Scenario("train.sft", ["--config", str(ROOT / "configs/sft.yaml"), "--data", str(folder / "csl"), *sizes, *often,
                                  *more])


SCENARIOS = {"pretraining": pretraining, "fine-tuning": fine_tuning, "an adapter": adapting, "ending early": ending_early}


@dataclass(frozen=True)
class Aim:
    """When to kill: so many seconds after a process has come to a place for the so-manieth time."""

    place: str
    visit: int
    seconds: float


@dataclass(frozen=True)
class SlowAndTold:
    """The fault: whatever touches the disk takes its time; the place that the process is at stands in a file, and a FIFO
    tells when it has come to where it is to be killed.
    """

    files: Path
    aim: Aim
    pause: float = 0.004

    def __call__(self) -> None:
        """Put it into this process."""
        import model.checkpoint.weights
        import train.training_state
        import train.trainer
        import train.metrics_log
        import train.pretrain
        import train.sft
        from data.batching.packed_rows import PackedPlan
        from data.batching.text_rows import Plan

        fifo = os.open(self.files.with_suffix(".fifo"), os.O_WRONLY)
        with self.files.with_suffix(".place").open("r+b") as file:
            shared = mmap.mmap(file.fileno(), 1)
        visits: Counter[str] = Counter()
        for owner, name, place in (
            (train.training_state, "save", "checkpoint"), (train.training_state, "rotate", "rotation"),
            (train.pretrain, "evaluate", "evaluation"), (train.sft, "evaluate", "evaluation"),
            (Plan, "_build", "plan"), (PackedPlan, "_build", "plan"), (train.trainer.Trainer, "_step", "step"),
            (train.trainer.Trainer, "_settled", "ending"),
            (train.metrics_log.MetricsLog, "write", "record"), (train.metrics_log.MetricsLog, "__init__", "opening"),
        ):
            setattr(owner, name, self._told(getattr(owner, name), place, shared, visits, fifo))
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"), (shutil, "rmtree")):
            setattr(owner, name, self._slow(getattr(owner, name)))
        for module in (model.checkpoint.weights, train.training_state):
            module.save_file = self._halves(module.save_file)  # type: ignore[attr-defined]

    def _told(
        self, real: Callable[..., Any], place: str, shared: mmap.mmap, visits: Counter[str], fifo: int
    ) -> Callable[..., Any]:
        @functools.wraps(real)
        def told(*arguments: Any, **named: Any) -> Any:
            before, shared[0] = shared[0], PLACES.index(place)
            visits[place] += 1
            if (place, visits[place]) == (self.aim.place, self.aim.visit):
                os.write(fifo, b"!")
            try:
                return real(*arguments, **named)
            finally:
                shared[0] = before

        return told

    def _slow(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **named: Any) -> Any:
            time.sleep(self.pause)
            result = real(*arguments, **named)
            time.sleep(self.pause)
            return result

        return slow

    def _halves(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def halves(tensors: Any, path: Path, **named: Any) -> None:
            real(tensors, path, **named)
            whole = path.read_bytes()
            with path.open("wb") as file:
                for part in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
                    file.write(part)
                    file.flush()
                    time.sleep(self.pause)

        return halves


def records(run: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` without times and speeds."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCKS} for line in lines]


def differences(run: Path, whole: Path) -> list[str]:
    """In what a finished run differs from the one that was never stopped; empty if in nothing."""
    found = []
    if (here := steps(run)) != (there := steps(whole)):
        found.append(f"checkpoints of steps {here} instead of {there}")
    for step in sorted({*here} & {*there}):
        mine, right = step_folder(run, step), step_folder(whole, step)
        names = {path.name for path in (*mine.iterdir(), *right.iterdir())}
        found += [f"step {step}: {name}" for name in sorted(names)
                  if not (mine / name).is_file() or (mine / name).read_bytes() != (right / name).read_bytes()]
    if os.readlink(run / CHECKPOINTS / "best") != os.readlink(whole / CHECKPOINTS / "best"):
        found.append("the best checkpoint")
    if records(run) != records(whole):
        found.append("metrics.jsonl")
    if (run / "samples.md").read_bytes() != (whole / "samples.md").read_bytes():
        found.append("samples.md")
    if sealed(run) != sealed(whole):
        found.append(ENDED)
    left = [path.name for path in (*run.iterdir(), *(run / CHECKPOINTS).iterdir()) if path.suffix in (".tmp", ".old")]
    return found + [f"left over: {name}" for name in left]


def sealed(run: Path) -> bytes | None:
    """What a run says of its end by patience, if that is how it ended."""
    return (run / ENDED).read_bytes() if (run / ENDED).exists() else None


@dataclass
class Tally:
    """What was done and found."""

    runs: int = 0
    places: Counter[str] = field(default_factory=Counter)
    scenarios: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """Processes that died of a kill."""
        return sum(self.places.values())


def kill(scenario: Scenario, run: Path, aim: Aim) -> tuple[int, str]:
    """Start or go on with a run and kill it at `aim`: its exit code, and the place where it died."""
    fifo, place = run.with_suffix(".fifo"), run.with_suffix(".place")
    place.write_bytes(b"\0")
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    told = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        child = scenario.start(run, SlowAndTold(run, aim))
        ready = select.select([child.sentinel, told], [], [])[0]
        # A FIFO that all writers have left is readable too.
        while told in ready and child.sentinel not in ready and not os.read(told, 1):
            ready = select.select([child.sentinel, told], [], [], 0.01)[0]
        time.sleep(aim.seconds)
        child.send(signal.SIGKILL)
        return child.wait(), PLACES[place.read_bytes()[0]]
    finally:
        os.close(told)


def aims(draw: random.Random, kills: int) -> list[Aim]:
    """Half of the kills at any time, half where little time is spent and much could break."""
    found = []
    for number in range(kills):
        place = "plan" if not number and draw.random() < 0.5 else draw.choice(AIMS)
        once = place in ("plan", "opening")
        found.append(Aim("step", draw.randint(1, 8), draw.random() * 0.3) if number % 2
                     else Aim(place, 1 if once else draw.choice((1, 1, 2)), draw.random() * 0.05))
    return found


def kill_through(
    scenario: Scenario, run: Path, whole: Path, kills: int, draw: random.Random, tally: Tally
) -> None:
    """Start a run, kill it `kills` times unless it ends before, let it end, and compare it with `whole`."""
    before = 0
    for aim in aims(draw, kills):
        code, place = kill(scenario, run, aim)
        if code == -signal.SIGKILL:
            tally.places[place] += 1
        else:
            break
        problems = [problem for step in steps(run) if (problem := manifest_problem(step_folder(run, step)))]
        now = max(steps(run), default=0)
        tally.faults += [f"{run}: {problem}" for problem in problems]
        if now < before:
            tally.faults.append(f"{run}: the checkpoint of step {before} is gone")
        before = now
    last = scenario.start(run)
    if code := last.wait(600):
        tally.faults.append(f"{run}: exit code {code}: {last.said[-500:]}")
        return
    tally.faults += [f"{run}: differs from a run never stopped: {what}" for what in differences(run, whole)]
    tally.runs += 1


def kill_many(folder: Path, kills: int, seed: int, say: Callable[[str], None]) -> Tally:
    """`kills` kills or a few more, over runs of all kinds in turn, as many of each."""
    draw, tally = random.Random(seed), Tally()
    scenarios = {name: make(folder) for name, make in SCENARIOS.items()}
    wholes = {name: folder / f"{name} whole" for name in scenarios}
    for name, scenario in scenarios.items():
        child = scenario.start(wholes[name], anew=True)
        if child.wait(600) or (sealed(wholes[name]) is not None) != (name == "ending early"):
            raise UserError(f"the run that is never stopped failed, or did not end as it should: {child.said}")
    while not tally.faults and (missing := [name for name in scenarios if tally.scenarios[name] * len(scenarios) < kills]):
        for name in missing:
            run, before = folder / f"{name} {tally.runs}", tally.kills
            kill_through(scenarios[name], run, wholes[name], min(KILLS_PER_RUN, kills), draw, tally)
            tally.scenarios[name] += tally.kills - before
            say(f"{run.name}: {tally.kills} kills so far, {len(tally.faults)} faults")
    return tally


def main() -> int:
    """The command; exit code 1 if anything was found."""
    parser = Parser(prog="python -m tests.fault_injection.kill", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=60, help="kills at least (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default 0)")
    options = parser.parse_args()
    if options.kills < 1:
        raise UserError(f"--kills {options.kills}: must be at least 1")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="babyllama-kill-") as folder:
        tally = kill_many(Path(folder), options.kills, options.seed, lambda line: print(line, flush=True))
    print(f"{tally.kills} kills in {tally.runs} runs, {time.monotonic() - begun:.0f} s, {len(tally.faults)} faults")
    print("  of: " + ", ".join(f"{name} {tally.scenarios[name]}" for name in SCENARIOS))
    print("  where: " + ", ".join(f"{place} {tally.places[place]}" for place in PLACES))
    for fault in tally.faults:
        print(f"  FAULT {fault}", file=sys.stderr)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    run_main(main)
