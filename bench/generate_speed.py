"""Prefill and decode speed of this project and others, in rounds of separate processes."""

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
from bench.rounds import peer_environments, run_rounds
from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment, peak_memory_bytes
from model.config import LlamaConfig, config_from_preset

# Positions for prompts of any length; the speed does not depend on their number.
MODEL_CONFIG = config_from_preset(
    "babyllama-43m", vocab_size=65_000, max_position_embeddings=131_072
)
TOKENIZER = Path(__file__).parent.parent / "assets" / "tokenizer"
WEIGHTS_FILE = "weights.safetensors"
SEED = 1
BYTES_PER_WEIGHT: dict[WeightPrecision, int] = {"fp32": 4, "kv-bf16": 4, "bf16": 2, "int8": 1}
# An entrant is what one process measures: a contender and the precision of its weights.
ENTRANTS: list[tuple[str, WeightPrecision]] = [
    ("transformers", "fp32"),
    ("transformers", "bf16"),
    ("llama-cpp", "fp32"),
    ("llama-cpp", "int8"),
    ("babyllama", "fp32"),
    ("babyllama", "kv-bf16"),
    ("babyllama", "bf16"),
    ("babyllama", "int8"),
]


@dataclass(frozen=True)
class Measurement:
    """One contender's decoding of one batch in one round."""

    contender: str
    precision: WeightPrecision
    batch: int
    prompt_tokens: int
    """Number of ids of all prompts together, without padding."""
    ids: list[list[int]]
    prefill_seconds: float
    decode_seconds: float
    """Seconds for all new ids but the first of each prompt."""
    peak_bytes: int
    bandwidth: float
    """Bytes per second at which all threads together read memory."""

    @property
    def prefill_tokens_per_second(self) -> float:
        """Return the prompt tokens per second of all rows together."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float:
        """Return the new tokens per second of all rows together."""
        # The first id of a row belongs to the prefill, whose logits it comes from.
        num_decoded = len(self.ids[0]) - 1
        return self.batch * num_decoded / self.decode_seconds


def make_prompts(batch: int, length: int) -> list[list[int]]:
    """Return `batch` prompts: a bos each, then random ids, the same in every call.

    Their lengths rise evenly from `length` / 4 to `length` ids; a single prompt has `length`.
    """
    rng = np.random.default_rng(SEED)
    lengths = [length]
    if batch > 1:
        lengths = np.linspace(max(length // 4, 1), length, batch).astype(int).tolist()
    prompts = []
    for prompt_length in lengths:
        # Ids from 3 on, because 0 to 2 are the special tokens.
        ids = rng.integers(3, MODEL_CONFIG.vocab_size, prompt_length - 1)
        prompts.append([MODEL_CONFIG.bos_token_id, *ids.tolist()])
    return prompts


def measure_bandwidth() -> float:
    """Return the rate in bytes/s at which all threads together read memory.

    It is the best of four sums over 512 MiB, of which the first one also warms up.
    """
    import torch

    values = torch.ones(128 * 2**20)  # 512 MiB in fp32: far more than any cache holds
    fastest_seconds = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        values.sum()
        fastest_seconds = min(fastest_seconds, time.perf_counter() - start)
    return values.numel() * values.element_size() / fastest_seconds


def run_round(options: GenerateSpeedOptions, entrant: int) -> list[Measurement]:
    """Measure ENTRANTS[entrant] in this process, and return a measurement per batch size."""
    import torch

    threads, folder = options.threads, options.task_folder
    torch.set_num_threads(threads)
    name, precision = ENTRANTS[entrant]
    decode = DECODERS[name](
        DecodeTask(MODEL_CONFIG, folder / WEIGHTS_FILE, TOKENIZER, precision, threads)
    )
    timings = []
    for batch in options.rows:
        prompts = make_prompts(batch, options.prompt)
        decode(prompts, 4)  # warm-up: first use allocates buffers and copies weights
        timings.append((batch, prompts, decode(prompts, options.new)))
    # The peak is read first, because the measurement of the bandwidth allocates 512 MiB.
    peak_bytes = peak_memory_bytes()
    bandwidth = measure_bandwidth()
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
    """Check that all contenders generate the same ids in fp32, and each its own in every round.

    In bf16 and int8 they round differently, so there each is compared with itself only. Raises
    UserError if ids differ, because the speeds could not be compared then.
    """
    first_by_key: dict[tuple[str, ...], Measurement] = {}
    for measurement in measurements:
        precision, batch = measurement.precision, measurement.batch
        key: tuple[str, ...] = (precision, str(batch))
        if precision != "fp32":
            key = (*key, measurement.contender)
        first = first_by_key.setdefault(key, measurement)
        if measurement.ids == first.ids:
            continue
        if measurement.contender == first.contender:
            difference = f"{first.contender} generated different ids in two rounds"
        else:
            difference = (
                f"{measurement.contender} and {first.contender} generated different ids in "
                f"{precision}"
            )
        raise UserError(f"{difference} at batch {batch}, so the speeds cannot be compared")


def weight_bytes_per_step(contender: str, precision: WeightPrecision, config: LlamaConfig) -> int:
    """Return the bytes of weights that a decode step reads.

    This project's greedy decoding reads an int8 copy of the LM head in fp32 too: the copy rules out
    most ids, and only the rows of the remaining candidates, which are not counted here, are read in
    fp32 (`model/decode/lm_head.py`).
    """
    num_head_weights = config.hidden_size * config.vocab_size
    num_layer_weights = config.num_matmul_parameters - num_head_weights
    has_int8_head = contender == "babyllama" and precision in ("fp32", "kv-bf16")
    head_precision: WeightPrecision = "int8" if has_int8_head else precision
    return (
        num_layer_weights * BYTES_PER_WEIGHT[precision]
        + num_head_weights * BYTES_PER_WEIGHT[head_precision]
    )


def cache_bytes_per_step(measurement: Measurement, config: LlamaConfig) -> float:
    """Return the bytes of keys and values that a decode step reads, in the mean over the steps.

    The cache has the precision of the activations, which is fp32 with int8 weights.
    """
    num_positions = measurement.prompt_tokens + measurement.batch * len(measurement.ids[0]) / 2
    num_values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return num_positions * num_values * (4 if measurement.precision in ("fp32", "int8") else 2)


def changed_share(ids: list[list[int]], fp32_ids: list[list[int]]) -> float:
    """Return the share of ids that are not those of fp32 at the same place.

    Behind the first different id of an answer nearly all others differ too.
    """
    pairs = [
        pair
        for row, fp32_row in zip(ids, fp32_ids, strict=True)
        for pair in zip(row, fp32_row, strict=True)
    ]
    return sum(ours != expected for ours, expected in pairs) / len(pairs)


def summarize(measurements: list[Measurement]) -> list[dict[str, Any]]:
    """Return a table row per precision, batch and contender, with medians over the rounds.

    Speeds are tokens per second of all rows of a batch. `lead` is this project's decode speed over
    that of the row. `limit` is the decode speed at which the memory bandwidth would be used up by
    reading all weights and the KV cache once per step, `own_limit` the same for the weights that
    the contender actually reads. `changed` is the share of ids that differ from those of fp32.
    """
    fp32_ids = {each.batch: each.ids for each in measurements if each.precision == "fp32"}
    bandwidth = statistics.median(measurement.bandwidth for measurement in measurements)
    groups: dict[tuple[WeightPrecision, int, str], list[Measurement]] = {}
    for measurement in measurements:
        key = (measurement.precision, measurement.batch, measurement.contender)
        groups.setdefault(key, []).append(measurement)
    medians = {
        key: statistics.median(measurement.decode_tokens_per_second for measurement in group)
        for key, group in groups.items()
    }
    contender_order = list(DECODERS)
    rows: list[dict[str, Any]] = []
    for key in sorted(groups, key=lambda key: (*key[:2], contender_order.index(key[2]))):
        precision, batch, name = key
        group = groups[key]
        speeds = [measurement.decode_tokens_per_second for measurement in group]
        prefill_speeds = [measurement.prefill_tokens_per_second for measurement in group]
        all_bytes = MODEL_CONFIG.num_matmul_parameters * BYTES_PER_WEIGHT[precision]
        own_bytes = weight_bytes_per_step(name, precision, MODEL_CONFIG)
        cache_bytes = cache_bytes_per_step(group[0], MODEL_CONFIG)
        our_speed = medians.get((precision, batch, "babyllama"))
        rows.append(
            {
                "precision": precision,
                "batch": batch,
                "contender": name,
                "decode": medians[key],
                "slowest": min(speeds),
                "fastest": max(speeds),
                "prefill": statistics.median(prefill_speeds),
                "limit": batch * bandwidth / (all_bytes + cache_bytes),
                "own_limit": batch * bandwidth / (own_bytes + cache_bytes),
                "peak_bytes": max(measurement.peak_bytes for measurement in group),
                "lead": our_speed / medians[key] if our_speed else None,
                "changed": (
                    changed_share(group[0].ids, fp32_ids[batch]) if batch in fp32_ids else None
                ),
            }
        )
    return rows


def print_comparison(rows: list[dict[str, Any]], measurements: list[Measurement]) -> None:
    """Print the table of `summarize`, after a line on what the limits are computed from."""
    bandwidth = statistics.median(measurement.bandwidth for measurement in measurements)
    num_weights = MODEL_CONFIG.num_matmul_parameters
    own_bytes = weight_bytes_per_step("babyllama", "fp32", MODEL_CONFIG)
    print(
        f"memory read at {bandwidth / 1e9:.1f} GB/s; weights read per token: fp32 "
        f"{num_weights * 4 / 1e6:.0f} MB, int8 {num_weights / 1e6:.0f} MB, this project's greedy "
        f"fp32 {own_bytes / 1e6:.0f} MB (see docs/inference.md)"
    )
    print("ids in fp32 are the same for all")
    print(
        f"{'':29}{'decode tokens/s':>16}{'slowest-fastest':>18}{'ours / it':>10}{'limit':>7}"
        f"{'own limit':>10}{'prefill/s':>10}{'peak MB':>9}{'changed ids':>13}"
    )
    for row in rows:
        label = f"{row['contender']:13}{row['precision']:8}{row['batch']:3} rows"
        spread = f"{row['slowest']:.0f}-{row['fastest']:.0f}"
        lead = f"{row['lead']:.2f}" if row["lead"] else "-"
        changed = "-" if row["changed"] is None else f"{row['changed']:.1%}"
        print(
            f"{label}{row['decode']:15.1f}{spread:>18}{lead:>10}{row['limit']:7.0f}"
            f"{row['own_limit']:10.0f}{row['prefill']:10.0f}{row['peak_bytes'] / 1e6:9,.0f}"
            f"{changed:>13}"
        )


def resolve_entrants(names: Sequence[str]) -> list[int]:
    """Return the indices in ENTRANTS of the named contenders whose packages are installed.

    Prints a line for each contender that is left out. Raises UserError for an unknown name.
    """
    for name in names:
        if name not in DECODERS:
            raise UserError(
                f"--contenders {name}: unknown contender; the contenders are {', '.join(DECODERS)}"
            )
    missing = set()
    for name in names:
        package, install_command = REQUIRED_PACKAGES.get(name, (None, ""))
        if package is not None and find_spec(package) is None:
            print(f"{name} is left out: it is not installed ({install_command})")
            missing.add(name)
    return [
        index for index, (name, *_) in enumerate(ENTRANTS) if name in names and name not in missing
    ]


def compare_decoding(options: GenerateSpeedOptions) -> None:
    """Measure the contenders in rounds, print the comparison, and write the `--json` file.

    Each entrant is measured in a process of its own, which is this command with `--only_entrant`:
    with that option, measure ENTRANTS[only_entrant] once in this process and print its measurements
    as JSON.

    Raises UserError for an unknown contender, if one of the processes fails, or if the contenders
    generate different ids (`check_equal_ids`).
    """
    if options.only_entrant is not None:
        measurements = run_round(options, options.only_entrant)
        print(json.dumps([asdict(measurement) for measurement in measurements]))
        return
    # Imported here because only the parent process writes the weights.
    from safetensors.torch import save_file

    from model.llama import Llama

    entrants = resolve_entrants(options.contenders)
    shared_arguments = [
        *(f"--{name}={getattr(options, name)}" for name in ("threads", "prompt", "new")),
        f"--rows={','.join(map(str, options.rows))}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = Llama(MODEL_CONFIG).init_weights(SEED)
        save_file(model.state_dict(), Path(folder) / WEIGHTS_FILE)
        commands = [
            (
                ENTRANTS[entrant][0],
                [f"--only_entrant={entrant}", f"--task_folder={folder}", *shared_arguments],
            )
            for entrant in entrants
        ]
        results = run_rounds(
            "bench.generate",
            commands,
            rounds=options.rounds,
            threads=options.threads,
            environments=peer_environments(options.contenders),
        )
    measurements = [Measurement(**fields) for one_round in results for fields in one_round]
    check_equal_ids(measurements)
    rows = summarize(measurements)
    print_comparison(rows, measurements)
    if options.json_file:
        write_json(
            options.json_file,
            {
                # The environment, under the same key as in the files of runs and results.
                "made": collect_environment(),
                "rounds": options.rounds,
                "prompt": options.prompt,
                "new": options.new,
                "threads": options.threads,
                "config": MODEL_CONFIG.to_hf(),
                "results": rows,
                "all_rounds": [asdict(measurement) for measurement in measurements],
            },
        )
