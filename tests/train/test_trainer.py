"""The training loop: gradients, skipped steps, early stopping, the log."""

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.machine import matmul_flops
from common.metrics_file import read_metrics
from common.run_layout import EARLY_STOP_FILE, list_steps, step_folder
from common.yaml_files import load_yaml
from data.batching.collate import Batch, collate
from model.checkpoint.locate import find_newest_step, resolve_checkpoint
from model.tokenizer.base import Tokenizer
from tests.helpers.training import StubEvaluator, build_trainer, truncate_tokenizer
from train.monitoring.metrics_log import MetricsLog
from train.trainer import MAX_CONSECUTIVE_SKIPS, Trainer, _parse_state

Example = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """A small vocabulary, for `shard_set`."""
    return truncate_tokenizer(tokenizer)


@pytest.mark.slow
def test_gradient_accumulation_matches_full_batch(tmp_path: Path, shard_set: Path) -> None:
    """Catch a mean of micro-batch means, or a forgotten scale."""
    results = []
    for micro_rows in (8, 2, 1):
        trainer = build_trainer(tmp_path / str(micro_rows), shard_set, micro_batch=micro_rows)
        micro_batches = trainer.batches.micro_batches(0, micro_rows)
        assert len(micro_batches) == 8 // micro_rows
        loss, norm = trainer.compute_gradients(micro_batches)
        results.append((loss, norm, trainer.model.lm_head.weight.grad))
        trainer.close()
    whole_loss, whole_norm, whole_gradient = results[0]
    for loss, norm, gradient in results[1:]:
        assert loss == pytest.approx(whole_loss, rel=1e-5)
        assert norm == pytest.approx(whole_norm, rel=1e-4)
        torch.testing.assert_close(gradient, whole_gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.slow
def test_packed_examples_train_like_unpacked(tmp_path: Path, shard_set: Path) -> None:
    """Catch examples of a row that attend to each other in the training step."""
    trainer = build_trainer(tmp_path / "run", shard_set, optimizer={"clip": 1e9})
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            # At initialization attention is nearly uniform whatever goes into it.
            parameter.mul_(3.0)

    def loss_and_gradients(row: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
        """Return the sum of the losses of a row, and its gradients."""
        num_targets = sum(int(loss_mask.sum()) for _, loss_mask in row)
        loss, _ = trainer.compute_gradients([collate([row], 32)])
        gradients = {}
        for name, parameter in trainer.model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = num_targets * parameter.grad
        trainer.model.zero_grad(set_to_none=True)
        return num_targets * loss, gradients

    row = random_examples(9, 5, 14)
    packed_loss, packed = loss_and_gradients(row)
    alone = [loss_and_gradients([example]) for example in row]
    assert packed_loss == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)
    assert len(packed) == len(list(trainer.model.parameters()))
    for name, gradient in packed.items():
        expected = sum(gradients[name] for _, gradients in alone)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4, msg=name)
    trainer.close()


