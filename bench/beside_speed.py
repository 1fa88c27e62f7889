"""Training and decoding speed with several ways to wait, alone and beside busy processes."""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.options import BesideOptions
from bench.rounds import LIBRARY_WAITING, run_rounds
from common.files import write_json
from common.machine import collect_environment
from model.config import config_from_preset

MODEL_CONFIG = config_from_preset("babyllama-43m", vocab_size=65_000)
SEED = 1
TRAIN_ROWS, TRAIN_LENGTH = 8, 512
PROMPT_LENGTH, NEW_TOKENS = 64, 32
TASKS = ("train", "decode-1", "decode-16")
# The ways to wait, each as the environment variables of a process.
OWN_WAY = "babyllama"
WAYS: dict[str, dict[str, str]] = {
    "libgomp": LIBRARY_WAITING,
    OWN_WAY: {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run `count` processes that compute without pause, each on one core."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def build_task(name: str) -> tuple[Callable[[], object], int]:
    """Return what a task repeats, and how many tokens that trains on or generates."""
    import torch

    from model.llama import Llama

    model = Llama(MODEL_CONFIG).init_weights(SEED)
    torch.manual_seed(SEED)
    if name != "train":
        from model.decode.batch_generate import generate_batch

        model.eval()
        rows = int(name.removeprefix("decode-"))
        prompts = torch.randint(3, MODEL_CONFIG.vocab_size, (rows, PROMPT_LENGTH)).tolist()
        generate = lambda: generate_batch(model, prompts, max_new_tokens=NEW_TOKENS)  # noqa: E731
        return generate, rows * NEW_TOKENS
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(3, MODEL_CONFIG.vocab_size, (TRAIN_ROWS, TRAIN_LENGTH + 1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def train_step() -> None:
        model(inputs, targets, scale=1 / targets.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return train_step, targets.numel()


def measure_task(name: str, seconds: float) -> float:
    """Return the tokens per second of a task, the median over `seconds`, after two warm-up runs."""
    run, num_tokens = build_task(name)
    run()
    run()
    durations: list[float] = []
    while sum(durations) < seconds:
        start = time.perf_counter()
        run()
        durations.append(time.perf_counter() - start)
    return num_tokens / statistics.median(durations)


def compare_waiting(options: BesideOptions) -> None:
    """Measure every task with every way to wait beside each number of processes, and print tables.

    Raises UserError if a process fails.
    """
    if options.only_task is not None:
        import torch

        if options.adapts_threads:
            os.environ.pop("OMP_NUM_THREADS", None)
        torch.set_num_threads(options.threads)
        print(measure_task(options.only_task, options.seconds))
        return
    results: list[dict[str, Any]] = []
    header = f"{'busy processes':16}{'task':12}" + "".join(f"{way:>12}" for way in WAYS)
    for others in options.others:
        for task in TASKS:
            arguments = [
                f"--only_task={task}",
                f"--seconds={options.seconds}",
                f"--threads={options.threads}",
            ]
            # As commands that decode batches do (`common.threads`); chat, with one row, does not.
            own = LIBRARY_WAITING if task == "decode-16" else {}
            with busy_processes(others):
                speeds = run_rounds(
                    "bench.beside",
                    [(way, [*arguments, f"--adapts_threads={way == OWN_WAY}"]) for way in WAYS],
                    rounds=options.rounds,
                    threads=options.threads,
                    environments={**WAYS, OWN_WAY: own},
                )
            # The rounds are A B C A B C …, so every third result belongs to a way.
            medians = {
                way: statistics.median(speeds[index :: len(WAYS)]) for index, way in enumerate(WAYS)
            }
            # At once, so that what was measured is not lost if the command is stopped.
            if not results:
                print(header)
            results.append({"others": others, "task": task, "tokens_per_second": medians})
            speeds_text = "".join(f"{medians[way]:12,.0f}" for way in WAYS)
            print(f"{others:<16}{task:12}{speeds_text}", flush=True)
    if options.json_file:
        write_json(
            options.json_file,
            {
                "made": collect_environment(),
                "rounds": options.rounds,
                "threads": options.threads,
                "seconds": options.seconds,
                "results": results,
            },
        )
