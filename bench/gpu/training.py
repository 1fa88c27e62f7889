"""`--train MINUTES`: pretrain, fine-tune and score with the real commands within a time budget.

Another call resumes. Runs are in a work folder. Their small files (metrics, scores, the report and
its curves) are copied into the results.
"""

import contextlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.gpu.results import cell
from bench.gpu.worker import format_number, read_json
from common import run_layout
from common.errors import UserError
from common.files import write_atomic, write_json

ROOT = Path(__file__).resolve().parents[2]
STATE, PAGE = "train.json", "train.md"
PRETRAIN_SHARE = 0.6  # fraction of the time after the trial that is for pretraining
TRIAL_STEPS = 20  # steps of the run that measures the speed
SCORING_SECONDS = 60.0  # reserved for scoring while a command trains
SAVING_SECONDS = 120.0  # for a training command to save a checkpoint after SIGINT
SCORED_RECORDS = 200  # at most, of each dev and test split
RUNS = ("pretrain", "sft")


@dataclass(frozen=True)
class Plan:
    """What to train, on which device, and where runs and results go."""

    out: Path
    """Folder of the results."""
    work: Path
    """Folder of the runs."""
    device: str
    data: str
    """The corpus of pretraining."""
    tune: str
    """The corpus of fine-tuning."""

    @property
    def uses_large_model(self) -> bool:
        """Whether to train the 43M model: on a GPU, and with other data than the small sample."""
        return self.data != "sample" and self.device == "cuda"

    def config_arguments(self, command: str) -> list[str]:
        """Return the `--config` of pretrain or sft; the small model is that of the defaults."""
        if not self.uses_large_model:
            return []
        return ["--config", str(ROOT / "configs" / f"{command}-43m.yaml")]


@dataclass
class Stage:
    """The outcome of a command."""

    name: str
    status: str
    """done, stopped (by the end of the budget), not reached, not run (a package is missing) or
    failed."""
    seconds: float
    line: str
    """The most telling line of its output."""


class BudgetedCall:
    """One call of `--train`: run commands within the time budget."""

    def __init__(self, plan: Plan, minutes: float) -> None:
        self.plan = plan
        self.stages: list[Stage] = []
        self._deadline = time.monotonic() + 60 * minutes

    @property
    def remaining_seconds(self) -> float:
        """Return the seconds until the end of the budget; negative after it."""
        return self._deadline - time.monotonic()

    def run_command(
        self, name: str, module: str, *arguments: str, reserved_seconds: float = 0.0
    ) -> Stage:
        """Run `python -m MODULE ARGUMENTS`, and add its outcome, which is returned, to the stages.

        The command is interrupted when only `reserved_seconds` of the budget are left, and not
        started if there are none but those.
        """
        if self.remaining_seconds <= reserved_seconds:
            return self._add_stage(
                Stage(name, "not reached", 0.0, "the time was over: the same command goes on")
            )
        start_time = time.monotonic()
        log = self.plan.work / f"{name}.log"
        print(f"$ python -m {module} {' '.join(arguments)}", flush=True)
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            was_stopped = False
            try:
                try:
                    process.wait(max(1.0, self.remaining_seconds - reserved_seconds))
                except subprocess.TimeoutExpired:
                    was_stopped = True
                    # Training saves a checkpoint on SIGINT, from which the next call resumes.
                    process.send_signal(signal.SIGINT)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(SAVING_SECONDS)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        status, line = judge_outcome(
            process.returncode,
            log.read_text(encoding="utf-8", errors="replace"),
            was_stopped=was_stopped,
        )
        return self._add_stage(Stage(name, status, time.monotonic() - start_time, line))

    def _add_stage(self, stage: Stage) -> Stage:
        self.stages.append(stage)
        print(f"{stage.name:16} {stage.status:12} {stage.seconds:6.0f} s  {stage.line}", flush=True)
        return stage


def judge_outcome(exit_code: int, output: str, *, was_stopped: bool) -> tuple[str, str]:
    """Return the status of a command that has ended, and the most telling line of its output."""
    lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
    last_line = lines[-1][:300]
    if was_stopped:
        return "stopped", last_line
    if exit_code == 0:
        return "done", last_line
    missing_module = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", output)
    if missing_module:
        return "not run", f"{missing_module[1]} is not installed"
    errors = [line for line in lines if line.startswith("error:")]
    return "failed", errors[-1][:300] if errors else last_line