def random_examples(*sizes: int) -> list[Example]:
    """Return ids and loss mask of examples; the second half of each has a loss."""
    rng = np.random.default_rng(1)
    return [(rng.integers(400, 500, size + 1), np.arange(size) >= size // 2) for size in sizes]


@pytest.mark.slow
def test_early_stopped_run_resolves_to_best_checkpoint(tmp_path: Path, shard_set: Path) -> None:
    """Catch chat with a worse checkpoint, and patience that misses the newest score."""
    folder = tmp_path / "run"
    calls: list[tuple[str, int]] = []

    def evaluate(step: int, log: MetricsLog) -> None:
        calls.append(("first", step))
        log.write("validation", step, loss=float(step))

    def evaluate_all(step: int, log: MetricsLog) -> None:
        calls.append(("all", step))

    def resume(patience: int) -> Trainer:
        evaluator = StubEvaluator(2, patience, on_evaluate=evaluate, on_evaluate_all=evaluate_all)
        trainer = build_trainer(folder, shard_set, evaluator, checkpoint={"every": 2})
        assert trainer.train()
        trainer.close()
        return trainer

    for _ in range(2):
        assert resume(patience=2).is_out_of_patience()
        assert find_newest_step(folder) == 6
        assert resolve_checkpoint(folder) == step_folder(folder, 2)
        # The score of step 6 ends the run, so its evaluation is the last one.
        assert calls == [("first", 2), ("first", 4), ("first", 6), ("all", 6)]
    config = step_folder(folder, 2) / "config.json"
    content = config.read_bytes()
    config.write_text("{}")
    assert resolve_checkpoint(folder) == step_folder(folder, 6)
    config.write_bytes(content)
    calls.clear()
    resume(patience=0)
    assert resolve_checkpoint(folder) == step_folder(folder, 12)
    assert calls == [("first", 8), ("first", 10), ("first", 12), ("all", 12)]


@pytest.mark.slow
def test_early_stop_is_not_recorded_before_its_evaluation_is_complete(
    tmp_path: Path, shard_set: Path, default_signal_handlers: None
) -> None:
    """Catch a run that counts as stopped early although a signal cut off its last evaluation."""
    folder = tmp_path / "run"
    signals = [signal.SIGTERM]

    def evaluate_all(step: int, log: MetricsLog) -> None:
        if signals:
            signal.raise_signal(signals.pop())

    evaluator = StubEvaluator(
        2,
        patience=1,
        on_evaluate=lambda step, log: log.write("validation", step, loss=float(step)),
        on_evaluate_all=evaluate_all,
    )
    for is_complete in (False, True):
        trainer = build_trainer(folder, shard_set, evaluator, checkpoint={"every": 2})
        assert trainer.train() == is_complete
        trainer.close()
        assert find_newest_step(folder) == 4
        assert (folder / EARLY_STOP_FILE).exists() == is_complete


def test_state_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    """Catch a traceback for a field that a later version stores, also inside another field."""
    assert _parse_state({"step": 3, "level": {"loss": 1.5}}, tmp_path).level.loss == 1.5
    for saved in ({"step": 3, "pace": 1}, {"step": 3, "level": {"loss": 1.5, "pace": 1}}):
        with pytest.raises(UserError, match=r"another version .* \(it stores pace\)"):
            _parse_state(saved, tmp_path)


@pytest.mark.slow
def test_non_finite_loss_skips_weight_update(
    tmp_path: Path, shard_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch a bad batch that turns every weight into NaN."""
    trainer = build_trainer(tmp_path / "run", shard_set)
    trainer.train_step()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}

    def is_unchanged() -> bool:
        state = trainer.model.state_dict()
        return all(torch.equal(tensor, before[name]) for name, tensor in state.items())

    for result in ((math.nan, 1.0), (1.0, math.inf)):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "compute_gradients", lambda *_, result=result: result)
            trainer.train_step()
    assert is_unchanged()
    assert (trainer.state.skipped, trainer.state.step) == (2, 3)
    trainer.train_step()
    assert not is_unchanged() and trainer.state.skipped_in_a_row == 0
    trainer.close()
    skipped = [r["step"] for r in read_metrics(tmp_path / "run") if r["kind"] == "skipped"]
    assert skipped == [2, 3]


@pytest.mark.slow
def test_error_in_the_next_batch_does_not_lose_the_step(
    tmp_path: Path, shard_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevent a checkpoint that is missing because the step after it cannot be read."""
    trainer = build_trainer(tmp_path / "run", shard_set, checkpoint={"every": 2})
    micro_batches = trainer.batches.micro_batches

    def fail_from_third_step(step: int, micro_rows: int) -> list[Batch]:
        if step >= 2:
            raise UserError("record 7 cannot be read")
        return micro_batches(step, micro_rows)

    monkeypatch.setattr(trainer.batches, "micro_batches", fail_from_third_step)
    with pytest.raises(UserError, match="record 7"):
        trainer.train()
    trainer.close()
    assert find_newest_step(tmp_path / "run") == trainer.state.step == 2


@pytest.mark.slow
def test_diverged_run_ends_with_advice(tmp_path: Path, shard_set: Path) -> None:
    """Prevent hours of skipped steps."""
    trainer = build_trainer(tmp_path / "run", shard_set)
    with torch.no_grad():
        trainer.model.lm_head.weight[5] = math.nan
    message = f"{MAX_CONSECUTIVE_SKIPS} steps in a row.*rows.*optimizer.lr"
    with pytest.raises(UserError, match=message):
        trainer.train()
    trainer.close()


@pytest.mark.slow
def test_logged_steps_and_tokens_are_consistent(
    tmp_path: Path, shard_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch a log whose steps, tokens or epochs do not add up, and an MFU that cannot be."""
    monkeypatch.setattr("train.monitoring.throughput.matmul_flops", matmul_flops)
    trainer = build_trainer(tmp_path / "run", shard_set)
    assert trainer.train()
    trainer.close()
    records: list[dict[str, Any]] = [
        record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"
    ]
    steps = [1, 2, 4, 6, 8, 10, 12]
    assert [record["step"] for record in records] == steps
    assert [record["tokens"] for record in records] == [256 * step for step in steps]
    assert all(0 < record["mfu"] < 1.5 and record["tokens_per_second"] > 0 for record in records)


@pytest.mark.slow
def test_id_beyond_the_vocabulary_is_named(tmp_path: Path, shard_set: Path) -> None:
    """Prevent an index error on a GPU, which says neither what nor where.

    The last id of an example is no input of the model, only a target of the loss.
    """
    trainer = build_trainer(tmp_path / "run", shard_set)
    for ids in ([1, 99_999, 2], [1, 2, 99_999]):
        example = (np.array(ids), np.array([True, True]))
        with pytest.raises(UserError, match="holds id 99999, but the model's vocabulary ends at"):
            trainer.compute_gradients([collate([[example]], 32)])
    trainer.close()


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "steps"), [("all", [2, 4, 6, 8, 10, 12]), (2, [4, 10, 12])])
def test_checkpoints_are_kept_as_told(
    tmp_path: Path, shard_set: Path, keep: str | int, steps: list[int]
) -> None:
    """Prevent a checkpoint that is deleted although all are to be kept, also by a resumed run."""

    def evaluate(step: int, log: MetricsLog) -> None:
        log.write("validation", step, loss=abs(step - 4.0))

    folder = tmp_path / "run"
    evaluator = StubEvaluator(2, on_evaluate=evaluate)
    for _ in range(2):
        trainer = build_trainer(folder, shard_set, evaluator, checkpoint={"every": 2, "keep": keep})
        assert trainer.train()
        trainer.close()
        assert list_steps(folder) == steps
        assert (folder / "checkpoints" / "best").resolve().name == step_folder(folder, 4).name
    assert load_yaml(folder / "config.yaml")["checkpoint"]["keep"] == keep
