"""Training speed and memory of this project and others, in rounds of separate processes."""

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

from bench.contenders import CONTENDERS, Arithmetic, TrainTask
from bench.options import NUM_WARMUP_STEPS, TrainSpeedOptions
from bench.rounds import peer_environments, run_rounds
from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment, matmul_flops, peak_memory_bytes
from model.config import LlamaConfig, config_from_preset

MODEL_CONFIG = config_from_preset("babyllama-43m", vocab_size=65_000)
SEED = 1
# Largest difference of the losses of a step, in nats. The losses of untrained models are about 11:
# bf16 has steps of 0.06 there.
FP32_TOLERANCE, BF16_TOLERANCE = 1e-4, 0.03
WEIGHTS_FILE, IDS_FILE = "weights.safetensors", "ids.npy"


@dataclass(frozen=True)
class TrainRound:
    """The measurement of one contender in one round, which is one process."""

    contender: str
    losses: list[float]
    """Loss of each step; the first is the loss of the initial weights."""
    seconds: list[float]
    """Duration of each step; the speed excludes the first NUM_WARMUP_STEPS."""
    peak_bytes: int
    """Peak resident set size of the process after the last step."""
    matmul_flops: float
    """Matmul rate of the machine in the precision of the contender after the steps, in FLOP/s."""
    arithmetic: Arithmetic = "fp32"

    def tokens_per_second(self, tokens_per_step: int) -> float:
        """Return the throughput of the median step after the warm-up."""
        return tokens_per_step / statistics.median(self.seconds[NUM_WARMUP_STEPS:])


def write_task(folder: Path, config: LlamaConfig, steps: int, rows: int, length: int) -> None:
    """Write the weights and ids, int64[steps, rows, length + 1], that every process trains on.

    Low ids are frequent, as they are in text.
    """
    from safetensors.torch import save_file

    from model.llama import Llama

    save_file(Llama(config).init_weights(SEED).state_dict(), folder / WEIGHTS_FILE)
    # The fourth power of uniform numbers in [0, 1) is dense near 0.
    skewed = np.random.default_rng(SEED).random((steps, rows, length + 1)) ** 4
    ids = (skewed * config.vocab_size).astype(np.int64)
    np.save(folder / IDS_FILE, ids, allow_pickle=False)


def run_round(contender: str, folder: Path, threads: int) -> TrainRound:
    """Train one contender in this process, on the files of `write_task`, and return the figures."""
    import torch

    torch.set_num_threads(threads)
    ids = torch.from_numpy(np.load(folder / IDS_FILE, allow_pickle=False))
    length = ids.shape[2] - 1
    entry = CONTENDERS[contender]
    task = TrainTask(MODEL_CONFIG, folder / WEIGHTS_FILE, length)
    train_step = entry.build(task, entry.arithmetic)
    losses, seconds = [], []
    for batch in ids:
        inputs, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        start = time.perf_counter()
        losses.append(train_step(inputs, targets))
        seconds.append(time.perf_counter() - start)
    # Read before the matmul rate is measured, which allocates matrices of its own.
    peak_bytes = peak_memory_bytes()
    dtype = torch.float32 if entry.arithmetic == "fp32" else torch.bfloat16
    return TrainRound(
        contender=contender,
        losses=losses,
        seconds=seconds,
        peak_bytes=peak_bytes,
        matmul_flops=matmul_flops(torch.device("cpu"), dtype),
        arithmetic=entry.arithmetic,
    )


def check_equal_losses(rounds: list[TrainRound]) -> None:
    """Raise UserError unless the losses of all rounds agree at every step.

    Those in fp32 have to agree within FP32_TOLERANCE, and all of them within BF16_TOLERANCE. Equal
    first losses show that the forward passes agree, equal later ones that the gradients and updates
    do.
    """
    in_fp32 = [one_round for one_round in rounds if one_round.arithmetic == "fp32"]
    for group, tolerance in ((in_fp32, FP32_TOLERANCE), (rounds, BF16_TOLERANCE)):
        losses_by_step = zip(*(one_round.losses for one_round in group), strict=True)
        for step, losses in enumerate(losses_by_step, start=1):
            # A comparison with NaN is false, so `not … <` also rejects a loss that is NaN.
            if not np.ptp(losses) < tolerance:
                values = ", ".join(
                    f"{one_round.contender} {loss:.6f}"
                    for one_round, loss in zip(group, losses, strict=True)
                )
                raise UserError(
                    f"the losses of step {step} differ, so the speeds cannot be compared: {values}"
                )


