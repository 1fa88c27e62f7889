"""Long runs: training, the chat and the server for an hour or more, with memory and open files watched.

    train    a tiny model, a checkpoint every few steps and an evaluation every few more: thousands are made and deleted
    chat     questions without end to `python -m chat`, whose context fills up and forgets its oldest turns
    serve    requests without end to `python -m chat.serve`, several at once, some given up half-way

A process is flat if its resident memory in the last quarter of the time is at most 10 % and 20 MB above that of the second
quarter (the first is for warming up), and it has no more files open; both by the medians of the quarters, as a single look
may see a connection more. What training leaves behind is read back at the end: the checkpoint verifies, metrics.jsonl has
every step once, and TensorBoard shows as many points.
"""

import argparse
import http.client
import itertools
import json
import math
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import UserError, run_main
from common.files import manifest_problem, write_json
from common.machine import describe
from common.metrics_file import read_metrics
from common.options import Parser, out_file
from common.progress import progress
from model.checkpoint import locate

# Seconds between two looks at a process.
_LOOK = 5.0
_TINY = [
    "--device", "cpu", "--batch_tokens", "256", "--sequence_length", "64", "--micro_batch", "4", "--model.hidden_size", "32",
    "--model.intermediate_size", "64", "--model.num_hidden_layers", "2", "--model.num_attention_heads", "2",
    "--model.max_position_embeddings", "512", "--max_steps", "100000000", "--log_every", "5", "--checkpoint.every", "5",
    "--evaluation.every", "100", "--evaluation.tokens", "512", "--evaluation.sample_tokens", "8",
]
_CLIENTS = 4
_QUESTIONS = ("你好！", "人们去哪里看今弦马赛？", "奖品是什么？", "第一名是谁？", "谢谢你。")


@dataclass(frozen=True)
class Look:
    """A process at a moment: seconds since its start, resident bytes, open files."""

    seconds: float
    resident: int
    files: int


def watch(process: "subprocess.Popen[bytes]", seconds: float) -> list[Look]:
    """Look at a process until the time is over. UserError if it ends before."""
    import psutil

    seen, start, looks = psutil.Process(process.pid), time.monotonic(), []
    with progress("soaking", round(seconds), "s") as bar:
        while (now := time.monotonic() - start) < seconds:
            if process.poll() is not None:
                raise UserError(f"the process ended by itself after {now:.0f} s with exit code {process.returncode}")
            looks.append(Look(now, seen.memory_info().rss, seen.num_fds()))
            bar.update(round(now) - bar.n)
            time.sleep(_LOOK)
    return looks


def verdict(looks: list[Look]) -> tuple[bool, str]:
    """Whether memory and files stayed flat, and the figures in words."""
    quarter = len(looks) // 4
    if quarter < 2:
        raise UserError(f"--minutes: {len(looks)} looks are too few to tell; give it more time")
    early, late = looks[quarter : 2 * quarter], looks[-quarter:]
    before, after = (statistics.median(look.resident for look in part) for part in (early, late))
    opened, open_now = (statistics.median(look.files for look in part) for part in (early, late))
    flat = after - before <= max(0.1 * before, 20e6) and open_now <= opened
    return flat, (f"resident {before / 1e6:.1f} MB in the second quarter, {after / 1e6:.1f} MB in the last, "
                  f"at most {max(look.resident for look in looks) / 1e6:.1f}; open files {opened:g}, {open_now:g}")


def soak_train(folder: Path, seconds: float) -> tuple[list[Look], list[str]]:
    """Train, stop by SIGTERM, read everything back; the looks and what was found, a line each."""
    run = folder / "run"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "train.pretrain", "--run", str(run), *_TINY], stdout=log, stderr=subprocess.STDOUT)
        looks = _watched(process, seconds, folder / "log")
    return looks, _left_behind(run)


