"""Run training, chat or the server for an hour or more, and check that memory and files are flat.

    train    a tiny model, with thousands of checkpoints and evaluations
    chat     endless questions to `python -m chat`, whose context overflows again and again
    serve    endless requests to `python -m chat.serve`, several at once, some of them aborted

Memory is flat if the resident memory of the last quarter of the time is at most 10 % and 20 MB
above that of the second quarter, after a warm-up. Open files may not increase. Both are medians,
because a single sample may include a connection more. The files of training are read at the end:
the checkpoint verifies, and metrics.jsonl and TensorBoard have every step once.
"""

import http.client
import itertools
import json
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
from typing import Literal

from pydantic import Field

from common import run_layout
from common.errors import UserError, run_main
from common.files import check_manifest, write_json
from common.machine import collect_environment
from common.metrics_file import read_metrics
from common.options import CliPositionalArg, Options, OutputFile, parse_options
from common.progress import progress_bar
from tests.helpers.training import TINY_SHAPE, to_arguments

_SAMPLE_INTERVAL_SECONDS = 5.0
_TINY_RUN_ARGUMENTS = to_arguments(
    {
        "device": "cpu",
        "batch_tokens": 256,
        "sequence_length": 64,
        "micro_batch": 4,
        "model": {**TINY_SHAPE, "max_position_embeddings": 512},
        "max_steps": 100_000_000,
        "log_every": 5,
        "checkpoint.every": 5,
        "evaluation.every": 100,
        "evaluation.tokens": 512,
        "evaluation.sample_tokens": 8,
    }
)
_NUM_CLIENTS = 4
_QUESTIONS = ("你好！", "人们去哪里看今弦马赛？", "奖品是什么？", "第一名是谁？", "谢谢你。")


@dataclass(frozen=True)
class ProcessSample:
    """The state of a process at one moment."""

    seconds: float  # since the start
    resident: int  # bytes
    files: int  # open file descriptors


def sample_process(process: "subprocess.Popen[bytes]", seconds: float) -> list[ProcessSample]:
    """Sample a process for a while. Raises UserError if it ends before."""
    import psutil

    observer = psutil.Process(process.pid)
    start = time.monotonic()
    samples: list[ProcessSample] = []
    with progress_bar("soaking", round(seconds), "s") as bar:
        while (elapsed := time.monotonic() - start) < seconds:
            if process.poll() is not None:
                raise UserError(
                    f"the process ended by itself after {elapsed:.0f} s with exit code "
                    f"{process.returncode}"
                )
            samples.append(ProcessSample(elapsed, observer.memory_info().rss, observer.num_fds()))
            bar.update(round(elapsed) - bar.n)
            time.sleep(_SAMPLE_INTERVAL_SECONDS)
    return samples


def assess_growth(samples: list[ProcessSample]) -> tuple[bool, str]:
    """Return whether memory and files stayed flat, and a line with the figures.

    Compares the medians of the second and of the last quarter of the samples. Raises UserError if
    there are fewer than eight.
    """
    quarter = len(samples) // 4
    if quarter < 2:
        raise UserError(f"--minutes: {len(samples)} samples are too few; give it more time")
    # The first quarter is the warm-up.
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    early_resident = statistics.median(sample.resident for sample in early)
    late_resident = statistics.median(sample.resident for sample in late)
    early_files = statistics.median(sample.files for sample in early)
    late_files = statistics.median(sample.files for sample in late)
    is_flat = (
        late_resident - early_resident <= max(0.1 * early_resident, 20e6)
        and late_files <= early_files
    )
    peak = max(sample.resident for sample in samples)
    return is_flat, (
        f"resident {early_resident / 1e6:.1f} MB in the second quarter, "
        f"{late_resident / 1e6:.1f} MB in the last, at most {peak / 1e6:.1f}; "
        f"open files {early_files:g}, {late_files:g}"
    )


def soak_train(folder: Path, seconds: float) -> tuple[list[ProcessSample], list[str]]:
    """Train for `seconds`, stop with SIGTERM, and check the files of the run.

    Returns the samples, and lines with the figures of the run.
    """
    run = folder / "run"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "train.pretrain", "--run", str(run), *_TINY_RUN_ARGUMENTS],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        samples = _sample_and_stop(process, seconds, folder / "log")
    return samples, _check_finished_run(run)


def _check_finished_run(run: Path) -> list[str]:
    """Check checkpoints, metrics and TensorBoard of a run, and return lines with its figures.

    Raises UserError if the last checkpoint is damaged, or if a step is missing or logged twice.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = read_metrics(run)
    logged_steps = [record["step"] for record in records if record["kind"] == "train"]
    evaluation_steps = [record["step"] for record in records if record["kind"] == "evaluated"]
    last_step = run_layout.list_steps(run)[-1]
    if logged_steps != sorted(set(logged_steps)) or set(range(5, last_step + 1, 5)) - set(
        logged_steps
    ):
        raise UserError(f"{run}: metrics.jsonl does not have every logged step once")
    if problem := check_manifest(run_layout.step_folder(run, last_step)):
        raise UserError(problem)
    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    tensorboard_steps = [event.step for event in accumulator.Scalars("train/loss")]
    if tensorboard_steps != logged_steps:
        raise UserError(
            f"{run}: TensorBoard has {len(tensorboard_steps)} points of the loss, metrics.jsonl "
            f"{len(logged_steps)}"
        )
    checkpoint_names = sorted(path.name for path in (run / run_layout.CHECKPOINTS_DIR).iterdir())
    return [
        f"{last_step:,} steps, about {last_step // 5:,} checkpoints, {len(evaluation_steps):,} "
        f"evaluations; remaining checkpoints {', '.join(checkpoint_names)}",
        f"metrics.jsonl has {len(records):,} records, TensorBoard {len(tensorboard_steps):,} "
        "points of the loss at the same steps",
    ]


def soak_chat(
    checkpoint: Path, folder: Path, seconds: float
) -> tuple[list[ProcessSample], list[str]]:
    """Ask a chat questions for `seconds`; return the samples, and a line that counts answers."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "chat", "--checkpoint", str(checkpoint), "--device", "cpu"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        answers: list[bytes] = []
        threading.Thread(target=_ask_questions, args=(process, answers), daemon=True).start()
        samples = _sample_and_stop(process, seconds, folder / "log")
    if not answers:
        raise UserError("the chat answered nothing")
    return samples, [f"{len(answers):,} questions answered"]