def train_and_score(plan: Plan, minutes: float, *, keep_weights: bool) -> int:
    """Run what fits into `minutes`, and write the results. Returns 1 if a command failed, else 0.

    Raises UserError if `plan.work` holds the runs of other data or another device.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    plan.work.mkdir(parents=True, exist_ok=True)
    call = BudgetedCall(plan, minutes)
    state = _open_state(plan)
    try:
        _run_stages(call, state)
    finally:
        # After an error or Ctrl-C, too.
        collect_results(plan, state, call.stages, keep_weights=keep_weights)
    print(f"scores, curves and metrics are in {plan.out}")
    return int(any(stage.status == "failed" for stage in call.stages))


def _open_state(plan: Plan) -> dict[str, Any]:
    """Return the state after the earlier calls, or a new one.

    The keys are `asked` (the settings), `calls` (the stages of each), and `steps` (of pretraining)
    once the trial has measured the speed. Raises UserError if the earlier calls had a different
    device or different data for pretraining or fine-tuning.
    """
    settings = {"device": plan.device, "data": plan.data, "tune": plan.tune}
    state = read_json(plan.work / STATE) or {"asked": settings, "calls": []}
    if state["asked"] != settings:
        earlier = " ".join(f"--{name} {value}" for name, value in state["asked"].items())
        raise UserError(f"{plan.work} holds runs of {earlier}: delete it, or name another --out")
    return state


def _run_stages(call: BudgetedCall, state: dict[str, Any]) -> None:
    """Run a speed trial, pretraining, fine-tuning and scoring, as far as the budget allows.

    A later call resumes: the number of pretraining steps is in `state`, and the commands resume
    their runs.
    """
    plan = call.plan
    device = ["--device", plan.device]
    pretrain = [*plan.config_arguments("pretrain"), "--data", plan.data, *device]
    if "steps" not in state:
        trial_run = plan.work / "trial"
        stage = call.run_command(
            "trial",
            "train.pretrain",
            *pretrain,
            "--run",
            str(trial_run),
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
            _read_train_records(trial_run),
            call.remaining_seconds * PRETRAIN_SHARE,
            configured_steps(plan),
        )
        shutil.rmtree(trial_run)
        write_json(plan.work / STATE, state)
    runs = {name: str(plan.work / name) for name in RUNS}
    stage = call.run_command(
        "pretrain",
        "train.pretrain",
        *pretrain,
        "--run",
        runs["pretrain"],
        "--max_steps",
        str(state["steps"]),
        reserved_seconds=SCORING_SECONDS,
    )
    if stage.status == "done":
        call.run_command(
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
            reserved_seconds=SCORING_SECONDS,
        )
    for name in RUNS:
        if (plan.work / name / run_layout.CHECKPOINTS_DIR).is_dir():
            call.run_command(
                f"score {name}",
                "evaluate",
                "--checkpoint",
                runs[name],
                "--limit",
                str(SCORED_RECORDS),
                *device,
            )


def configured_steps(plan: Plan) -> int:
    """Return `max_steps` of pretraining: that of the config file, or the default without one."""
    # Imported here because their packages may be missing, and only --train needs them.
    from common.yaml_files import load_yaml
    from train.options import PretrainOptions

    arguments = plan.config_arguments("pretrain")
    if not arguments:
        return int(PretrainOptions.model_fields["max_steps"].default)
    return int(load_yaml(Path(arguments[1]))["max_steps"])


def _read_train_records(run: Path) -> list[dict[str, Any]]:
    """Return the records in the metrics of a run that are about training, not evaluation."""
    from common.metrics_file import read_metrics

    return [record for record in read_metrics(run) if record["kind"] == "train"]


def fitting_steps(records: list[dict[str, Any]], seconds: float, max_steps: int) -> int:
    """Return how many steps fit into `seconds` at the speed of a trial run, from 1 to `max_steps`.

    `records` are those of the trial. Their first half is left out, because it includes start-up.
    """
    middle = len(records) // 2
    first, last = records[middle - 1], records[-1]
    tokens_per_step = (last["tokens"] - first["tokens"]) / (last["step"] - first["step"])
    tokens_per_second = statistics.mean(record["tokens_per_second"] for record in records[middle:])
    num_steps = int(seconds * tokens_per_second / tokens_per_step)
    return max(1, min(max_steps, num_steps))


def collect_results(
    plan: Plan, state: dict[str, Any], stages: list[Stage], *, keep_weights: bool
) -> None:
    """Copy the small files of the runs, and write the JSON file and the page of all calls.

    `stages` are those of the present call, which are added to `state`. With `keep_weights` the
    weights are copied, too.
    """
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
    for call_number, call_stages in enumerate(state["calls"], start=1):
        for stage in call_stages:
            cells = [stage["name"], stage["status"], f"{stage['seconds']:.0f}", cell(stage["line"])]
            lines.append(f"| {call_number} | {' | '.join(cells)} |")
    for name in RUNS:
        run, target = plan.work / name, plan.out / name
        if not run.is_dir():
            continue
        target.mkdir(exist_ok=True)
        for path in (
            *run.glob("results/*.json"),
            *run.glob("report*"),
            run / run_layout.METRICS_FILE,
            run / run_layout.SAMPLES_FILE,
        ):
            if path.is_file():
                shutil.copy(path, target / path.name)
            elif path.is_dir():
                shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        lines += ["", f"## {name}", "", *list_scores(target)]
        if keep_weights:
            _copy_weights(run, target / "weights")
    write_atomic(plan.out / PAGE, "\n".join(lines) + "\n")


def list_scores(folder: Path) -> list[str]:
    """Return a Markdown list item for each number in the copied results and the last training step.

    `folder` has the JSON results and the metrics file of a run side by side.
    """
    items = []
    for path in sorted(folder.glob("*.json")):
        for key, value in read_json(path).items():
            # Whole numbers are counts and settings, not scores.
            if isinstance(value, float):
                items.append(f"- {path.stem}: {key} {format_number(value)}")
    records = _read_train_records(folder)
    if records:
        items.append(
            f"- training: step {records[-1]['step']}, loss {format_number(records[-1]['loss'])}, "
            f"{records[-1]['tokens_per_second']:,.0f} tokens/s"
        )
    return items


def _copy_weights(run: Path, target: Path) -> None:
    """Replace `target` by the newest checkpoint of a run, without its optimizer state.

    Only resuming needs that state. The manifest is left out because it lists the checksum of that
    file. Without a checkpoint nothing is changed.
    """
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
