"""Training speed and memory of this project and others, in turns of separate processes."""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bench.contenders import CONTENDERS, TrainTask
from bench.options import NUM_WARMUP_STEPS, TrainSpeedOptions
from bench.turns import run_turns
from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment, matmul_flops, peak_memory_bytes
from model.config import LlamaConfig, config_from_preset

MODEL_CONFIG = config_from_preset("babyllama-43m", vocab_size=65_000)
SEED = 1
LOSS_TOLERANCE = 1e-4
WEIGHTS_FILE, IDS_FILE = "weights.safetensors", "ids.npy"


@dataclass(frozen=True)
class TrainTurn:
    """The measurement of one process."""

    contender: str
    losses: list[float]
    """Loss of each step; the first is the loss of the initial weights."""
    seconds: list[float]
    """Duration of each step; the speed excludes the first NUM_WARMUP_STEPS."""
    peak_bytes: int
    """Peak resident set size of the process after the last step."""
    matmul_flops: float
    """Matmul rate of the machine after the steps, in FLOP/s."""

    def tokens_per_second(self, tokens: int) -> float:
        """Return the throughput of the median step, which has `tokens` tokens."""
        return tokens / statistics.median(self.seconds[NUM_WARMUP_STEPS:])


def write_task(folder: Path, config: LlamaConfig, steps: int, rows: int, length: int) -> None:
    """Write the initial weights and the ids of all turns; low ids are frequent, as in text."""
    from safetensors.torch import save_file

    from model.llama import Llama

    save_file(Llama(config).init_weights(SEED).state_dict(), folder / WEIGHTS_FILE)
    skewed = np.random.default_rng(SEED).random((steps, rows, length + 1)) ** 4
    np.save(folder / IDS_FILE, (skewed * config.vocab_size).astype(np.int64), allow_pickle=False)


def run_turn(contender: str, folder: Path, threads: int) -> TrainTurn:
    """Train one contender in this process, on the files of `write_task`."""
    import torch

    torch.set_num_threads(threads)
    ids = torch.from_numpy(np.load(folder / IDS_FILE, allow_pickle=False))
    step = CONTENDERS[contender](TrainTask(MODEL_CONFIG, folder / WEIGHTS_FILE, ids.shape[2] - 1))
    losses, seconds = [], []
    for batch in ids:
        inputs, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        start = time.perf_counter()
        losses.append(step(inputs, targets))
        seconds.append(time.perf_counter() - start)
    peak = peak_memory_bytes()
    return TrainTurn(
        contender, losses, seconds, peak, matmul_flops(torch.device("cpu"), torch.float32)
    )


def check_equal_losses(turns: list[TrainTurn]) -> None:
    """Raise UserError if the losses of the turns differ at any step."""
    for step, losses in enumerate(zip(*(turn.losses for turn in turns), strict=True), start=1):
        # `not … <` also rejects NaN.
        if not np.ptp(losses) < LOSS_TOLERANCE:
            values = ", ".join(
                f"{turn.contender} {loss:.6f}" for turn, loss in zip(turns, losses, strict=True)
            )
            raise UserError(
                f"the losses of step {step} differ, so the speeds cannot be compared: {values}"
            )


def summarize(turns: list[TrainTurn], tokens: int, flops_per_token: float) -> list[dict[str, Any]]:
    """Return a row per contender in the order of their first turns, with ratios to the first."""
    rate = statistics.median(turn.matmul_flops for turn in turns)
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(turn.contender for turn in turns):
        contender_turns = [turn for turn in turns if turn.contender == name]
        speeds = [turn.tokens_per_second(tokens) for turn in contender_turns]
        speed = statistics.median(speeds)
        rows.append(
            {
                "contender": name,
                "tokens_per_second": speed,
                "slowest": min(speeds),
                "fastest": max(speeds),
                "ratio": speed / (rows[0]["tokens_per_second"] if rows else speed),
                "peak_bytes": max(turn.peak_bytes for turn in contender_turns),
                "matmul_share": speed * flops_per_token / rate,
            }
        )
    return rows


def print_comparison(
    rows: list[dict[str, Any]], turns: list[TrainTurn], flops_per_token: float
) -> None:
    """Print the losses and a table of the rows."""
    print(f"losses, equal for all: {' '.join(f'{loss:.4f}' for loss in turns[0].losses)}")
    rate = statistics.median(turn.matmul_flops for turn in turns)
    print(f"matmul rate {rate / 1e9:.0f} GFLOP/s; {flops_per_token / 1e6:.1f} MFLOP per token")
    print(
        f"{'':16}{'tokens/s':>9}{'slowest-fastest':>18}{'ratio':>7}{'peak MB':>9}"
        f"{'of matmul rate':>16}"
    )
    for row in rows:
        spread = f"{row['slowest']:.0f}-{row['fastest']:.0f}"
        print(
            f"{row['contender']:16}{row['tokens_per_second']:9.0f}{spread:>18}{row['ratio']:7.2f}"
            f"{row['peak_bytes'] / 1e6:9,.0f}{row['matmul_share']:16.1%}"
        )


def check_contenders(names: Sequence[str]) -> None:
    """Raise UserError for an unknown contender, or one whose package is not installed."""
    for name in names:
        if name not in CONTENDERS:
            raise UserError(
                f"--contenders {name}: there is no such contender; "
                f"there are {', '.join(CONTENDERS)}"
            )
        package = name.removesuffix("-compiled")
        if name != "babyllama" and find_spec(package) is None:
            raise UserError(
                f"--contenders {name}: the package {package} is not installed; "
                "see bench/README.md, or leave it out"
            )


def compare_training(options: TrainSpeedOptions) -> None:
    """Run the contenders in turns, print the comparison, and write the `--json` file.

    With `--turn`, run one turn in this process and print its JSON.
    """
    if options.turn:
        turn = run_turn(options.turn, options.turn_folder, options.threads)
        print(json.dumps(asdict(turn)))
        return
    check_contenders(options.contenders)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_task(folder, MODEL_CONFIG, options.steps, options.rows, options.length)
        commands = [
            (name, ["--turn", name, f"--turn_folder={folder}", f"--threads={options.threads}"])
            for name in options.contenders
        ]
        turns = [
            TrainTurn(**each)
            for each in run_turns("bench.train", commands, options.turns, options.threads)
        ]
    check_equal_losses(turns)
    flops = MODEL_CONFIG.flops_per_token(options.length)
    rows = summarize(turns, options.rows * options.length, flops)
    print_comparison(rows, turns, flops)
    if options.json_file:
        settings = {
            name: getattr(options, name) for name in ("turns", "steps", "rows", "length", "threads")
        }
        metadata = {
            "made": collect_environment(),
            **settings,
            "config": MODEL_CONFIG.to_hf(),
            "flops_per_token": flops,
        }
        write_json(
            options.json_file,
            {**metadata, "results": rows, "all_turns": [asdict(turn) for turn in turns]},
        )
