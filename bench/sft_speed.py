"""Fine-tuning speed of packed rows and of padded ones, in turns of separate processes."""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.options import SftSpeedOptions
from bench.turns import run_turns
from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment, peak_memory_bytes
from data.batching.collate import collate
from data.batching.examples import Examples
from data.batching.packed_rows import pack_best_fit
from data.shards import ShardSet
from model.chat_template.template import Template
from model.config import config_from_preset
from model.llama import Llama

METHODS = ("packed", "naive")
# Rows of a micro-batch.
PADDED_ROWS = 16
PACKED_ROWS = 8


@dataclass(frozen=True)
class SftTurn:
    """The measurement of one process, without the first step, which includes the warm-up."""

    way: str
    records_per_second: float
    scored: int
    peak_bytes: int


def packed_losses(
    model: Llama, examples: Examples, records: list[int], length: int
) -> Iterator[tuple[Tensor, int]]:
    """Yield the summed loss and the number of targets of each packed micro-batch of a step."""
    rows = pack_best_fit(examples.lengths(0)[records], length)
    for start in range(0, len(rows), PACKED_ROWS):
        packed = [
            [examples.example(records[index], 0) for index in row]
            for row in rows[start : start + PACKED_ROWS]
        ]
        batch = collate(packed, length)
        loss = model(
            batch.ids,
            batch.targets,
            target_positions=batch.loss_indices,
            positions=batch.positions,
            mask=batch.attention_mask(),
        )
        yield loss, len(batch.targets)


def naive_losses(
    model: Llama, examples: Examples, records: list[int], length: int
) -> Iterator[tuple[Tensor, int]]:
    """Yield the summed loss and the number of targets of each padded micro-batch of a step.

    A row holds one record, and the loss is on all of its tokens.
    """
    for start in range(0, len(records), PADDED_ROWS):
        sequences = [
            torch.from_numpy(examples.example(record, 0)[0])
            for record in records[start : start + PADDED_ROWS]
        ]
        # -100 is the index that the loss ignores; the model reads id 0 in its place.
        ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=-100)
        logits = model(ids[:, :-1].clamp_min(0))
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        yield loss, int((ids[:, 1:] >= 0).sum())


def run_turn(
    method: str, data: Path, length: int, steps: int, records: int, threads: int
) -> SftTurn:
    """Train for `steps` steps of `records` records in this process.

    Raises UserError if `data` has too few records that fit a row.
    """
    torch.set_num_threads(threads)
    shards = ShardSet.open(data)
    tokenizer = shards.load_tokenizer()
    examples = shards.kind.examples(shards.load_split("train"), length, tokenizer, Template(), 0)
    fitting = np.flatnonzero(examples.lengths(0))
    if len(fitting) < steps * records:
        raise UserError(
            f"--data {data}: has {len(fitting)} records that fit a row, "
            f"{steps * records} are needed; lower --steps or --records"
        )
    order = np.random.default_rng(0).permutation(fitting).tolist()
    model = Llama(
        config_from_preset("babyllama-43m", vocab_size=tokenizer.vocab_size)
    ).init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    losses: Callable[..., Iterator[tuple[Tensor, int]]] = (
        packed_losses if method == "packed" else naive_losses
    )
    seconds = []
    num_targets = 0
    for step in range(steps):
        start = time.perf_counter()
        step_records = order[step * records : (step + 1) * records]
        for loss, count in losses(model, examples, step_records, length):
            # Any constant keeps the summed loss in range; the time does not depend on it.
            (loss / 1000).backward()
            num_targets += count
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return SftTurn(
        method, records / statistics.median(seconds[1:]), num_targets, peak_memory_bytes()
    )


def compare_packing(options: SftSpeedOptions) -> None:
    """Run both methods in turns, print the comparison, and write the `--json` file.

    With `--turn`, run one turn in this process and print its JSON.
    """
    names = ("data", "length", "steps", "records", "threads")
    if options.turn:
        turn = run_turn(options.turn, *(getattr(options, name) for name in names))
        print(json.dumps(asdict(turn)))
        return
    ShardSet.open(options.data)
    arguments = [f"--{name}={getattr(options, name)}" for name in names]
    commands = [(method, ["--turn", method, *arguments]) for method in METHODS]
    turns = [
        SftTurn(**each) for each in run_turns("bench.sft", commands, options.turns, options.threads)
    ]
    speeds = {
        method: [turn.records_per_second for turn in turns if turn.way == method]
        for method in METHODS
    }
    peaks = {
        method: max(turn.peak_bytes for turn in turns if turn.way == method) for method in METHODS
    }
    baseline_speed = statistics.median(speeds["naive"])
    print(f"{'':8}{'records/s':>10}{'slowest-fastest':>18}{'ratio':>7}{'peak MB':>9}")
    for method, values in speeds.items():
        spread = f"{min(values):.2f}-{max(values):.2f}"
        speed = statistics.median(values)
        print(
            f"{method:8}{speed:10.2f}{spread:>18}{speed / baseline_speed:7.2f}"
            f"{peaks[method] / 1e6:9,.0f}"
        )
    if options.json_file:
        settings = {
            key: str(value)
            for key, value in options.model_dump(exclude={"turn", "json_file"}).items()
        }
        write_json(
            options.json_file,
            {
                "made": collect_environment(),
                "settings": settings,
                "turns": [asdict(turn) for turn in turns],
            },
        )
