"""The layout of a run directory; no other module spells the names of its files and folders.

runs/NAME/
    run.json            environment, shard sets and fingerprints of the first start; a folder that
                        has this file is a run
    config.yaml         options of the last start
    metrics.jsonl       log of training and evaluation, one JSON object per line
    choices.json        compute plan of this machine
    ended.json          best step, if early stopping ended the run
    lock                held while a process trains
    plan/               order of the training data
    reference/          log-probabilities of the base, of a run on preferences
    rollouts/           answers that a run on rewards is learning from
    start.json          rewards of the base, of a run on rewards
    checkpoints/        step-00001000/ ..., and best, a link to one of them; damaged-step-...
    failed/             checkpoints/ of a run that diverged: its state then
    decoding.json       how summaries are decoded, chosen on dev records
    samples.md          text that the model wrote during training
    tensorboard/        event files
    results/            figures of the evaluation commands; before-after.json: beside the base
    report.md, .html    all figures on a page
    watch.md, .html     questions and figures of every checkpoint
"""

from pathlib import Path

RUNS_DIR = Path("runs")
RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
COMPUTE_PLAN_FILE = "choices.json"
EARLY_STOP_FILE = "ended.json"
LOCK_FILE = "lock"
PLAN_DIR = "plan"
REFERENCE_DIR = "reference"
ROLLOUTS_DIR = "rollouts"
START_SCORES_FILE = "start.json"
CHECKPOINTS_DIR = "checkpoints"
BEST_LINK = "best"
FAILED_DIR = "failed"
DECODING_FILE = "decoding.json"
SAMPLES_FILE = "samples.md"
TENSORBOARD_DIR = "tensorboard"
RESULTS_DIR = "results"
REPORT_NAME = "report"
WATCH_NAME = "watch"
BEFORE_AFTER_NAME = "before-after"
_STEP_PREFIX = "step-"
_DAMAGED_PREFIX = "damaged-"


def step_folder(run: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return run / CHECKPOINTS_DIR / f"{_STEP_PREFIX}{step:08d}"


def damaged_step_folder(run: Path, step: int) -> Path:
    """Return where a damaged checkpoint of a step is put aside."""
    folder = step_folder(run, step)
    return folder.with_name(f"{_DAMAGED_PREFIX}{folder.name}")


def list_steps(run: Path) -> list[int]:
    """Return the steps of a run's checkpoints in ascending order, without verifying the files."""
    folders = (run / CHECKPOINTS_DIR).glob(f"{_STEP_PREFIX}*")
    names = [folder.name.removeprefix(_STEP_PREFIX) for folder in folders]
    # isdecimal() alone would also accept the digits of other scripts.
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def find_run(path: Path) -> Path | None:
    """Return the run directory that `path` is, or that contains the step folder `path`, or None."""
    if (path / RUN_FILE).is_file():
        return path
    # A step folder lies two levels below its run: RUN/checkpoints/step-00001000. resolve() also
    # follows the link RUN/checkpoints/best.
    run = path.resolve().parent.parent
    return run if (run / RUN_FILE).is_file() else None
