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
# Contender, precision, and the batch sizes that it decodes.
ENTRANTS: list[tuple[str, WeightPrecision, tuple[int, ...]]] = [
    ("transformers", "fp32", (1, BATCH_ROWS)),
    ("llama-cpp", "fp32", (1,)),
    ("llama-cpp", "int8", (1,)),
    ("babyllama", "fp32", (1, BATCH_ROWS)),
    ("babyllama", "int8", (1, BATCH_ROWS)),
]


@dataclass(frozen=True)
class Measurement:
    """One contender's decoding of one batch in one turn."""

    contender: str
    precision: WeightPrecision
    batch: int
    prompt_tokens: int
    """Ids of all prompts, without padding."""
    ids: list[list[int]]
    prefill_seconds: float
    decode_seconds: float
    """Seconds for all new ids but the first of each prompt."""
    peak_bytes: int
    bandwidth: float
    """Bytes per second at which all threads together read memory."""

    @property
    def prefill_tokens_per_second(self) -> float:
        """Return the tokens per second of all prompts together."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float:
        """Return the tokens per second of all rows together."""
        return self.batch * (len(self.ids[0]) - 1) / self.decode_seconds


def make_prompts(batch: int, length: int) -> list[list[int]]:
    """Return one random prompt of `length` ids, or several of a quarter of that up to all of it."""
    rng = np.random.default_rng(SEED)
    lengths = [length]
    if batch > 1:
        lengths = np.linspace(max(length // 4, 1), length, batch).astype(int).tolist()
    return [
        [MODEL_CONFIG.bos_token_id, *rng.integers(3, MODEL_CONFIG.vocab_size, size - 1).tolist()]
        for size in lengths
    ]


def measure_bandwidth() -> float:
    """Return the bytes per second that all threads read: the best of four sums of 512 MB."""
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
) -> list[Measurement]:
    """Measure all batches of one entrant in this process."""
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
    peak_bytes, bandwidth = peak_memory_bytes(), measure_bandwidth()
    return [
        Measurement(
            contender=name,
            precision=precision,
            batch=batch,
            prompt_tokens=sum(map(len, prompts)),
            ids=timing.ids,
            prefill_seconds=timing.prefill_seconds,
            decode_seconds=timing.decode_seconds,
            peak_bytes=peak_bytes,
            bandwidth=bandwidth,
        )
        for batch, prompts, timing in timings
    ]


def check_equal_ids(measurements: list[Measurement]) -> None:
    """Check that contenders decode the same ids in fp32, and each the same in all of its turns.

    Raises UserError otherwise: the speeds could not be compared.
    """
    for one in measurements:
        peers = [
            other
            for other in measurements
            if (other.precision, other.batch) == (one.precision, one.batch)
            and (one.precision == "fp32" or other.contender == one.contender)
        ]
        if one.ids != peers[0].ids:
            raise UserError(
                f"{one.contender} and {peers[0].contender} decode other ids in {one.precision} at "
                f"batch {one.batch}, so the speeds cannot be compared"
            )


def weight_bytes_per_step(contender: str, precision: WeightPrecision, config: LlamaConfig) -> int:
    """Return the bytes of weights that a decode step reads.

    This project's greedy decoding reads the head in int8, whatever the precision.
    """
    head = config.hidden_size * config.vocab_size
    body = config.num_matmul_parameters - head
    head_precision = "int8" if contender == "babyllama" else precision
    return body * BYTES_PER_WEIGHT[precision] + head * BYTES_PER_WEIGHT[head_precision]


def summarize(measurements: list[Measurement]) -> list[dict[str, Any]]:
    """Return a row per precision, batch and contender, over its turns.

    `lead` is this project's speed over that of the row; `limit` is the speed at which the memory
    bandwidth allows to read all weights, `own_limit` that for the weights the contender reads.
    """
    bandwidth = statistics.median(measurement.bandwidth for measurement in measurements)
    turns: dict[tuple[WeightPrecision, int, str], list[Measurement]] = {}
    for measurement in measurements:
        key = (measurement.precision, measurement.batch, measurement.contender)
        turns.setdefault(key, []).append(measurement)
    medians = {
        key: statistics.median(turn.decode_tokens_per_second for turn in group)
        for key, group in turns.items()
    }
    rows: list[dict[str, Any]] = []
    for key in sorted(turns, key=lambda key: (*key[:2], list(DECODERS).index(key[2]))):
        precision, batch, name = key
        speeds = [turn.decode_tokens_per_second for turn in turns[key]]
        prefill_speeds = [turn.prefill_tokens_per_second for turn in turns[key]]
        all_bytes = MODEL_CONFIG.num_matmul_parameters * BYTES_PER_WEIGHT[precision]
        own_bytes = weight_bytes_per_step(name, precision, MODEL_CONFIG)
        ours = medians.get((precision, batch, "babyllama"))
        rows.append(
            {
                "precision": precision,
                "batch": batch,
                "contender": name,
                "decode": medians[key],
                "slowest": min(speeds),
                "fastest": max(speeds),
                "prefill": statistics.median(prefill_speeds),
                "limit": batch * bandwidth / all_bytes,
                "own_limit": batch * bandwidth / own_bytes,
                "peak_bytes": max(turn.peak_bytes for turn in turns[key]),
                "lead": ours / medians[key] if ours else None,
            }
        )
    return rows


def print_comparison(rows: list[dict[str, Any]], measurements: list[Measurement]) -> None:
    """Print the table of `summarize`."""
    bandwidth = statistics.median(measurement.bandwidth for measurement in measurements)
    weights = MODEL_CONFIG.num_matmul_parameters
    own_bytes = weight_bytes_per_step("babyllama", "fp32", MODEL_CONFIG)
    print(
        f"memory read at {bandwidth / 1e9:.1f} GB/s; weights read per token: fp32 "
        f"{weights * 4 / 1e6:.0f} MB, int8 {weights / 1e6:.0f} MB, this project's greedy fp32 "
        f"{own_bytes / 1e6:.0f} MB (see docs/inference.md)"
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
            f"{label}{row['decode']:15.1f}{spread:>18}{lead:>10}{row['limit']:7.0f}"
            f"{row['own_limit']:10.0f}{row['prefill']:10.0f}{row['peak_bytes'] / 1e6:9,.0f}"
        )


def resolve_entrants(names: Sequence[str]) -> list[int]:
    """Return the indices of the entrants of these contenders whose packages are installed.

    Prints a line for each contender that is left out. Raises UserError for unknown names.
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
    """Run the contenders in turns, print the comparison, and write the file of `--json`."""
    if options.turn is not None:
        measurements = run_turn(
            options.turn, options.turn_folder, options.threads, options.prompt, options.new
        )
        print(json.dumps([asdict(measurement) for measurement in measurements]))
        return
    from safetensors.torch import save_file

    from model.llama import Llama

    entrants = resolve_entrants(options.contenders)
    arguments: list[str] = []
    for name in ("threads", "prompt", "new"):
        arguments += [f"--{name}", str(getattr(options, name))]
    with tempfile.TemporaryDirectory() as temporary:
        model = Llama(MODEL_CONFIG).init_weights(SEED)
        save_file(model.state_dict(), Path(temporary) / WEIGHTS_FILE)
        commands = [
            (ENTRANTS[entrant][0], ["--turn", str(entrant), "--turn_folder", temporary, *arguments])
            for entrant in entrants
        ]
        results = run_turns("bench.generate", commands, options.turns, options.threads)
    measurements = [Measurement(**values) for turn in results for values in turn]
    check_equal_ids(measurements)
    rows = summarize(measurements)
    print_comparison(rows, measurements)
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
