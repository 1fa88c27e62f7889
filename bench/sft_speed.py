"""Fine-tuning speed of packed rows and of padded ones, in rounds of separate processes."""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.options import SftSpeedOptions
from bench.rounds import run_rounds
from common.errors import UserError
from common.files import write_json
from common.heap import keep_freed_memory
from common.machine import collect_environment, peak_memory_bytes
from data.batching.collate import collate
from data.batching.examples import Examples
from data.batching.packed_rows import pack_best_fit
from data.shards import ShardSet
from model.chat_template.template import Template
from model.config import config_from_preset
from model.llama import Llama
from model.narrow_weights import NarrowWeights

METHODS = ("packed", "packed-bf16", "naive")
# Rows of a micro-batch.
PADDED_ROWS = 16
PACKED_ROWS = 8


@dataclass(frozen=True)
class SftRound:
    """The measurement of one method in one round, which is one process."""

    method: str
    """One of METHODS."""
    records_per_second: float
    """Speed of the median step, the first one excluded: it includes the warm-up."""
    scored: int
    """Number of positions with a loss, in all steps together."""
    peak_bytes: int
    """Peak resident set size of the process."""


def packed_losses(
    model: Callable[..., Tensor], examples: Examples, records: list[int], length: int
) -> Iterator[tuple[Tensor, int]]:
    """Yield the summed loss and the number of targets of each packed micro-batch of a step.

    `records` are the indices of the examples of the step. A row of `length` positions holds several
    of them, and the loss is on their answers alone.
    """
    rows = pack_best_fit(examples.lengths(0)[records], length)
    for start in range(0, len(rows), PACKED_ROWS):
        micro_batch_rows = rows[start : start + PACKED_ROWS]
        batch = collate(
            [[examples.example(records[index], 0) for index in row] for row in micro_batch_rows],
            length,
        )
        loss = model(
            batch.ids,
            batch.targets,
            target_positions=batch.loss_indices,
            positions=batch.positions,
            mask=batch.segments,
        )
        yield loss, len(batch.targets)


def naive_losses(
    model: Callable[..., Tensor], examples: Examples, records: list[int], length: int
) -> Iterator[tuple[Tensor, int]]:
    """Yield the summed loss and the number of targets of each padded micro-batch of a step.

    A row holds one record, and the loss is on all of its tokens. `length` is unused: rows are
    padded to the longest of their micro-batch.
    """
    for start in range(0, len(records), PADDED_ROWS):
        sequences = [
            torch.from_numpy(examples.example(record, 0)[0])
            for record in records[start : start + PADDED_ROWS]
        ]
        # -100 is the target that F.cross_entropy ignores; the model reads id 0 in its place. No
        # mask is needed, because padding on the right is after all that causal attention sees.
        ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=-100)
        logits = model(ids[:, :-1].clamp_min(0))
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        yield loss, int((ids[:, 1:] >= 0).sum())


def run_round(
    method: str, data: Path, length: int, steps: int, records_per_step: int, threads: int
) -> SftRound:
    """Train for `steps` steps in this process, on new records in each, and return the figures.

    Raises UserError if `data` has too few records that fit a row.
    """
    torch.set_num_threads(threads)
    if method != "naive":
        # As in the training loop.
        keep_freed_memory()
    shards = ShardSet.open(data)
    tokenizer = shards.load_tokenizer()
    examples = shards.examples(shards.load_split("train"), length, tokenizer, Template(), seed=0)
    # `lengths` is 0 for an example that is left out because it does not fit a row.
    fitting = np.flatnonzero(examples.lengths(0))
    if len(fitting) < steps * records_per_step:
        raise UserError(
            f"--data {data}: {len(fitting)} records fit a row, "
            f"{steps * records_per_step} are needed; lower --steps or --records"
        )
    order = np.random.default_rng(0).permutation(fitting).tolist()
    config = config_from_preset("babyllama-43m", vocab_size=tokenizer.vocab_size)
    model = Llama(config).init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    micro_batch_losses: Callable[..., Iterator[tuple[Tensor, int]]] = (
        naive_losses if method == "naive" else packed_losses
    )
    is_narrow = method == "packed-bf16"
    narrow_weights = NarrowWeights(model) if is_narrow else nullcontext()

    def forward(*inputs: Any, **options: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_narrow):
            return model(*inputs, **options)

    seconds = []
    num_targets = 0
    for step in range(steps):
        start = time.perf_counter()
        step_records = order[step * records_per_step : (step + 1) * records_per_step]
        with narrow_weights:
            for loss, num_micro_batch_targets in micro_batch_losses(
                forward, examples, step_records, length
            ):
                # Any constant keeps the summed loss in range; the time does not depend on it.
                (loss / 1000).backward()
                num_targets += num_micro_batch_targets
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return SftRound(
        method=method,
        records_per_second=records_per_step / statistics.median(seconds[1:]),
        scored=num_targets,
        peak_bytes=peak_memory_bytes(),
    )


def compare_packing(options: SftSpeedOptions) -> None:
    """Measure the METHODS in alternating rounds, print a comparison, and write the `--json` file.

    Each measurement runs in a process of its own, which is this command with `--only_method`: with
    that option, measure one method once in this process and print the result as JSON.

    Raises UserError if `--data` is not a shard set, or if one of the processes fails.
    """
    if options.only_method:
        one_round = run_round(
            options.only_method,
            options.data,
            options.length,
            options.steps,
            options.records,
            options.threads,
        )
        print(json.dumps(asdict(one_round)))
        return
    # Opened only to report a wrong --data once, before the processes start.
    ShardSet.open(options.data)
    shared_arguments = [
        f"--{name}={getattr(options, name)}"
        for name in ("data", "length", "steps", "records", "threads")
    ]
    commands = [(method, [f"--only_method={method}", *shared_arguments]) for method in METHODS]
    results = run_rounds("bench.sft", commands, rounds=options.rounds, threads=options.threads)
    rounds = [SftRound(**fields) for fields in results]
    speeds: dict[str, list[float]] = {method: [] for method in METHODS}
    peaks = dict.fromkeys(METHODS, 0)
    for one_round in rounds:
        method = one_round.method
        speeds[method].append(one_round.records_per_second)
        peaks[method] = max(peaks[method], one_round.peak_bytes)
    baseline_speed = statistics.median(speeds["naive"])
    print(f"{'':12}{'records/s':>10}{'slowest-fastest':>18}{'ratio':>7}{'peak MB':>9}")
    for method, method_speeds in speeds.items():
        spread = f"{min(method_speeds):.2f}-{max(method_speeds):.2f}"
        speed = statistics.median(method_speeds)
        print(
            f"{method:12}{speed:10.2f}{spread:>18}{speed / baseline_speed:7.2f}"
            f"{peaks[method] / 1e6:9,.0f}"
        )
    if options.json_file:
        settings = {"rounds": str(options.rounds)}
        for name in ("threads", "data", "length", "records", "steps"):
            settings[name] = str(getattr(options, name))
        write_json(
            options.json_file,
            {
                # The environment, under the same key as in the files of runs and results.
                "made": collect_environment(),
                "settings": settings,
                "rounds": [asdict(one_round) for one_round in rounds],
            },
        )