def _ask_questions(process: "subprocess.Popen[bytes]", answers: list[bytes]) -> None:
    """Ask questions until the chat ends, and append the first line of each answer to `answers`.

    Each question waits for the answer to the one before: questions that pile up in the pipe would
    hide a chat that hangs.
    """
    assert process.stdin and process.stdout
    for question in itertools.cycle(_QUESTIONS):
        try:
            process.stdin.write((question + "\n").encode())
            process.stdin.flush()
        except OSError:
            return  # the chat has ended
        answer = process.stdout.readline()
        if not answer:
            return
        answers.append(answer)


def soak_serve(
    checkpoint: Path, folder: Path, seconds: float
) -> tuple[list[ProcessSample], list[str]]:
    """Send a server requests from several threads for `seconds`; abort every fifth answer.

    Returns the samples, and a line with the number of answers.
    """
    port = _free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "chat.serve",
                "--checkpoint",
                str(checkpoint),
                "--device",
                "cpu",
                "--port",
                str(port),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        outcomes: Counter[str] = Counter()
        for number in range(_NUM_CLIENTS):
            threading.Thread(
                target=_run_client, args=(port, checkpoint.name, number, outcomes), daemon=True
            ).start()
        samples = _sample_and_stop(process, seconds, folder / "log")
    if errors := [outcome for outcome in outcomes if outcome not in ("whole", "aborted")]:
        raise UserError(f"the server refused requests: {errors[0]}")
    if not outcomes["whole"]:
        raise UserError("the server answered nothing")
    return samples, [
        f"{outcomes['whole']:,} answers to {_NUM_CLIENTS} clients at once, "
        f"{outcomes['aborted']:,} more aborted"
    ]


def _run_client(port: int, model_name: str, first_index: int, outcomes: Counter[str]) -> None:
    """Send requests until the server ends; count whole and aborted answers and errors.

    `outcomes` is shared by all clients. A count may be lost between threads, but not an error,
    which ends its client.
    """
    for request_index in itertools.count(first_index):
        question = {"role": "user", "content": _QUESTIONS[request_index % len(_QUESTIONS)]}
        body = json.dumps(
            {
                "model": model_name,
                "messages": [question],
                "stream": True,
                "max_tokens": 64,
                "seed": request_index,
            }
        )
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request(
                "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            if response.status == 503:  # the server is shutting down
                return
            if response.status != 200:
                outcomes[f"{response.status} {response.read()[:200]!r}"] += 1
                return
            response.readline()
            if request_index % 5:
                response.read()
            outcomes["whole" if request_index % 5 else "aborted"] += 1
        except (OSError, http.client.HTTPException):
            time.sleep(1)  # the server is not up yet, or shutting down
        finally:
            connection.close()


def _free_port() -> int:
    """Return a port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _sample_and_stop(
    process: "subprocess.Popen[bytes]", seconds: float, log: Path
) -> list[ProcessSample]:
    """Sample a process for `seconds`, then stop it with SIGTERM.

    Raises UserError with the end of its log if it died, or if SIGTERM does not end it in a minute.
    """
    try:
        samples = sample_process(process, seconds)
    except UserError as error:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
        raise UserError(f"{error}: {' | '.join(tail)}") from None
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise UserError("the process did not end within 60 s of SIGTERM") from None
    return samples


class SoakOptions(Options):
    """Options of `python -m tests.fault_injection.soak`."""

    what: CliPositionalArg[Literal["train", "chat", "serve"]] = Field(description="command to run")
    minutes: float = Field(60.0, gt=0, description="how long it runs")
    checkpoint: Path | None = Field(None, description="run to chat with (chat and serve)")
    json_file: OutputFile | None = Field(
        None, alias="json", description="write every sample to this file"
    )

    def find_conflicts(self) -> list[str]:
        """See `Options.find_conflicts`."""
        lines = super().find_conflicts()
        if self.what != "train" and self.checkpoint is None:
            lines.append(f"{self.what} needs a model: --checkpoint runs/NAME")
        return lines


def main() -> None:
    """Run the command."""
    options = parse_options(
        SoakOptions, sys.argv[1:], name="tests.fault_injection.soak", description=__doc__ or ""
    )
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder, seconds = Path(name), 60 * options.minutes
        if options.what == "train":
            samples, lines = soak_train(folder, seconds)
        else:
            soak = soak_chat if options.what == "chat" else soak_serve
            assert options.checkpoint is not None
            samples, lines = soak(options.checkpoint, folder, seconds)
    is_flat, memory_summary = assess_growth(samples)
    print(
        "\n".join(
            [
                f"{options.what}, {samples[-1].seconds / 60:.1f} minutes: "
                f"{'flat' if is_flat else 'NOT FLAT'}",
                *lines,
                memory_summary,
            ]
        )
    )
    if options.json_file:
        write_json(
            options.json_file,
            {
                "made": collect_environment(),
                "what": options.what,
                "looks": [asdict(sample) for sample in samples],
            },
        )
    if not is_flat:
        raise UserError("memory or open files grew")


if __name__ == "__main__":
    run_main(main)
