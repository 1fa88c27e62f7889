"""Fine-tuning speed: packed rows with a loss mask beside padded rows.

    packed   several examples per row, block-diagonal attention, chunked loss on the answers only
    naive    one example per row, padded to the longest, full logits, loss on all positions

Both train babyllama-43m with AdamW on the same records in the same steps. Each turn is a process,
and they take turns, A B A B …: only the ratio within one run counts.
"""

import argparse
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

from bench.turns import run_turns
from common.errors import UserError, run_main
from common.files import write_json
from common.machine import collect_environment, num_cores, peak_memory_bytes
from common.options import CommandParser, writable_path
from data.batching.collate import collate
from data.batching.examples import Examples
from data.batching.packed_rows import pack_best_fit
from data.shards import ShardSet
from model.chat_template.template import Template
from model.config import config_from_preset
from model.llama import Llama

METHODS = ("packed", "naive")
# Records per micro-batch, which sets the peak of memory.
PADDED_ROWS, PACKED_ROWS = 16, 8


@dataclass(frozen=True)
class SftTurn:
    """The measurements of one process, without its first step (warm-up)."""

    way: str
    records_per_second: float
    scored: int
    peak_bytes: int


def packed_losses(
    model: Llama, examples: Examples, records: list[int], length: int
) -> Iterator[tuple[Tensor, int]]:
    """Yield the summed loss and the number of targets of each micro-batch, rows packed."""
    rows = pack_best_fit(examples.lengths(0)[records], length)
    for at in range(0, len(rows), PACKED_ROWS):
        chosen = [
            [examples.example(records[index], 0) for index in row]
            for row in rows[at : at + PACKED_ROWS]
        ]
        batch = collate(chosen, length)
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
    """Yield the same with one padded record per row and a loss on all positions."""
    for at in range(0, len(records), PADDED_ROWS):
        chosen = [
            torch.from_numpy(examples.example(record, 0)[0])
            for record in records[at : at + PADDED_ROWS]
        ]
        ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-100)
        logits = model(ids[:, :-1].clamp_min(0))
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        yield loss, int((ids[:, 1:] >= 0).sum())


def run_turn(
    method: str, data: Path, length: int, steps: int, records: int, threads: int
) -> SftTurn:
    """Train on `steps` × `records` records in this process."""
    torch.set_num_threads(threads)
    shards = ShardSet.open(data)
    tokenizer = shards.load_tokenizer()
    examples = shards.kind.examples(shards.load_split("train"), length, tokenizer, Template(), 0)
    fitting = np.flatnonzero(examples.lengths(0))
    if len(fitting) < steps * records:
        raise UserError(
            f"--data {data}: has {len(fitting)} records that fit a row, fewer than the "
            f"{steps * records} of --steps and --records"
        )
    order = np.random.default_rng(0).permutation(fitting).tolist()
    model = Llama(
        config_from_preset("babyllama-43m", vocab_size=tokenizer.vocab_size)
    ).init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    losses: Callable[..., Iterator[tuple[Tensor, int]]] = (
        packed_losses if method == "packed" else naive_losses
    )
    seconds, num_targets = [], 0
    for step in range(steps):
        start = time.perf_counter()
        for loss, count in losses(
            model, examples, order[step * records : (step + 1) * records], length
        ):
            (loss / 1000).backward()
            num_targets += count
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return SftTurn(
        method, records / statistics.median(seconds[1:]), num_targets, peak_memory_bytes()
    )


def main() -> None:
    """Run the command."""
    parser = CommandParser(
        prog="python -m bench.sft",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="a prepared shard set of summaries or conversations",
    )
    parser.add_argument(
        "--length", type=int, default=512, help="positions of a packed row (default 512)"
    )
    parser.add_argument("--records", type=int, default=64, help="records a step (default 64)")
    parser.add_argument(
        "--steps", type=int, default=4, help="steps a turn; the first is not timed (default 4)"
    )
    parser.add_argument("--turns", type=int, default=3, help="turns of each way (default 3)")
    parser.add_argument(
        "--threads", type=int, default=num_cores(), help="threads (default: all cores)"
    )
    parser.add_argument(
        "--json", type=writable_path, metavar="OUT", help="write the figures here too"
    )
    parser.add_argument("--turn", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name, least in (("length", 2), ("records", 1), ("steps", 2), ("turns", 1), ("threads", 1)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be at least {least}")
    names = ("data", "length", "steps", "records", "threads")
    if arguments.turn:
        print(
            json.dumps(
                asdict(run_turn(arguments.turn, *(getattr(arguments, name) for name in names)))
            )
        )
        return
    ShardSet.open(arguments.data)
    flags = [f"--{name}={getattr(arguments, name)}" for name in names]
    turn_arguments = [(way, ["--turn", way, *flags]) for way in METHODS]
    turns = [
        SftTurn(**each)
        for each in run_turns("bench.sft", turn_arguments, arguments.turns, arguments.threads)
    ]
    speeds = {
        way: [turn.records_per_second for turn in turns if turn.way == way] for way in METHODS
    }
    peaks = {way: max(turn.peak_bytes for turn in turns if turn.way == way) for way in METHODS}
    baseline_speed = statistics.median(speeds["naive"])
    print(f"{'':8}{'records/s':>10}{'slowest-fastest':>18}{'ratio':>7}{'peak MB':>9}")
    for way, values in speeds.items():
        spread = f"{min(values):.2f}-{max(values):.2f}"
        speed = statistics.median(values)
        print(
            f"{way:8}{speed:10.2f}{spread:>18}{speed / baseline_speed:7.2f}{peaks[way] / 1e6:9,.0f}"
        )
    if arguments.json:
        settings = {
            key: str(value) for key, value in vars(arguments).items() if key not in ("turn", "json")
        }
        write_json(
            arguments.json,
            {
                "made": collect_environment(),
                "settings": settings,
                "turns": [asdict(turn) for turn in turns],
            },
        )


if __name__ == "__main__":
    run_main(main)
