"""`--train MINUTES`: pretrain, fine-tune and score with the real commands within a time budget.

Another call resumes. Runs are in a work folder; the results get copies of the small files: metrics,
scores, the report and its curves.
"""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.gpu.results import cell
from bench.gpu.worker import number, read
from common import run_layout
from common.errors import UserError
from common.files import write_atomic, write_json

ROOT = Path(__file__).resolve().parents[2]
STATE, PAGE = "train.json", "train.md"
# Fraction of the budget for pretraining, steps of the speed trial, seconds reserved for scoring.
PRETRAIN_SHARE, TRIAL_STEPS, SCORING_SECONDS = 0.6, 20, 60.0
# Seconds for a training command to save after SIGINT.
SAVING_SECONDS = 120.0
# Records of each test split.
LIMIT = 200
RUNS = ("pretrain", "sft")


@dataclass(frozen=True)
class Plan:
    """The folders of results and runs, and the data."""

    out: Path
    work: Path
    device: str
    data: str
    tune: str

    @property
    def large(self) -> bool:
        """Return True if the data is large enough for the 43M shape, unlike the sample."""
        return self.data != "sample" and self.device == "cuda"

    def config_arguments(self, kind: str) -> list[str]:
        """Return the `--config` of a command; the sample uses the defaults."""
        return ["--config", str(ROOT / "configs" / f"{kind}-43m.yaml")] if self.large else []


@dataclass
class Stage:
    """The outcome of a command."""

    name: str
    status: str
    seconds: float
    line: str


class Call:
    """One call of `--train`: run commands within the time budget."""

    def __init__(self, plan: Plan, minutes: float) -> None:
        self.plan, self.minutes = plan, minutes
        self._deadline = time.monotonic() + 60 * minutes
        self.stages: list[Stage] = []

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._deadline - time.monotonic()

    def command(self, name: str, module: str, *words: str, reserve: float = 0.0) -> Stage:
        """Run `python -m MODULE WORDS`; interrupt it when only `reserve` seconds are left."""
        begun, log = time.monotonic(), self.plan.work / f"{name}.log"
        if self.left() <= reserve:
            return self._add(
                Stage(name, "not reached", 0.0, "the time was over: the same command goes on")
            )
        print(f"$ python -m {module} {' '.join(words)}", flush=True)
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            stopped = False
            try:
                try:
                    process.wait(max(1.0, self.left() - reserve))
                except subprocess.TimeoutExpired:
                    stopped = True
                    process.send_signal(signal.SIGINT)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(SAVING_SECONDS)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        text = log.read_text(encoding="utf-8", errors="replace")
        return self._add(
            Stage(
                name,
                *outcome(
                    process.returncode, text, stopped=stopped, seconds=time.monotonic() - begun
                ),
            )
        )

    def _add(self, stage: Stage) -> Stage:
        self.stages.append(stage)
        print(f"{stage.name:16} {stage.status:12} {stage.seconds:6.0f} s  {stage.line}", flush=True)
        return stage


def outcome(code: int, text: str, *, stopped: bool, seconds: float) -> tuple[str, float, str]:
    """Return the status of an ended command, its seconds, and its most telling line."""
    missing = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", text)
    lines = [line for line in text.strip().splitlines() if line.strip()] or ["no output"]
    errors = [line for line in lines if line.startswith("error:")]
    if code == 0 and not stopped:
        return "done", seconds, lines[-1][:300]
    if stopped:
        return "stopped", seconds, lines[-1][:300]
    if missing:
        return "not run", seconds, f"{missing[1]} is not installed"
    return "failed", seconds, (errors or lines)[-1][:300]


def train_and_score(plan: Plan, minutes: float, *, keep_weights: bool) -> int:
    """Run what fits into `minutes`, write the results, return 1 if a command failed."""
    plan.out.mkdir(parents=True, exist_ok=True)
    plan.work.mkdir(parents=True, exist_ok=True)
    call = Call(plan, minutes)
    state = _open_state(plan)
    try:
        _stages(call, state)
    finally:
        collect(plan, state, call.stages, keep_weights=keep_weights)
    print(f"scores, curves and metrics are in {plan.out}")
    return int(any(stage.status == "failed" for stage in call.stages))


def _open_state(plan: Plan) -> dict[str, Any]:
    """Return the state of earlier calls. Raises UserError for other data or another device."""
    asked = {"device": plan.device, "data": plan.data, "tune": plan.tune}
    state = read(plan.work / STATE) or {"asked": asked, "calls": []}
    if state["asked"] != asked:
        raise UserError(
            f"{plan.work} holds runs of {state['asked']}: delete it, or name another --out"
        )
    return state