def summarize(
    rounds: list[TrainRound], tokens_per_step: int, flops_per_token: float
) -> list[dict[str, Any]]:
    """Return a table row per contender, in the order of the first round.

    `ratio` is the speed over that of the first contender; `matmul_flops` is the matmul rate of the
    machine in the precision of the contender, and `matmul_share` the share of it that the speed
    amounts to.
    """
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(one_round.contender for one_round in rounds):
        contender_rounds = [one_round for one_round in rounds if one_round.contender == name]
        speeds = [one_round.tokens_per_second(tokens_per_step) for one_round in contender_rounds]
        speed = statistics.median(speeds)
        matmul_rate = statistics.median(one_round.matmul_flops for one_round in contender_rounds)
        first_speed = rows[0]["tokens_per_second"] if rows else speed
        rows.append(
            {
                "contender": name,
                "tokens_per_second": speed,
                "slowest": min(speeds),
                "fastest": max(speeds),
                "ratio": speed / first_speed,
                "peak_bytes": max(one_round.peak_bytes for one_round in contender_rounds),
                "matmul_flops": matmul_rate,
                "matmul_share": speed * flops_per_token / matmul_rate,
            }
        )
    return rows


def print_comparison(
    rows: list[dict[str, Any]], rounds: list[TrainRound], flops_per_token: float
) -> None:
    """Print the losses, those of the first contender, and the table of `summarize`."""
    print(f"losses: {' '.join(f'{loss:.4f}' for loss in rounds[0].losses)}")
    print(f"{flops_per_token / 1e6:.1f} MFLOP per token; matmul rates in GFLOP/s")
    print(
        f"{'':20}{'tokens/s':>9}{'slowest-fastest':>18}{'ratio':>7}{'peak MB':>9}"
        f"{'matmul rate':>13}{'of it':>8}"
    )
    for row in rows:
        spread = f"{row['slowest']:.0f}-{row['fastest']:.0f}"
        print(
            f"{row['contender']:20}{row['tokens_per_second']:9.0f}{spread:>18}{row['ratio']:7.2f}"
            f"{row['peak_bytes'] / 1e6:9,.0f}{row['matmul_flops'] / 1e9:13.0f}"
            f"{row['matmul_share']:8.1%}"
        )


def check_contenders(names: Sequence[str]) -> None:
    """Raise UserError for an unknown contender, or one whose package is not installed."""
    for name in names:
        if name not in CONTENDERS:
            raise UserError(
                f"--contenders {name}: unknown contender; the contenders are "
                f"{', '.join(CONTENDERS)}"
            )
        package = CONTENDERS[name].package
        if package is not None and find_spec(package) is None:
            raise UserError(
                f"--contenders {name}: the package {package} is not installed; "
                "see bench/README.md, or leave it out"
            )


def compare_training(options: TrainSpeedOptions) -> None:
    """Measure the contenders in rounds, print the comparison, and write the `--json` file.

    Each measurement runs in a process of its own, which is this command with `--only_contender`:
    with that option, measure that contender once in this process and print the result as JSON.

    Raises UserError for a contender that is unknown or not installed, if one of the processes
    fails, or if the losses differ (`check_equal_losses`).
    """
    if options.only_contender:
        one_round = run_round(options.only_contender, options.task_folder, options.threads)
        print(json.dumps(asdict(one_round)))
        return
    check_contenders(options.contenders)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_task(folder, MODEL_CONFIG, options.steps, options.rows, options.length)
        shared_arguments = [f"--task_folder={folder}", f"--threads={options.threads}"]
        commands = [
            (name, [f"--only_contender={name}", *shared_arguments]) for name in options.contenders
        ]
        results = run_rounds(
            "bench.train",
            commands,
            rounds=options.rounds,
            threads=options.threads,
            environments=peer_environments(options.contenders),
        )
    rounds = [TrainRound(**fields) for fields in results]
    check_equal_losses(rounds)
    flops_per_token = MODEL_CONFIG.flops_per_token(options.length)
    rows = summarize(rounds, options.rows * options.length, flops_per_token)
    print_comparison(rows, rounds, flops_per_token)
    if options.json_file:
        settings = {name: getattr(options, name) for name in ("steps", "rows", "length", "threads")}
        write_json(
            options.json_file,
            {
                # The environment, under the same key as in the files of runs and results.
                "made": collect_environment(),
                "rounds": options.rounds,
                **settings,
                "config": MODEL_CONFIG.to_hf(),
                "flops_per_token": flops_per_token,
                "results": rows,
                "all_rounds": [asdict(one_round) for one_round in rounds],
            },
        )