def _left_behind(run: Path) -> list[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = read_metrics(run)
    logged = [record["step"] for record in records if record["kind"] == "train"]
    evaluated = [record["step"] for record in records if record["kind"] == "evaluated"]
    last = locate.steps(run)[-1]
    if logged != sorted(set(logged)) or set(range(5, last + 1, 5)) - set(logged):
        raise UserError(f"{run}: metrics.jsonl does not have every logged step once")
    if problem := manifest_problem(locate.step_folder(run, last)):
        raise UserError(problem)
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    points = [event.step for event in board.Scalars("train/loss")]
    if points != logged:
        raise UserError(f"{run}: TensorBoard has {len(points)} points of the loss, metrics.jsonl {len(logged)}")
    kept = sorted(path.name for path in (run / locate.CHECKPOINTS).iterdir())
    return [f"{last:,} steps, about {last // 5:,} checkpoints made, {len(evaluated):,} evaluations; kept {', '.join(kept)}",
            f"metrics.jsonl has {len(records):,} records, TensorBoard {len(points):,} points of the loss, the same steps"]


def soak_chat(checkpoint: Path, folder: Path, seconds: float) -> tuple[list[Look], list[str]]:
    """Ask a chat without end through a pipe; the looks and how many questions it took."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "chat", "--checkpoint", str(checkpoint), "--device", "cpu"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        asked: list[int] = []
        threading.Thread(target=_ask, args=(process, asked), daemon=True).start()
        looks = _watched(process, seconds, folder / "log", stop=signal.SIGTERM)
    if not asked:
        raise UserError("the chat answered nothing")
    return looks, [f"{len(asked):,} questions answered"]


def _ask(process: "subprocess.Popen[bytes]", asked: list[int]) -> None:
    """A question, its answer, the next: a pipe filled ahead of the chat would hide how it goes."""
    assert process.stdin and process.stdout
    for question in itertools.cycle(_QUESTIONS):
        try:
            process.stdin.write((question + "\n").encode())
            process.stdin.flush()
        except OSError:
            return  # the time is over
        if not process.stdout.readline():
            return
        asked.append(1)


def soak_serve(checkpoint: Path, folder: Path, seconds: float) -> tuple[list[Look], list[str]]:
    """Ask a server from several threads without end; every fifth answer is left half-way. The looks, and how many."""
    port = _free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "chat.serve", "--checkpoint", str(checkpoint), "--device", "cpu", "--port", str(port)],
            stdout=log, stderr=subprocess.STDOUT)
        done: Counter[str] = Counter()
        for number in range(_CLIENTS):
            threading.Thread(target=_request, args=(port, checkpoint.name, number, done), daemon=True).start()
        looks = _watched(process, seconds, folder / "log")
    if refused := [said for said in done if said not in ("whole", "left")]:
        raise UserError(f"the server refused requests: {refused[0]}")
    if not done["whole"]:
        raise UserError("the server answered nothing")
    return looks, [f"{done['whole']:,} answers to {_CLIENTS} clients at once, {done['left']:,} more left half-way"]


def _request(port: int, name: str, number: int, done: Counter[str]) -> None:
    """One client. `done` counts the answers read to their end, those left half-way, and what else the server said."""
    for count in itertools.count(number):
        question = {"role": "user", "content": _QUESTIONS[count % len(_QUESTIONS)]}
        body = json.dumps({"model": name, "messages": [question], "stream": True, "max_tokens": 64, "seed": count})
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status == 503:  # it is shutting down: the time is over
                return
            if answer.status != 200:
                done[f"{answer.status} {answer.read()[:200]!r}"] += 1
                return
            answer.readline()
            if count % 5:
                answer.read()
            done["whole" if count % 5 else "left"] += 1
        except (OSError, http.client.HTTPException):
            time.sleep(1)  # it is not up yet, or the time is over
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _watched(
    process: "subprocess.Popen[bytes]", seconds: float, log: Path, stop: signal.Signals = signal.SIGTERM
) -> list[Look]:
    """Watch a process, then end it. UserError with the end of its log if it ended before."""
    try:
        looks = watch(process, seconds)
    except UserError as error:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
        raise UserError(f"{error}: {' | '.join(tail)}") from None
    finally:
        if process.poll() is None:
            process.send_signal(stop)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise UserError(f"the process did not end within 60 s of {stop.name}") from None
    return looks


def main() -> None:
    """Entry point of `python -m tests.fault_injection.soak`."""
    parser = Parser(prog="python -m tests.fault_injection.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "chat", "serve"))
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--checkpoint", type=Path, help="the run that talks (chat and serve)")
    parser.add_argument("--json", type=out_file, metavar="OUT", help="write every look here")
    options = parser.parse_args()
    if not 0 < options.minutes < math.inf:
        raise UserError(f"--minutes {options.minutes}: must be above 0")
    if options.what != "train" and options.checkpoint is None:
        raise UserError(f"{options.what} needs a model that talks: --checkpoint runs/…")
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder, seconds = Path(name), 60 * options.minutes
        if options.what == "train":
            looks, lines = soak_train(folder, seconds)
        else:
            soak = soak_chat if options.what == "chat" else soak_serve
            looks, lines = soak(options.checkpoint, folder, seconds)
    flat, said = verdict(looks)
    print("\n".join([f"{options.what}, {looks[-1].seconds / 60:.1f} minutes: {'flat' if flat else 'NOT FLAT'}", *lines, said]))
    if options.json:
        write_json(options.json, {"made": describe(), "what": options.what, "looks": [asdict(look) for look in looks]})
    if not flat:
        raise UserError("memory or open files grew")


if __name__ == "__main__":
    run_main(main)
