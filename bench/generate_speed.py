"""Prefill and decode speed of this project and others, in turns of separate processes."""

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

from bench.decoders import DECODERS, REQUIRED_PACKAGES, DecodeTask, WeightPrecision
from bench.options import GenerateSpeedOptions
from bench.turns import run_turns
from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment, peak_memory_bytes
from model.config import LlamaConfig, config_from_preset

MODEL_CONFIG = config_from_preset("babyllama-43m", vocab_size=65_000)
TOKENIZER = Path(__file__).parent.parent / "assets" / "tokenizer"
WEIGHTS_FILE = "weights.safetensors"
SEED = 1
BATCH_ROWS = 16
BYTES_PER_WEIGHT: dict[WeightPrecision, int] = {"fp32": 4, "int8": 1}
# Contender, weight precision, and the batch sizes that it decodes.
ENTRANTS: list[tuple[str, WeightPrecision, tuple[int, ...]]] = [
    ("transformers", "fp32", (1, BATCH_ROWS)),
    ("llama-cpp", "fp32", (1,)),
    ("llama-cpp", "int8", (1,)),
    ("babyllama", "fp32", (1, BATCH_ROWS)),
    ("babyllama", "int8", (1, BATCH_ROWS)),
]


@dataclass(frozen=True)
class Figure:
    """The measurement of one batch in one process."""

    contender: str
    precision: WeightPrecision
    batch: int
    prompt_tokens: int
    """Ids of all prompts without padding."""
    ids: list[list[int]]
    prefill_seconds: float
    decode_seconds: float
    """Time for all new ids but the first of each prompt."""
    peak_bytes: int
    bandwidth: float
    """Memory bandwidth of all threads together, in bytes per second."""

    @property
    def prefill_tokens_per_second(self) -> float:
        """Return the prefill throughput in tokens per second."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float:
        """Return the decode throughput of all rows together in tokens per second."""
        return self.batch * (len(self.ids[0]) - 1) / self.decode_seconds


def make_prompts(batch: int, length: int) -> list[list[int]]:
    """Return `batch` random prompts: one of `length` ids, or several of length / 4 to length."""
    generator = np.random.default_rng(SEED)
    lengths = [length]
    if batch > 1:
        lengths = np.linspace(max(length // 4, 1), length, batch).astype(int).tolist()
    return [
        [
            MODEL_CONFIG.bos_token_id,
            *generator.integers(3, MODEL_CONFIG.vocab_size, size - 1).tolist(),
        ]
        for size in lengths
    ]


def measure_bandwidth() -> float:
    """Measure the memory read bandwidth in bytes per second: the best of four sums of 512 MB."""
    import torch

    numbers = torch.ones(128 * 2**20)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - start)
    return numbers.numel() * numbers.element_size() / best


def run_turn(
    entrant: int, folder: Path, threads: int, length: int, num_new_tokens: int
) -> list[Figure]:
    """Decode with one contender in this process, after a short warm-up for each batch."""
    import torch

    torch.set_num_threads(threads)
    name, precision, batches = ENTRANTS[entrant]
    decode = DECODERS[name](
        DecodeTask(MODEL_CONFIG, folder / WEIGHTS_FILE, TOKENIZER, precision, threads)
    )
    timings = []
    for batch in batches:
        prompts = make_prompts(batch, length)
        decode(prompts, 4)  # warm-up: first use allocates buffers and copies weights
        timings.append((batch, prompts, decode(prompts, num_new_tokens)))
    # Before the bandwidth is measured, because that allocates 512 MB.
    peak = peak_memory_bytes()
    bandwidth = measure_bandwidth()
    return [
        Figure(
            name,
            precision,
            batch,
            sum(map(len, prompts)),
            each.ids,
            each.prefill_seconds,
            each.decode_seconds,
            peak,
            bandwidth,
        )
        for batch, prompts, timing in timings
    ]


def check_equal_ids(figures: list[Figure]) -> None:
    """Raise UserError if two contenders decode different ids in fp32.

    In other precisions only the turns of the same contender must agree.
    """
    for figure in figures:
        peers = [
            other
            for other in measurements
            if (other.precision, other.batch) == (one.precision, one.batch)
            and (one.precision == "fp32" or other.contender == one.contender)
        ]
        if one.ids != peers[0].ids:
            raise UserError(
                f"{figure.contender} and {peers[0].contender} decode other ids in "
                f"{figure.precision} at batch {figure.batch}, so the speeds cannot be compared"
            )


def weight_bytes_per_step(contender: str, precision: WeightPrecision, config: LlamaConfig) -> int:
    """Return the bytes of weights that a decode step must read.

    Greedy fp32 decoding of this project reads the LM head in int8.
    """
    head = config.hidden_size * config.vocab_size
    body = config.num_matmul_parameters - head
    head_precision: WeightPrecision = "int8" if contender == "babyllama" else precision
    return body * BYTES_PER_WEIGHT[precision] + head * BYTES_PER_WEIGHT[head_precision]


def summarize(figures: list[Figure]) -> list[dict[str, Any]]:
    """Return a row per precision, batch and contender, with medians over the turns.

    `lead` is the decode speed of babyllama at the same precision and batch, divided by the speed of
    the row. `limit` and `own_limit` are the bandwidth divided by the weight bytes of a step.
    """
    bandwidth = statistics.median(figure.bandwidth for figure in figures)
    rows: list[dict[str, Any]] = []
    for precision, batch, name in sorted(
        {(each.precision, each.batch, each.contender) for each in figures},
        key=lambda key: (*key[:2], list(DECODERS).index(key[2])),
    ):
        contender_figures = [
            each
            for each in figures
            if (each.precision, each.batch, each.contender) == (precision, batch, name)
        ]
        speeds = [each.decode_tokens_per_second for each in contender_figures]
        weight_bytes = MODEL_CONFIG.num_matmul_parameters * BYTES_PER_WEIGHT[precision]
        own_weight_bytes = weight_bytes_per_step(name, precision, MODEL_CONFIG)
        rows.append(
            {
                "precision": precision,
                "batch": batch,
                "contender": name,
                "decode": medians[key],
                "slowest": min(speeds),
                "fastest": max(speeds),
                "prefill": statistics.median(
                    each.prefill_tokens_per_second for each in contender_figures
                ),
                "limit": batch * bandwidth / weight_bytes,
                "own_limit": batch * bandwidth / own_weight_bytes,
                "peak_bytes": max(each.peak_bytes for each in contender_figures),
            }
        )
    return rows


def print_comparison(rows: list[dict[str, Any]], figures: list[Figure]) -> None:
    """Print a table of the rows."""
    bandwidth = statistics.median(figure.bandwidth for figure in figures)
    int8_bytes = MODEL_CONFIG.num_matmul_parameters
    own_bytes = weight_bytes_per_step("babyllama", "fp32", MODEL_CONFIG)
    print(
        f"memory read at {bandwidth / 1e9:.1f} GB/s; weights read for a token: "
        f"fp32 {int8_bytes * 4 / 1e6:.0f} MB, int8 {int8_bytes / 1e6:.0f} MB, "
        f"this project's greedy fp32 {own_bytes / 1e6:.0f} MB (see docs/inference.md)"
    )
    print("ids in fp32 are the same for all")
    print(
        f"{'':27}{'decode tokens/s':>16}{'slowest-fastest':>18}{'ours / it':>10}{'limit':>7}"
        f"{'own limit':>10}{'prefill/s':>10}{'peak MB':>9}"
    )
    for row in rows:
        label = f"{row['contender']:13}{row['precision']:6}{row['batch']:3} rows"
        spread = f"{row['slowest']:.0f}-{row['fastest']:.0f}"
        lead = f"{row['lead']:.2f}" if row["lead"] else "-"
        print(
            f"{row['contender']:13}{row['precision']:6}{row['batch']:3} rows"
            f"{row['decode']:15.1f}{spread:>18}{lead:>10}{row['limit']:7.0f}"
            f"{row['own_limit']:10.0f}{row['prefill']:10.0f}{row['peak_bytes'] / 1e6:9,.0f}"
        )


def resolve_entrants(names: Sequence[str]) -> list[int]:
    """Return the indices in ENTRANTS of the contenders whose package is installed.

    Prints a line for each contender that is not installed. Raises UserError for an unknown name.
    """
    for name in names:
        if name not in DECODERS:
            raise UserError(
                f"--contenders {name}: there is no such contender; there are {', '.join(DECODERS)}"
            )
    missing = [
        name
        for name in names
        if name in REQUIRED_PACKAGES and find_spec(REQUIRED_PACKAGES[name][0]) is None
    ]
    for name in missing:
        print(f"{name} is left out: it is not installed ({REQUIRED_PACKAGES[name][1]})")
    return [
        index for index, (name, *_) in enumerate(ENTRANTS) if name in names and name not in missing
    ]


def compare_decoding(options: GenerateSpeedOptions) -> None:
    """Run the contenders in turns, print the comparison, and write the `--json` file.

    With `--turn`, run one turn in this process and print its JSON.
    """
    if options.turn is not None:
        measurements = run_turn(
            options.turn, options.turn_folder, options.threads, options.prompt, options.new
        )
        print(json.dumps([asdict(measurement) for measurement in measurements]))
        return
    from safetensors.torch import save_file

    from model.llama import Llama

    entrants = resolve_entrants(options.contenders)
    numbers = [f"--{name}={getattr(options, name)}" for name in ("threads", "prompt", "new")]
    with tempfile.TemporaryDirectory() as temporary:
        save_file(
            Llama(MODEL_CONFIG).init_weights(SEED).state_dict(), Path(temporary) / WEIGHTS_FILE
        )
        commands = [
            (ENTRANTS[entrant][0], ["--turn", str(entrant), "--turn_folder", temporary, *numbers])
            for entrant in entrants
        ]
        turns = run_turns("bench.generate", commands, options.turns, options.threads)
    figures = [Figure(**each) for turn in turns for each in turn]
    check_equal_ids(figures)
    rows = summarize(figures)
    print_comparison(rows, figures)
    if options.json_file:
        settings = {name: getattr(options, name) for name in ("turns", "prompt", "new", "threads")}
        write_json(
            options.json_file,
            {
                "made": collect_environment(),
                **settings,
                "config": MODEL_CONFIG.to_hf(),
                "results": rows,
                "all_turns": [asdict(measurement) for measurement in measurements],
            },
        )
