"""QLoRA beside PEFT: both train the same model, and figures are refused when they do not."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench import qlora_speed
from bench.qlora_speed import QloraRound, check_equal_losses, run_round, summarize, write_task
from common.errors import UserError
from model.config import LlamaConfig

MEASURED = QloraRound(
    contender="babyllama",
    losses=[10.0, 9.5],
    seconds=[9.0, 2.0],
    cpu_seconds=[9.0, 1.5],
    load_seconds=3.0,
    imported_bytes=100,
    load_peak_bytes=300,
    steps_peak_bytes=400,
)


def test_first_step_is_not_counted_and_ratio_is_to_peft() -> None:
    """Catch a ratio that is upside down, and times of the warm-up."""
    other = replace(MEASURED, contender="peft", seconds=[1.0, 4.0], cpu_seconds=[1.0, 3.0])
    ours, theirs = summarize([MEASURED, other])
    assert (ours["step_seconds"], ours["ratio"], ours["cpu_ratio"]) == (2.0, 0.5, 0.5)
    assert (theirs["step_seconds"], theirs["ratio"]) == (4.0, 1.0)


@pytest.mark.parametrize("loss", [9.6, float("nan")])
def test_different_losses_are_refused(loss: float) -> None:
    """Catch times of two models that do not train alike."""
    check_equal_losses([MEASURED, MEASURED])
    other = replace(MEASURED, contender="peft", losses=[10.0, loss])
    with pytest.raises(UserError, match=r"^the losses of step 2 differ"):
        check_equal_losses([MEASURED, other])


@pytest.mark.slow
def test_contenders_report_equal_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch an adapter, a learning rate or 4-bit weights that one of them has alone."""
    # So large that the losses of a small model change by more than the tolerance.
    monkeypatch.setattr(qlora_speed, "LEARNING_RATE", 0.1)
    config = LlamaConfig(
        qlora_speed.VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    write_task(tmp_path, config, steps=4, length=64)
    rounds = [run_round(name, tmp_path, threads=1) for name in qlora_speed.CONTENDERS]
    check_equal_losses(rounds)
    assert abs(rounds[0].losses[3] - rounds[0].losses[0]) > 2 * qlora_speed.LOSS_TOLERANCE
    for each in rounds:
        assert each.imported_bytes <= each.load_peak_bytes and each.steps_peak_bytes > 0
