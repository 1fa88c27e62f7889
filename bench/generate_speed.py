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
# Contender, precision and the batches that it decodes; ratios are to the first of a precision's other rows.
ENTRANTS: list[tuple[str, WeightPrecision, tuple[int, ...]]] = [
    ("transformers", "fp32", (1, BATCH_ROWS)),
    ("llama-cpp", "fp32", (1,)),
    ("llama-cpp", "int8", (1,)),
    ("babyllama", "fp32", (1, BATCH_ROWS)),
    ("babyllama", "int8", (1, BATCH_ROWS)),
]


@dataclass(frozen=True)
class Figure:
    """What one process measured of one batch."""

    contender: str
    precision: WeightPrecision
    batch: int
    prompt_tokens: int
    """All ids of the prompts, padding left out."""
    ids: list[list[int]]
    prefill_seconds: float
    decode_seconds: float
    """For all new ids but the first of each prompt."""
    peak_bytes: int
    bandwidth: float
    """Bytes a second, read by all threads together."""

    @property
    def prefill_tokens_per_second(self) -> float:
        """Tokens a second."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens a second, all rows together."""
        return self.batch * (len(self.ids[0]) - 1) / self.decode_seconds


def make_prompts(batch: int, length: int) -> list[list[int]]:
    """One prompt of `length` ids, or several of a quarter of it up to all of it."""
    draw = np.random.default_rng(SEED)
    lengths = (
        [length]
        if batch == 1
        else np.linspace(max(length // 4, 1), length, batch).astype(int).tolist()
    )
    return [
        [MODEL_CONFIG.bos_token_id, *draw.integers(3, MODEL_CONFIG.vocab_size, size - 1).tolist()]
        for size in lengths
    ]


def measure_bandwidth() -> float:
    """The rate at which all threads read memory, bytes a second: the best of several sums over 512 MB."""
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
    """Decode with one contender in this process; a short decoding before pays for what happens once."""
    import torch

    torch.set_num_threads(threads)
    name, precision, batches = ENTRANTS[entrant]
    decode = DECODERS[name](
        DecodeTask(MODEL_CONFIG, folder / WEIGHTS_FILE, TOKENIZER, precision, threads)
    )
    timings = []
    for batch in batches:
        prompts = make_prompts(batch, length)
        decode(prompts, 4)
        timings.append((batch, prompts, decode(prompts, num_new_tokens)))
    peak, rate = peak_memory_bytes(), measure_bandwidth()
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
            rate,
        )
        for batch, prompts, each in timings
    ]


def check_equal_ids(figures: list[Figure]) -> None:
    """Refuse to compare contenders that do not decode the same: UserError if ids in fp32, or those of a repetition, differ."""
    for figure in figures:
        peers = [
            each
            for each in figures
            if (each.precision, each.batch) == (figure.precision, figure.batch)
            and (figure.precision == "fp32" or each.contender == figure.contender)
        ]
        if figure.ids != peers[0].ids:
            raise UserError(
                f"{figure.contender} and {peers[0].contender} decode other ids in {figure.precision} at batch "
                f"{figure.batch}, so the speeds cannot be compared"
            )


def weight_bytes_per_step(contender: str, precision: WeightPrecision, config: LlamaConfig) -> int:
    """Bytes of weights that a step must read. This project's greedy fp32 decoding reads the head in int8."""
    head = config.hidden_size * config.vocab_size
    body = config.num_matmul_parameters - head
    return (
        body * BYTES_PER_WEIGHT[precision]
        + head * BYTES_PER_WEIGHT["int8" if contender == "babyllama" else precision]
    )


def summarize(figures: list[Figure]) -> list[dict[str, Any]]:
    """A row per contender, precision and batch; ratios are to the first contender of the same precision and batch."""
    rate = statistics.median(figure.bandwidth for figure in figures)
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
        steps = MODEL_CONFIG.num_matmul_parameters * BYTES_PER_WEIGHT[precision]
        rows.append(
            {
                "precision": precision,
                "batch": batch,
                "contender": name,
                "decode": statistics.median(speeds),
                "slowest": min(speeds),
                "fastest": max(speeds),
                "prefill": statistics.median(
                    each.prefill_tokens_per_second for each in contender_figures
                ),
                "limit": batch * rate / steps,
                "own_limit": batch * rate / weight_bytes_per_step(name, precision, MODEL_CONFIG),
                "peak_bytes": max(each.peak_bytes for each in contender_figures),
            }
        )
    for row in rows:
        ours = next(
            (
                each["decode"]
                for each in rows
                if each["contender"] == "babyllama"
                and (each["precision"], each["batch"]) == (row["precision"], row["batch"])
            ),
            None,
        )
        row["lead"] = ours / row["decode"] if ours else None
    return rows


def print_comparison(rows: list[dict[str, Any]], figures: list[Figure]) -> None:
    """Print the comparison."""
    rate = statistics.median(figure.bandwidth for figure in figures)
    print(
        f"memory read at {rate / 1e9:.1f} GB/s; weights read for a token: fp32 {MODEL_CONFIG.num_matmul_parameters * 4 / 1e6:.0f} MB, "
        f"int8 {MODEL_CONFIG.num_matmul_parameters / 1e6:.0f} MB, this project's greedy fp32 "
        f"{weight_bytes_per_step('babyllama', 'fp32', MODEL_CONFIG) / 1e6:.0f} MB (see docs/inference.md)"
    )
    print("ids in fp32 are the same for all")
    print(
        f"{'':27}{'decode tokens/s':>16}{'slowest-fastest':>18}{'ours / it':>10}{'limit':>7}{'own limit':>10}"
        f"{'prefill/s':>10}{'peak MB':>9}"
    )
    for row in rows:
        spread = f"{row['slowest']:.0f}-{row['fastest']:.0f}"
        lead = f"{row['lead']:.2f}" if row["lead"] else "-"
        print(
            f"{row['contender']:13}{row['precision']:6}{row['batch']:3} rows{row['decode']:15.1f}{spread:>18}{lead:>10}"
            f"{row['limit']:7.0f}{row['own_limit']:10.0f}{row['prefill']:10.0f}{row['peak_bytes'] / 1e6:9,.0f}"
        )


def resolve_entrants(names: Sequence[str]) -> list[int]:
    """The entrants of these contenders whose package is installed; a line for each that is not. UserError for other names."""
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
        measured = run_turn(
            options.turn, options.turn_folder, options.threads, options.prompt, options.new
        )
        print(json.dumps([asdict(each) for each in measured]))
        return
    from safetensors.torch import save_file

    from model.llama import Llama

    entrants = resolve_entrants(options.contenders)
    numbers = [
        word
        for name in ("threads", "prompt", "new")
        for word in (f"--{name}", str(getattr(options, name)))
    ]
    with tempfile.TemporaryDirectory() as temporary:
        save_file(
            Llama(MODEL_CONFIG).init_weights(SEED).state_dict(), Path(temporary) / WEIGHTS_FILE
        )
        asked = [
            (ENTRANTS[entrant][0], ["--turn", str(entrant), "--turn_folder", temporary, *numbers])
            for entrant in entrants
        ]
        found = run_turns("bench.generate", asked, options.turns, options.threads)
    figures = [Figure(**each) for turn in found for each in turn]
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
                "all_turns": [asdict(each) for each in figures],
            },
        )
