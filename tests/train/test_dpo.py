"""Learning from preferences: killed and resumed, on top of an adapter, refused."""

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.run_layout import REFERENCE_DIR, list_steps, step_folder
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from model.checkpoint import weights
from model.checkpoint.locate import ADAPTER_WEIGHTS_FILE, find_newest_step
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from tests.fault_injection.child import run_in_test_process
from tests.helpers.preferences import write_pairs
from tests.helpers.processes import CommandProcess, PauseAfterStep
from tests.helpers.training import (
    QLORA,
    TINY_SHAPE,
    checkpoint_bytes,
    comparable_records,
    to_arguments,
)
from train.dpo_run import resolve_run
from train.options import DpoOptions, PretrainOptions
from train.pretrain_run import resolve_run as resolve_pretraining
from train.run.start import start

# The runs of this file take seconds each.
pytestmark = pytest.mark.slow

LAST_STEP = 8


@pytest.fixture(scope="module")
def options(
    root: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Invented pairs and a base of random weights."""
    folder = tmp_path_factory.mktemp("dpo")
    source = SourceGroup("preferences", (str(write_pairs(folder / "pairs.jsonl", 60)),))
    prepare_groups([source], folder / "pairs", root / "assets/tokenizer", PrepareOptions(workers=1))
    config = LlamaConfig(
        tokenizer.vocab_size, num_key_value_heads=4, max_position_embeddings=256, **TINY_SHAPE
    )
    (folder / "base").mkdir()
    weights.save_checkpoint(Llama(config).init_weights(0), tokenizer, folder / "base")
    return {
        "device": "cpu",
        "data": folder / "pairs",
        "base": folder / "base",
        "sequence_length": 128,
        "batch_tokens": 512,
        "micro_batch": 2,
        "max_steps": LAST_STEP,
        "optimizer.lr": 1e-3,
        "checkpoint.every": 3,
        "evaluation.every": 4,
        "evaluation.scored": 2,
        "evaluation.examples": 1,
        "evaluation.max_new_tokens": 2,
        "log_every": 3,
    }


def learn(run: Path, options: dict[str, Any]) -> str:
    """Train to the end in this process; return what is printed."""
    return run_in_test_process("train.dpo", to_arguments({"run": run, **options}))


def test_killed_run_resumes_bit_identically(options: dict[str, Any], tmp_path: Path) -> None:
    """Catch the trained model as its own reference after a resume, and measures that are lost."""
    base = tmp_path / "base"
    shutil.copytree(options["base"], base)
    options = {**options, "base": base}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = learn(whole, options)
    # The base has random weights and no chat template.
    assert "complete" in output and f"warning: {base} was not fine-tuned" in output
    arguments = to_arguments({"run": killed, **options})
    # Step 7 is between two log lines.
    process = CommandProcess("train.dpo", *arguments, fault=PauseAfterStep(7))
    process.send_signal_when(signal.SIGKILL, lambda: 6 in list_steps(killed))
    assert process.wait().returncode == -signal.SIGKILL
    assert find_newest_step(killed) == 6
    shutil.rmtree(base)
    done = CommandProcess("train.dpo", *arguments).wait()
    assert done.returncode == 0 and "continues after step 6" in done.stdout, done.stderr
    assert "warning" not in done.stdout
    assert checkpoint_bytes(killed, LAST_STEP) == checkpoint_bytes(whole, LAST_STEP)
    (killed / REFERENCE_DIR / "train.npy").unlink()
    done = CommandProcess("train.dpo", *arguments).wait()
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"its base, {base}, is gone, and needed again: put it back." in done.stderr
    assert comparable_records(killed) == comparable_records(whole)
    train = [record for record in comparable_records(whole) if record["kind"] == "train"]
    assert [record["step"] for record in train] == [1, 3, 6, 8]


def test_killed_qlora_run_resumes_bit_identically(options: dict[str, Any], tmp_path: Path) -> None:
    """Catch a reference of other weights than the 4-bit ones, and moments that a resume changes."""
    options = {**options, **QLORA, "optimizer.lr": 0.01, "log_every": 1}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert "its layers in NF4" in learn(whole, options)
    arguments = to_arguments({"run": killed, **options})
    process = CommandProcess("train.dpo", *arguments, fault=PauseAfterStep(4))
    process.send_signal_when(signal.SIGKILL, lambda: 3 in list_steps(killed))
    assert process.wait().returncode == -signal.SIGKILL
    done = CommandProcess("train.dpo", *arguments).wait()
    assert done.returncode == 0 and "continues after step 3" in done.stdout, done.stderr
    files = [checkpoint_bytes(run, LAST_STEP, ADAPTER_WEIGHTS_FILE) for run in (killed, whole)]
    assert files[0] == files[1]
    records = comparable_records(whole)
    assert comparable_records(killed) == records
    margins = [record["margin"] for record in records if record["kind"] == "train"]
    # At first the model is its reference, up to the rounding of bf16.
    assert abs(margins[0]) < 0.02 < margins[-1]


def test_pairs_are_learned_and_measured(options: dict[str, Any], tmp_path: Path) -> None:
    """Catch a loss of the wrong sign, and a log that tells nothing but the loss."""
    run = tmp_path / "run"
    output = learn(run, {**options, "max_steps": 30, "log_every": 10})
    assert "taking the longer one" in output
    records = comparable_records(run)
    train = [record for record in records if record["kind"] == "train"]
    assert train[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert abs(train[0]["margin"]) < 1e-3
    assert train[-1]["margin"] > 0.5 and train[-1]["reward_accuracy"] > 0.9
    (final,) = (record for record in records if record["kind"] == "final")
    assert final["pairs"] > 2 and final["loss"] < 0.6
    assert final["reward_accuracy_low"] < final["reward_accuracy"]
    assert final["kl"] > 0 and 0 <= final["longer_chosen"] <= 1
    # What the measures of the log say is the case: the chosen answers gained on the rejected.
    reference = np.load(run / REFERENCE_DIR / "train.npy")
    before = float(np.subtract(*np.nanmean(reference, axis=0)))
    assert train[-1]["chosen_log_prob"] - train[-1]["rejected_log_prob"] > before
    answers = [record for record in records if record["kind"] == "answers"]
    assert answers[-1].keys() >= {"characters", "loops", "stopped"}


@pytest.mark.parametrize("loss", ["sigmoid", "simpo"])
def test_reference_of_a_run_on_an_adapter_has_the_adapter(
    options: dict[str, Any], tmp_path: Path, loss: str
) -> None:
    """Catch the bare base as the reference of a fine-tuned adapter (LLaMA-Factory#913)."""
    adapter = {"adapter": "lora", "optimizer.lr": 0.05, "dpo.loss": loss, "max_steps": 4}
    first, second = tmp_path / "first", tmp_path / "second"
    learn(first, {**options, **adapter})
    learn(second, {**options, **adapter, "base": first})
    assert (step_folder(second, 4) / "adapter_model.safetensors").is_file()
    assert (first / REFERENCE_DIR).exists() == (loss == "sigmoid")
    if loss == "simpo":
        return
    references = [np.load(run / REFERENCE_DIR / "train.npy") for run in (first, second)]
    assert np.nanmax(np.abs(references[0] - references[1])) > 0.1
    # At the first step nothing has changed yet: the model is its reference.
    records = [record for record in comparable_records(second) if record["kind"] == "train"]
    assert abs(records[0]["margin"]) < 1e-3
    model, _ = weights.load_checkpoint(first, torch.device("cpu"))
    spec = resolve_run(DpoOptions(base=first, data=str(options["data"]), sequence_length=128))
    pair = spec.objective.train[0].example(0, epoch=0)  # type: ignore[attr-defined]
    ids = torch.from_numpy(np.concatenate([pair.prompt, pair.chosen]))
    with torch.no_grad():
        log_probs = model(ids[None])[0, :-1].log_softmax(-1).gather(1, ids[1:, None])
    expected = float(log_probs[-len(pair.chosen) :].sum())
    assert references[1][0, 0] == pytest.approx(expected, abs=1e-3)


def test_other_loss_does_not_resume(options: dict[str, Any], tmp_path: Path) -> None:
    """Catch a run whose second half has another loss, and one that is taken for fine-tuning."""
    run = tmp_path / "run"
    learn(run, {**options, "max_steps": 1})
    with pytest.raises(UserError, match=r"dpo\.beta: 0\.1 -> 0\.3"):
        start(
            resolve_run(
                DpoOptions.model_validate(
                    {
                        "run": run,
                        "data": str(options["data"]),
                        "base": options["base"],
                        "max_steps": 1,
                        "sequence_length": 128,
                        "batch_tokens": 512,
                        "dpo": {"beta": 0.3},
                    }
                )
            )
        )
    arguments = to_arguments({"run": run, "data": options["data"]})
    done = CommandProcess("train.sft", *arguments).wait()
    assert done.returncode == 2 and "is a run on preferences; to resume it: make dpo" in done.stderr


def test_data_without_pairs_is_refused(
    options: dict[str, Any], shard_set: Path, tmp_path: Path
) -> None:
    """Catch a traceback, or a run of hours, for data that is not pairs, or that does not fit."""
    for data, length, message in (
        (f"{options['data']}+replay:0.1", 128, "--data replay: is text, and has no pairs"),
        (str(shard_set), 128, "holds documents, not pairs .* make pretrain"),
        (str(options["data"]), 16, "no pair fits a row of 16 tokens"),
    ):
        spec = {"base": options["base"], "data": data, "sequence_length": length}
        with pytest.raises(UserError, match=message) as refused:
            resolve_run(DpoOptions.model_validate({**spec, "run": tmp_path / "run"}))
        assert "\n" not in str(refused.value)


def test_pretraining_on_pairs_names_the_command_for_them(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Catch advice to fine-tune on pairs, which fine-tuning refuses."""
    spec = {"data": str(options["data"]), "run": tmp_path / "run"}
    with pytest.raises(UserError, match=r"holds preferences, not text .* train\.dpo --data"):
        resolve_pretraining(PretrainOptions.model_validate(spec))
