"""Numbers go bad: the step is skipped before it touches a weight, counted and shown; in the end there is what to look at."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.test_loop import trainer

from common.errors import UserError
from common.files import check_manifest, write_json, write_manifest
from common.metrics_file import read_metrics
from common.run_layout import list_steps, step_folder
from model.checkpoint.locate import find_newest_step
from model.checkpoint.weights import load_checkpoint
from train.loss_spikes import WINDOW_STEPS, LossSpikeDetector
from train.trainer import FAILED_FOLDER, MAX_CONSECUTIVE_SKIPS, Trainer


def poison(one: Trainer, when: list[int]) -> None:
    """Have the gradient of some steps hold a NaN, as one broken example would make it."""

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.nan if one.state.step in when else gradient

    one.model.model.embed_tokens.weight.register_hook(hook)


def weights(one: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in one.model.state_dict().items()}


def test_non_finite_batch_is_skipped_and_logged(
    tmp_path: Path, shard_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bad batch turning every weight, or the moments of the optimiser, into NaN."""
    one = trainer(tmp_path / "run", shard_set)
    poison(one, [1])
    one.train_step()
    before = weights(one)
    one.train_step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.model.state_dict().items())
    assert "step 2: loss" in capsys.readouterr().out and one.state.skipped == 1
    one.train_step()
    assert all(torch.isfinite(tensor).all() for tensor in one.model.state_dict().values())
    (record,) = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "skipped"]
    assert record == {**record, "step": 2, "grad_norm": "nan", "rows": [8, 15]}
    one.close()


def test_divergence_ends_with_a_checkpoint(tmp_path: Path, shard_set: Path) -> None:
    """Hours of skipped steps; nothing left of how it came to it; good checkpoints rotated away by bad ones."""
    one = trainer(
        tmp_path / "run", shard_set, checkpoint={"every": 1, "keep": 2}, evaluation={"every": 100}
    )
    for _ in range(3):
        one.train_step()
        one.save_checkpoint()
    for optimizer in one.optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = 1e30
    with pytest.raises(UserError) as ended:
        one.train()
    one.close()
    said = " ".join(str(ended.value).split())
    first, last = one.state.step - MAX_CONSECUTIVE_SKIPS + 2, one.state.step + 1
    failed = step_folder(tmp_path / "run" / FAILED_FOLDER, one.state.step)
    assert (
        f"{MAX_CONSECUTIVE_SKIPS} steps in a row had no finite loss or gradient, {first} to {last}, rows "
        in said
    )
    assert (
        f"rows {8 * (first - 1)}-{8 * last - 1} of the data" in said
        and str(failed) in said
        and "optimizer.lr" in said
    )
    assert (
        check_manifest(failed) is None
        and load_checkpoint(failed, torch.device("cpu"))[0].parameters()
    )
    # It is none of those that the run goes on from, and the last good one is.
    assert find_newest_step(tmp_path / "run") == one.state.step
    good = [step for step in list_steps(tmp_path / "run") if step <= 3]
    assert good and check_manifest(step_folder(tmp_path / "run", good[-1])) is None


def test_fp16_overflow_skips_step_and_lowers_scale(tmp_path: Path, shard_set: Path) -> None:
    """A run in fp16 that gives up while its scale is still being found, or that never finds it."""
    one = trainer(tmp_path / "run", shard_set)
    one.compute_plan = replace(one.compute_plan, precision="fp16")
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = weights(one)
    one.train_step()
    assert one.state.skipped == 1 and all(
        torch.equal(tensor, before[name]) for name, tensor in weights(one).items()
    )
    scale = one.scaler.get_scale()
    assert scale < 2.0**40
    while one.state.skipped_in_a_row:
        one.train_step()
    assert one.state.skipped > MAX_CONSECUTIVE_SKIPS and one.scaler.get_scale() < scale
    assert not all(torch.equal(tensor, before[name]) for name, tensor in weights(one).items())
    assert all(torch.isfinite(tensor).all() for tensor in weights(one).values())
    one.close()


def losses(count: int) -> Any:
    return 3 * np.exp(-np.arange(count) / 60) + 2 + np.random.default_rng(0).normal(0, 0.08, count)


def test_spike_detector_ignores_noise_and_level_shifts() -> None:
    """A warning every few steps, none at all, or one for every step of a level that has come to stay."""
    level = LossSpikeDetector()
    assert not any(level.update(float(loss)) for loss in losses(2000))
    assert (
        level.update(4.0) and not level.update(4.0) and not level.update(2.05) and level.update(4.0)
    )
    risen = [level.update(3.0) for _ in range(200)]
    assert sum(risen) <= 1 and not level.above
    begun = LossSpikeDetector()
    assert not any(begun.update(loss) for loss in [9.0] * (WINDOW_STEPS // 2) + [30.0])


def test_loss_spike_is_logged_and_survives_resume(
    tmp_path: Path, shard_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A jump of the loss that nobody sees, or that a resumed run sees elsewhere."""
    one = trainer(tmp_path / "run", shard_set)
    one.state.level = LossSpikeDetector(loss=2.0, spread=0.01, steps=100)
    one.train_step()
    assert "step 1: loss 9." in capsys.readouterr().out.replace("8.9", "9.")
    (record,) = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "spike"]
    assert (
        record["step"] == 1
        and record["level"] == 2.0
        and record["rows"] == [0, 7]
        and record["loss"] > 8
    )
    one.save_checkpoint()
    one.close()
    again = trainer(tmp_path / "run", shard_set)
    assert again.state.level == one.state.level and again.state.level.above
    again.close()


def test_checkpoint_without_spike_state_loads(tmp_path: Path, shard_set: Path) -> None:
    """An update of the program that refuses the checkpoints of yesterday, or takes those of tomorrow for its own."""
    one = trainer(tmp_path / "run", shard_set)
    one.train_step()
    one.save_checkpoint()
    one.close()
    folder = step_folder(tmp_path / "run", 1)
    state = json.loads((folder / "state.json").read_text())
    write_json(
        folder / "state.json", {key: value for key, value in state.items() if key != "level"}
    )
    write_manifest(folder)
    again = trainer(tmp_path / "run", shard_set)
    assert again.state.step == 1 and again.state.level == LossSpikeDetector()
    again.close()
    write_json(folder / "state.json", {**state, "soup": 1})
    write_manifest(folder)
    with pytest.raises(UserError, match=r"another version of this program.*soup"):
        trainer(tmp_path / "run", shard_set)
