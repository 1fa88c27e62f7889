"""Numbers that are not finite: the step is skipped, counted and shown; in the end the run stops."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.files import check_manifest, write_json, write_manifest
from common.metrics_file import read_metrics
from common.run_layout import FAILED_DIR, list_steps, step_folder
from model.checkpoint.locate import find_newest_step
from model.checkpoint.weights import load_checkpoint
from tests.helpers.training import build_trainer
from train.monitoring.loss_spikes import WINDOW_STEPS, LossSpikeDetector
from train.trainer import MAX_CONSECUTIVE_SKIPS, Trainer


def poison_gradient(trainer: Trainer, step: int) -> None:
    """Make the gradient of a step NaN, as a broken example would."""

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.nan if trainer.state.step == step else gradient

    trainer.model.model.embed_tokens.weight.register_hook(hook)


def copy_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return a copy of the weights."""
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def has_weights(trainer: Trainer, expected: dict[str, torch.Tensor]) -> bool:
    """Return whether the weights are equal, bit for bit."""
    state = trainer.model.state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def is_finite(trainer: Trainer) -> bool:
    """Return whether all weights are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in trainer.model.state_dict().values())


@pytest.mark.slow
def test_non_finite_batch_is_skipped_and_logged(
    tmp_path: Path, shard_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catch a bad batch that turns the weights, or the moments of the optimizer, into NaN."""
    trainer = build_trainer(tmp_path / "run", shard_set)
    poison_gradient(trainer, 1)
    trainer.train_step()
    before = copy_weights(trainer)
    trainer.train_step()
    assert has_weights(trainer, before) and trainer.state.skipped == 1
    assert "step 2: loss" in capsys.readouterr().out
    trainer.train_step()
    assert is_finite(trainer) and not has_weights(trainer, before)
    trainer.close()
    records = read_metrics(tmp_path / "run")
    (record,) = [record for record in records if record["kind"] == "skipped"]
    assert record == {**record, "step": 2, "grad_norm": "nan", "rows": [8, 15]}


@pytest.mark.slow
def test_divergence_ends_with_a_checkpoint(tmp_path: Path, shard_set: Path) -> None:
    """Prevent hours of skipped steps, without a state to look at and without a good checkpoint."""
    run = tmp_path / "run"
    intervals = {"checkpoint": {"every": 1, "keep": 2}, "evaluation": {"every": 100}}
    trainer = build_trainer(run, shard_set, **intervals)
    for _ in range(3):
        trainer.train_step()
        trainer.save_checkpoint()
    for optimizer in trainer.optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = 1e30
    with pytest.raises(UserError) as ended:
        trainer.train()
    trainer.close()
    message = " ".join(str(ended.value).split())
    last = trainer.state.step + 1
    first = last - MAX_CONSECUTIVE_SKIPS + 1
    failed = step_folder(run / FAILED_DIR, trainer.state.step)
    assert (
        f"{MAX_CONSECUTIVE_SKIPS} steps in a row had no finite loss or gradient, "
        f"{first} to {last}, rows {8 * (first - 1)}-{8 * last - 1} of the data"
    ) in message
    assert str(failed) in message and "optimizer.lr" in message
    assert check_manifest(failed) is None
    assert load_checkpoint(failed, torch.device("cpu"))[0].parameters()
    # The failed state is not a checkpoint of the run, and a good one is still there.
    assert find_newest_step(run) == trainer.state.step
    good_steps = [step for step in list_steps(run) if step <= 3]
    assert good_steps and check_manifest(step_folder(run, good_steps[-1])) is None


@pytest.mark.slow
def test_fp16_overflow_skips_step_and_lowers_scale(tmp_path: Path, shard_set: Path) -> None:
    """Catch an fp16 run that gives up while its loss scale settles, or whose scale never does."""
    trainer = build_trainer(tmp_path / "run", shard_set)
    trainer.compute_plan = replace(trainer.compute_plan, precision="fp16")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**29)
    before = copy_weights(trainer)
    trainer.train_step()
    assert trainer.state.skipped == 1 and has_weights(trainer, before)
    scale = trainer.scaler.get_scale()
    assert scale < 2.0**29
    while trainer.state.skipped_in_a_row:
        trainer.train_step()
    assert trainer.state.skipped > MAX_CONSECUTIVE_SKIPS
    assert trainer.scaler.get_scale() < scale
    assert is_finite(trainer) and not has_weights(trainer, before)
    trainer.close()


def falling_losses(count: int) -> list[float]:
    """Return a noisy training curve."""
    noise = np.random.default_rng(0).normal(0, 0.08, count)
    return list(3 * np.exp(-np.arange(count) / 60) + 2 + noise)


def test_spike_detector_ignores_noise_and_level_shifts() -> None:
    """Catch a warning for noise, for each step of a new level, or none at all."""
    detector = LossSpikeDetector()
    assert not any(detector.update(loss) for loss in falling_losses(2000))
    assert [detector.update(loss) for loss in (4.0, 4.0, 2.05, 4.0)] == [True, False, False, True]
    assert sum(detector.update(3.0) for _ in range(200)) <= 1
    assert not detector.above
    early = LossSpikeDetector()
    assert not any(early.update(loss) for loss in [9.0] * (WINDOW_STEPS // 2) + [30.0])


@pytest.mark.slow
def test_loss_spike_is_logged_and_survives_resume(
    tmp_path: Path, shard_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catch a spike that nobody sees, or that a resumed run reports again."""
    trainer = build_trainer(tmp_path / "run", shard_set)
    trainer.state.level = LossSpikeDetector(loss=2.0, spread=0.01, steps=100)
    trainer.train_step()
    assert "is far above its level of 2.0000 (rows 0-7 of the data)" in capsys.readouterr().out
    (record,) = [each for each in read_metrics(tmp_path / "run") if each["kind"] == "spike"]
    assert (record["step"], record["level"], record["rows"]) == (1, 2.0, [0, 7])
    assert record["loss"] > 8
    trainer.save_checkpoint()
    trainer.close()
    resumed = build_trainer(tmp_path / "run", shard_set)
    assert resumed.state.level == trainer.state.level and resumed.state.level.above
    resumed.close()


@pytest.mark.slow
def test_checkpoint_without_spike_state_loads(tmp_path: Path, shard_set: Path) -> None:
    """Catch an update that refuses the checkpoints of yesterday, or accepts those of tomorrow."""
    trainer = build_trainer(tmp_path / "run", shard_set)
    trainer.train_step()
    trainer.save_checkpoint()
    trainer.close()
    folder = step_folder(tmp_path / "run", 1)
    state = json.loads((folder / "state.json").read_text())
    old_state = {key: value for key, value in state.items() if key != "level"}
    write_json(folder / "state.json", old_state)
    write_manifest(folder)
    resumed = build_trainer(tmp_path / "run", shard_set)
    assert resumed.state.step == 1 and resumed.state.level == LossSpikeDetector()
    resumed.close()
    write_json(folder / "state.json", {**state, "soup": 1})
    write_manifest(folder)
    with pytest.raises(UserError, match=r"another version of this program.*soup"):
        build_trainer(tmp_path / "run", shard_set)
