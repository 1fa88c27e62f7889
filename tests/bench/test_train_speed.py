"""The training benchmark: its checks and its arithmetic."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bench.contenders import CONTENDERS, TrainTask
from bench.options import TrainSpeedOptions
from bench.train_speed import (
    BF16_TOLERANCE,
    IDS_FILE,
    WEIGHTS_FILE,
    TrainRound,
    check_contenders,
    check_equal_losses,
    summarize,
    write_task,
)
from common.errors import UserError
from common.options import validate_options
from model.config import LlamaConfig

# Of what is installed for tests.
BF16_CONTENDERS = ("babyllama-bf16", "transformers-mixed", "transformers-bf16")


def one_round(
    name: str, losses: list[float], seconds: list[float], peak: int = 10**9
) -> TrainRound:
    return TrainRound(name, losses, seconds, peak, matmul_flops=1e11)


def tiny(vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )


@pytest.mark.parametrize("loss", [10.5002, float("nan")])
def test_contenders_with_different_results_are_rejected(loss: float) -> None:
    """Prevents the speed of a peer with other weights, data or updates, or one that diverged."""
    same = one_round("a", [11.0, 10.5], [1, 1])
    check_equal_losses([same, one_round("b", [11.0, 10.50005], [1, 1])])
    with pytest.raises(UserError, match="losses of step 2 differ"):
        check_equal_losses([same, one_round("b", [11.0, loss], [1, 1])])
    narrow = replace(one_round("c", [11.01, 10.51], [1, 1]), arithmetic="bf16")
    check_equal_losses([same, narrow])
    with pytest.raises(UserError, match="losses of step 1 differ"):
        check_equal_losses([same, replace(narrow, losses=[11.05, 10.5])])
    with pytest.raises(UserError, match="losses of step 1 differ"):
        check_equal_losses([same, replace(narrow, arithmetic="fp32")])


def test_row_is_median_of_rounds_without_warmup_steps() -> None:
    """Catch start-up time in the speed, a mean in place of a median, an inverted ratio."""
    rounds = [
        one_round("ours", [1.0] * 6, [90, 90, 90, 2, 2, 5]),
        one_round("peer", [1.0] * 6, [1, 1, 1, 4, 4, 4]),
        one_round("ours", [1.0] * 6, [90, 90, 90, 1, 1, 1], peak=3 * 10**9),
        one_round("peer", [1.0] * 6, [1, 1, 1, 4, 4, 4]),
        one_round("ours", [1.0] * 6, [90, 90, 90, 8, 8, 8]),
        one_round("peer", [1.0] * 6, [1, 1, 1, 4, 4, 4]),
    ]
    ours, peer = summarize(rounds, tokens_per_step=1000, flops_per_token=1e8)
    assert (ours["contender"], ours["tokens_per_second"], ours["slowest"], ours["fastest"]) == (
        "ours",
        500,
        125,
        1000,
    )
    assert (peer["tokens_per_second"], peer["ratio"]) == (250, 0.5)
    assert ours["peak_bytes"] == 3 * 10**9
    assert ours["matmul_share"] == pytest.approx(500 * 1e8 / 1e11)


def test_task_is_deterministic(tmp_path: Path) -> None:
    """Catch rounds with different initial weights or ids."""
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_task(tmp_path / name, tiny(100), steps=2, rows=3, length=5)
        written.append(
            (load_file(tmp_path / name / WEIGHTS_FILE), np.load(tmp_path / name / IDS_FILE))
        )
    (weights, ids), (again, ids_again) = written
    assert ids.shape == (2, 3, 6) and ids.max() < 100 and np.array_equal(ids, ids_again)
    assert weights.keys() == again.keys() and all(
        np.array_equal(weights[name], again[name]) for name in weights
    )


def test_incomparable_setup_is_reported_before_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a typo or missing package that ends the run after minutes."""
    with pytest.raises(UserError, match="--contenders lightgpt: unknown contender"):
        check_contenders(["lightgpt"])
    monkeypatch.setattr("bench.train_speed.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"litgpt is not installed; see bench/README\.md"):
        check_contenders(["litgpt-compiled"])
    with pytest.raises(UserError, match="--steps: '3' is not valid; expected more than 3"):
        validate_options(TrainSpeedOptions, {"steps": "3"})


@pytest.mark.slow
def test_the_project_and_transformers_report_the_same_losses(tmp_path: Path) -> None:
    """Catch a contender that trains another model or uses an old interface."""
    import torch

    config = tiny(211)
    write_task(tmp_path, config, steps=4, rows=2, length=16)
    ids = torch.from_numpy(np.load(tmp_path / IDS_FILE))
    losses = {}
    task = TrainTask(config, tmp_path / WEIGHTS_FILE, 16)
    for name in ("babyllama", "transformers", *BF16_CONTENDERS):
        step = CONTENDERS[name].build(task, CONTENDERS[name].arithmetic)
        losses[name] = [
            step(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()) for batch in ids
        ]
    np.testing.assert_allclose(losses["babyllama"], losses["transformers"], rtol=0, atol=1e-4)
    for name in BF16_CONTENDERS:
        assert losses[name] != losses["babyllama"], "the products must be narrow"
        np.testing.assert_allclose(losses[name], losses["babyllama"], rtol=0, atol=BF16_TOLERANCE)
    assert losses["babyllama"][0] != losses["babyllama"][1], "the weights must move"
