"""Runs with everything that saves memory: long rows in tiles, layers computed again, 8 bits."""

from pathlib import Path
from typing import Any

import pytest

from model import recomputation
from tests.helpers.training import build_trainer, checkpoint_bytes, comparable_records

OPTIONS: dict[str, Any] = {
    "gradient_checkpointing": "attention",
    "offload_activations": True,
    "optimizer": {"name": "adamw8bit", "lr": 5e-3},
    "max_steps": 6,
    "checkpoint": {"every": 3},
    "evaluation": {"every": 6},
    "log_every": 1,
}


@pytest.mark.slow
def test_a_run_with_all_of_it_resumes_bit_identically_and_learns_as_a_plain_one(
    tmp_path: Path, shard_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch a state that a checkpoint does not have, and gradients that are not those of rows."""

    def losses(run: Path) -> list[float]:
        return [each["loss"] for each in comparable_records(run) if each["kind"] == "train"]

    plain = {"gradient_checkpointing": "none", "offload_activations": False}
    trainer = build_trainer(tmp_path / "plain", shard_set, **{**OPTIONS, **plain})
    assert trainer.train()
    trainer.close()
    monkeypatch.setattr(recomputation, "TILE_POSITIONS", 12)
    whole = build_trainer(tmp_path / "whole", shard_set, **OPTIONS)
    assert whole.train()
    whole.close()
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)
    # Stopped after three steps, and resumed by another trainer.
    run = tmp_path / "run"
    first = build_trainer(run, shard_set, **OPTIONS)
    for _ in range(3):
        first.train_step()
    first.save_checkpoint()
    first.close()
    second = build_trainer(run, shard_set, **OPTIONS)
    assert second.state.step == 3 and second.train()
    second.close()
    assert checkpoint_bytes(run, 6) == checkpoint_bytes(tmp_path / "whole", 6)
