"""Training speed and memory on a CPU beside peers.

Each turn is a process, and the contenders take turns, A B C A B C …, because the speed of a machine
drifts: only ratios within one run count. All start from the same weights and train on the same ids;
they must report the same losses, or the comparison is refused.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bench.contenders import CONTENDERS, TrainTask
from bench.turns import run_turns
from common.errors import UserError, run_main
from common.files import write_json
from common.machine import collect_environment, matmul_flops, num_cores, peak_memory_bytes
from common.options import CommandParser, writable_path
from model.config import LlamaConfig, config_from_preset

MODEL_CONFIG = config_from_preset("babyllama-43m", vocab_size=65_000)
SEED = 1
LOSS_TOLERANCE = 1e-4
# Steps of a turn that are not timed: the first writes to fresh pages cost up to half a second a
# step.
NUM_WARMUP_STEPS = 3
WEIGHTS_FILE, IDS_FILE = "weights.safetensors", "ids.npy"


@dataclass(frozen=True)
class TrainTurn:
    """The measurements of one process."""

    contender: str
    losses: list[float]
    """Loss of each step; the first is that of the initial weights."""
    seconds: list[float]
    """Seconds of each step; the first NUM_WARMUP_STEPS are not part of the speed."""
    peak_bytes: int
    """Peak resident memory of the process until its last step."""
    matmul_flops: float
    """Matmul rate of the machine right after the steps, FLOP/s."""

    def tokens_per_second(self, tokens: int) -> float:
        """Return the throughput of the median step, which has `tokens` tokens."""
        return tokens / statistics.median(self.seconds[NUM_WARMUP_STEPS:])


def write_task(folder: Path, config: LlamaConfig, steps: int, rows: int, length: int) -> None:
    """Write the initial weights and the ids (low ids are common) of all turns."""
    from safetensors.torch import save_file

    from model.llama import Llama

    save_file(Llama(config).init_weights(SEED).state_dict(), folder / WEIGHTS_FILE)
    skewed = np.random.default_rng(SEED).random((steps, rows, length + 1)) ** 4
    np.save(folder / IDS_FILE, (skewed * config.vocab_size).astype(np.int64), allow_pickle=False)


def run_turn(contender: str, folder: Path, threads: int) -> TrainTurn:
    """Train one contender in this process on the files of `write_task`."""
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
    """Raise UserError if the losses of a step differ between contenders."""
    for step, losses in enumerate(zip(*(turn.losses for turn in turns), strict=True), start=1):
        # `not <` and not `>=`, so that NaN is refused too.
        if not np.ptp(losses) < LOSS_TOLERANCE:
            losses_by_contender = ", ".join(
                f"{turn.contender} {loss:.6f}" for turn, loss in zip(turns, losses, strict=True)
            )
            raise UserError(
                f"the losses of step {step} differ, so the speeds cannot be compared: "
                f"{losses_by_contender}"
            )


def summarize(turns: list[TrainTurn], tokens: int, flops_per_token: float) -> list[dict[str, Any]]:
    """Return a row per contender in the order of the turns; ratios are to the first."""
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
    """Print the table."""
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


def parse_contenders(text: str) -> list[str]:
    """Split `--contenders`. Raises UserError for an unknown name or a missing package."""
    names = text.split(",")
    for name in names:
        if name not in CONTENDERS:
            raise UserError(
                f"--contenders {name}: there is no such contender; "
                f"choose from {', '.join(CONTENDERS)}"
            )
        package = name.removesuffix("-compiled")
        if name != "babyllama" and find_spec(package) is None:
            raise UserError(
                f"--contenders {name}: the package {package} is not installed; "
                "see bench/README.md, or leave it out"
            )
    return names


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(prog="python -m bench.train", description=__doc__.split("\n\n")[0])
    parser.add_argument("--turns", type=int, default=3, help="turns of each contender (default 3)")
    parser.add_argument(
        "--steps",
        type=int,
        default=7,
        help=f"steps a turn; the first {NUM_WARMUP_STEPS} are not timed (default 7)",
    )
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch (default 8)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row (default 512)")
    parser.add_argument(
        "--threads", type=int, default=num_cores(), help="threads (default: all cores)"
    )
    parser.add_argument(
        "--contenders",
        default="babyllama,transformers,litgpt",
        help=f"in order, of {', '.join(CONTENDERS)}",
    )
    parser.add_argument(
        "--json", type=writable_path, metavar="OUT", help="write the figures and every turn here"
    )
    parser.add_argument("--turn", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name, least in (
        ("turns", 1),
        ("steps", NUM_WARMUP_STEPS + 1),
        ("rows", 1),
        ("length", 1),
        ("threads", 1),
    ):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be at least {least}")
    return arguments


def main() -> None:
    """Run the command."""
    arguments = parse_arguments()
    if arguments.turn:
        name, folder = arguments.turn
        print(json.dumps(asdict(run_turn(name, Path(folder), arguments.threads))))
        return
    names = parse_contenders(arguments.contenders)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_task(folder, MODEL_CONFIG, arguments.steps, arguments.rows, arguments.length)
        turn_arguments = [
            (name, ["--turn", name, str(folder), "--threads", str(arguments.threads)])
            for name in names
        ]
        turns = [
            TrainTurn(**each)
            for each in run_turns("bench.train", turn_arguments, arguments.turns, arguments.threads)
        ]
    check_equal_losses(turns)
    flops = MODEL_CONFIG.flops_per_token(arguments.length)
    rows = summarize(turns, arguments.rows * arguments.length, flops)
    print_comparison(rows, turns, flops)
    if arguments.json:
        settings = {
            name: getattr(arguments, name)
            for name in ("turns", "steps", "rows", "length", "threads")
        }
        provenance = {
            "made": collect_environment(),
            **settings,
            "config": MODEL_CONFIG.to_hf(),
            "flops_per_token": flops,
        }
        write_json(
            arguments.json,
            {**provenance, "results": rows, "all_turns": [asdict(turn) for turn in turns]},
        )


if __name__ == "__main__":
    run_main(main)