def _stages(call: Call, state: dict[str, Any]) -> None:
    plan = call.plan
    device = ["--device", plan.device]
    pretrain = [*plan.config_arguments("pretrain"), "--data", plan.data, *device]
    if "steps" not in state:
        trial = plan.work / "trial"
        stage = call.command(
            "trial",
            "train.pretrain",
            *pretrain,
            "--run",
            str(trial),
            "--max_steps",
            str(TRIAL_STEPS),
            "--log_every",
            "5",
            "--evaluation.sample_tokens",
            "0",
        )
        if stage.status != "done":
            return
        state["steps"] = fitting_steps(
            _records(trial), call.left() * PRETRAIN_SHARE, _configured_steps(pretrain)
        )
        shutil.rmtree(trial)
        write_json(plan.work / STATE, state)
    runs = {name: str(plan.work / name) for name in RUNS}
    stage = call.command(
        "pretrain",
        "train.pretrain",
        *pretrain,
        "--run",
        runs["pretrain"],
        "--max_steps",
        str(state["steps"]),
        reserve=SCORING_SECONDS,
    )
    if stage.status == "done":
        call.command(
            "sft",
            "train.sft",
            *plan.config_arguments("sft"),
            "--data",
            plan.tune,
            "--base",
            runs["pretrain"],
            "--run",
            runs["sft"],
            *device,
            reserve=SCORING_SECONDS,
        )
    for name in RUNS:
        if (plan.work / name / run_layout.CHECKPOINTS_DIR).is_dir():
            call.command(
                f"score {name}",
                "evaluate",
                "--checkpoint",
                runs[name],
                "--limit",
                str(LIMIT),
                *device,
            )


def _configured_steps(pretrain: list[str]) -> int:
    """Return `max_steps` of the configuration."""
    from common.options import load_yaml

    return int(load_yaml(Path(pretrain[1]))["max_steps"])


def _records(run: Path) -> list[dict[str, Any]]:
    """Return the training records of a run, with the tokens of a step."""
    from common.metrics_file import read_metrics

    return [record for record in read_metrics(run) if record["kind"] == "train"]


def fitting_steps(records: list[dict[str, Any]], seconds: float, most: int) -> int:
    """Return the steps that fit into `seconds` at the speed of a trial, from 1 to `most`."""
    first, last = records[len(records) // 2 - 1], records[-1]
    tokens = (last["tokens"] - first["tokens"]) / (last["step"] - first["step"])
    speed = sum(record["tokens_per_second"] for record in records[len(records) // 2 :]) / (
        len(records) - len(records) // 2
    )
    return max(1, min(most, int(seconds * speed / tokens)))


def collect(plan: Plan, state: dict[str, Any], stages: list[Stage], *, keep_weights: bool) -> None:
    """Copy the small files of the runs, and write the JSON file and the page of all calls."""
    state["calls"].append([asdict(stage) for stage in stages])
    write_json(plan.work / STATE, state)
    write_json(plan.out / STATE, state)
    lines = [
        f"# check-gpu --train: {plan.data}, then {plan.tune}",
        "",
        f"{state.get('steps', 'not yet known')} steps of pretraining are planned.",
        "",
        "| call | stage | status | s | last line |",
        "|--:|---|---|--:|---|",
    ]
    for index, call in enumerate(state["calls"], 1):
        for each in call:
            cells = [each["name"], each["status"], f"{each['seconds']:.0f}", cell(each["line"])]
            lines.append(f"| {index} | {' | '.join(cells)} |")
    for name in RUNS:
        run, target = plan.work / name, plan.out / name
        if not run.is_dir():
            continue
        target.mkdir(exist_ok=True)
        for path in (
            *run.glob("results/*.json"),
            *run.glob("report*"),
            run / run_layout.METRICS_FILE,
            run / "samples.md",
        ):
            if path.is_file():
                shutil.copy(path, target / path.name)
            elif path.is_dir():
                shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        lines += ["", f"## {name}", "", *scores(target)]
        if keep_weights:
            _copy_weights(run, target / "weights")
    write_atomic(plan.out / PAGE, "\n".join(lines) + "\n")


def scores(folder: Path) -> list[str]:
    """Return a list item for each number in a results folder, and for the last training loss."""
    items = []
    for path in sorted(folder.glob("*.json")):
        for key, value in read(path).items():
            if isinstance(value, float):
                items.append(f"- {path.stem}: {key} {number(value)}")
    records = _records(folder)
    if records:
        items.append(
            f"- training: step {records[-1]['step']}, loss {number(records[-1]['loss'])}, "
            f"{records[-1]['tokens_per_second']:,.0f} tokens/s"
        )
    return items


def _copy_weights(run: Path, target: Path) -> None:
    """Copy the newest checkpoint of a run without its optimizer state."""
    from common.run_layout import step_folder
    from model.checkpoint.locate import find_newest_step

    step = find_newest_step(run)
    if step is not None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(
            step_folder(run, step),
            target,
            ignore=shutil.ignore_patterns("optimizer.safetensors", "manifest.json"),
        )
