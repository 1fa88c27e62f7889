"""Fine-tuning from a run or from scratch: killed and resumed, stopped early, refused."""

import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from common.run_layout import list_steps, step_folder
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from model.chat_template.template import Template, load_template
from model.checkpoint.locate import find_newest_step, resolve_checkpoint
from tests.fault_injection.child import Fault, run_in_test_process
from tests.helpers.processes import CommandProcess, PauseAfterStep
from tests.helpers.training import (
    TINY_SHAPE,
    checkpoint_bytes,
    comparable_records,
    to_arguments,
)
from train.options import SftOptions
from train.sft_run import resolve_run

SIZES = {"sequence_length": 256, "batch_tokens": 512, "device": "cpu", "log_every": 2}
FREQUENT = {
    "checkpoint.every": 5,
    "evaluation.every": 8,
    "evaluation.scored": 4,
    "evaluation.examples": 2,
    "evaluation.max_new_tokens": 2,
}


@pytest.fixture(scope="module")
def prepared(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A little of the sample's CSL (with its dev split), RedGPT and stories."""
    folder = tmp_path_factory.mktemp("prepared")
    sample = root / "assets" / "sample"
    csl = sample / "summary/csl"
    groups = {
        "csl": SourceGroup("csl", (str(csl / "train.tsv"),), (str(csl / "dev.tsv"),)),
        "redgpt": SourceGroup("redgpt", (str(sample / "sft/redgpt/RedGPT-Dataset-V1-CN.json.gz"),)),
        "text": SourceGroup("jsonl", (str(sample / "pretrain/jsonl/stories.jsonl.gz"),)),
    }
    options = PrepareOptions(workers=1, limit=50)
    for name, group in groups.items():
        prepare_groups([group], folder / name, root / "assets/tokenizer", options)
    return {name: folder / name for name in groups}


def start_sft(
    run: Path,
    options: dict[str, Any],
    fault: Fault | None = None,
) -> CommandProcess:
    """Start fine-tuning; `options` without a base train a tiny model from scratch."""
    return CommandProcess("train.sft", *sft_arguments(run, options), fault=fault)


def sft_arguments(run: Path, options: dict[str, Any]) -> list[str]:
    """Return the command line of `start_sft`."""
    scratch = {} if "base" in options else {"base": "none", "model": TINY_SHAPE}
    return to_arguments({"run": run, **SIZES, **FREQUENT, **scratch, **options})


def sft(run: Path, options: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Fine-tune to the end."""
    return start_sft(run, options).wait()


@pytest.mark.slow
def test_killed_fine_tuning_resumes_bit_identically(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    """Catch other rows, requests or replay after a resume, and a run that needs its base."""
    base = tmp_path / "pretrain"
    pretraining = {
        "run": base,
        "data": prepared["text"],
        **SIZES,
        "model": TINY_SHAPE,
        "max_steps": 2,
        "evaluation.sample_tokens": 0,
    }
    done = CommandProcess("train.pretrain", *to_arguments(pretraining)).wait()
    assert done.returncode == 0, done.stderr
    options = {
        "data": f"{prepared['csl']}+{prepared['redgpt']}:0.5+replay:0.3",
        "base": base,
        "max_steps": 10,
        "lead_ins": True,
        "checkpoint.every": 3,
        "evaluation.every": 4,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # Not a fork, so that sets of strings have another order than in the killed run.
    output = run_in_test_process("train.sft", sft_arguments(whole, options))
    assert "complete" in output and "examples" in output
    kinds = {record["kind"] for record in comparable_records(whole)}
    assert {"train", "validation", "rouge", "answers", "sample", "evaluated"} <= kinds

    process = start_sft(killed, options, fault=PauseAfterStep(7))
    process.send_signal_when(signal.SIGKILL, lambda: 6 in list_steps(killed))
    assert process.wait().returncode == -signal.SIGKILL
    assert find_newest_step(killed) == 6
    shutil.rmtree(base / "checkpoints")
    done = sft(killed, options)
    assert done.returncode == 0 and "continues after step" in done.stdout, done.stderr
    assert checkpoint_bytes(killed, 10) == checkpoint_bytes(whole, 10)
    records = comparable_records(killed)
    assert records == comparable_records(whole)
    assert load_template(step_folder(killed, 10)) == Template(lead_ins=True)
    scores = {each["step"]: each["rouge_1"] for each in records if each["kind"] == "rouge"}
    best_step = max(scores, key=lambda step: (scores[step], -step))
    assert (killed / "checkpoints" / "best").resolve() == step_folder(killed, best_step)


@pytest.mark.slow
def test_fine_tuning_from_scratch_learns_answers(prepared: dict[str, Path], tmp_path: Path) -> None:
    """Catch a loss on the wrong ids, a log without a dev loss, and a resume with another seed."""
    run = tmp_path / "run"
    options = {
        "data": prepared["redgpt"],
        "max_steps": 30,
        "optimizer.lr": 4e-3,
        "optimizer.muon_lr": 2e-2,
        "evaluation.every": 10,
        "evaluation.scored": 2,
    }
    done = sft(run, options)
    assert done.returncode == 0, done.stderr
    records = comparable_records(run)
    validation = [record for record in records if record["kind"] == "validation"]
    final = [record for record in records if record["kind"] == "final"]
    assert [record["step"] for record in validation] == [10, 20, 30]
    assert validation[-1]["loss"] < validation[0]["loss"] - 0.5
    # A long dev split is scored as a whole once, at the end.
    assert [record["step"] for record in final] == [30]
    assert validation[0]["tokens"] == validation[2]["tokens"] < final[0]["tokens"]
    accuracies = [record["accuracy"] for record in records if record["kind"] == "train"]
    assert accuracies[-1] > accuracies[0]
    done = sft(run, {**options, "seed": 1})
    assert done.returncode == 2 and "seed: 0 -> 1" in done.stderr


@pytest.mark.slow
def test_epochs_and_rates_depend_on_the_data(prepared: dict[str, Path], tmp_path: Path) -> None:
    """Prevent summaries that are learned by chance, and reading that high rates unlearn."""
    chosen = {}
    for name in ("csl", "redgpt"):
        options = SftOptions(base="none", data=str(prepared[name]), run=tmp_path / name)
        resolved = resolve_run(options).options
        assert isinstance(resolved, SftOptions)
        chosen[name] = (resolved.epochs, resolved.optimizer.lr)
    assert chosen == {"csl": (2.0, 3e-3), "redgpt": (1.0, 5e-4)}


@pytest.mark.slow
def test_early_stopped_run_does_not_resume(prepared: dict[str, Path], tmp_path: Path) -> None:
    """Prevent hours of training after the best score, also where the run is started again."""
    run = tmp_path / "run"
    options = {
        "data": prepared["csl"],
        "max_steps": 40,
        "evaluation.every": 2,
        "evaluation.patience": 2,
        "evaluation.examples": 1,
        "evaluation.max_new_tokens": 1,
        "optimizer.lr": 1e-9,
        "optimizer.muon_lr": 1e-9,
    }
    for start in range(2):
        done = sft(run, options)
        assert done.returncode == 0 and "stopped early" in done.stdout, done.stderr
        assert find_newest_step(run) == 6, start
        assert "best checkpoint: step 2 (which chat, evaluation and export now use)" in done.stdout
        assert resolve_checkpoint(run) == step_folder(run, 2)


@pytest.mark.slow
def test_set_prepared_with_another_template_is_refused(
    prepared: dict[str, Path], root: Path, tmp_path: Path
) -> None:
    """Catch conversations in another chat format than the model is trained and used with."""
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(root / "assets/tokenizer", tokenizer)
    Template(human="问：").save(tokenizer)
    done = sft(tmp_path / "run", {"data": prepared["redgpt"], "tokenizer": tokenizer})
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "was prepared with another chat template than the model's" in done.stderr
