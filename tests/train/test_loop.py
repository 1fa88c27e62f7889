"""What the loop does when something is not as it should be, and what it says beforehand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from common.errors import UserError
from common.metrics_file import read_metrics
from data.batches import TextBatches
from data.plan import Mixture, Plan
from data.shards import ShardSet
from model.checkpoints import save_tokenizer
from model.config import LlamaConfig
from model.llama import Llama
from train.capacity import Choices
from train.entry import parse_mixture
from train.loop import GIVE_UP_AFTER, Horizon, Trainer, duration
from train.metrics import MetricsLog
from train.optimizer import OptimizerOptions, build_optimizers
from train.options import PretrainOptions
from train.run import Run
from train.schedule import ScheduleOptions, rate


def trainer(folder: Path, shard_set: Path, micro_rows: int = 4, **changes: Any) -> Trainer:
    shards = ShardSet.open(shard_set)
    tokenizer = shards.tokenizer()
    config = LlamaConfig(vocab_size=tokenizer.vocabulary_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=4)
    values = {"max_steps": 12, "batch_tokens": 256, "sequence_length": 32, "log_every": 2,
              "checkpoint": {"every": 6}, "evaluation": {"every": 6}, **changes}
    options = PretrainOptions.model_validate(values)
    run = Run(folder)
    run.open(options.model_dump(mode="json"), {"seed": 0}, [shard_set], torch.device("cpu"))
    plan = Plan(Mixture((shards.split("train"),), (1.0,)), seed=0, length=32, folder=folder / "plan")
    choices = Choices(device="cpu", precision="fp32", compile=False, micro_rows=micro_rows, loss_path="chunked")
    return Trainer(
        options, Horizon(options.max_steps, options.evaluation.every), run, Llama(config).initialise(0), TextBatches(plan, 8),
        choices, lambda into: save_tokenizer(tokenizer, into), lambda *_: None,
    )


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path, shard_set: Path) -> None:
    """A micro-batch that changes what is learned: a mean of means, or a forgotten scale."""
    gradients = []
    for micro_rows in (8, 2, 1):
        one = trainer(tmp_path / str(micro_rows), shard_set, micro_rows)
        loss, norm = one._gradients(one.batches.step(0, micro_rows), None)
        gradients.append((loss, norm, one.model.lm_head.weight.grad))
    for loss, norm, gradient in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-5) and norm == pytest.approx(gradients[0][1], rel=1e-4)
        torch.testing.assert_close(gradient, gradients[0][2], rtol=1e-3, atol=1e-7)


@pytest.mark.slow
def test_a_step_without_a_finite_loss_leaves_the_weights(tmp_path: Path, shard_set: Path) -> None:
    """One bad batch turning every weight into NaN."""
    one = trainer(tmp_path / "run", shard_set)
    one._step()
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    good = one._gradients
    one._gradients = lambda *_: (math.nan, 1.0)  # type: ignore[method-assign]
    one._step()
    one._gradients = lambda *_: (1.0, math.inf)  # type: ignore[method-assign]
    one._step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.model.state_dict().items())
    assert (one.state.skipped, one.state.step) == (2, 3)
    one._gradients = good  # type: ignore[method-assign]
    one._step()
    assert one.state.skipped_in_a_row == 0
    assert not torch.equal(one.model.lm_head.weight, before["lm_head.weight"])
    assert [record["step"] for record in read_metrics(tmp_path / "run") if record["kind"] == "skipped"] == [2, 3]


@pytest.mark.slow
def test_a_run_that_went_bad_ends_with_what_to_do(tmp_path: Path, shard_set: Path) -> None:
    """Hours of skipped steps."""
    one = trainer(tmp_path / "run", shard_set)
    with torch.no_grad():
        one.model.lm_head.weight[5] = math.nan
    with pytest.raises(UserError, match=f"{GIVE_UP_AFTER} steps in a row.*rows.*optimizer.lr"):
        one.train()


@pytest.mark.slow
def test_more_tokens_a_step_do_not_change_the_order_of_steps(tmp_path: Path, shard_set: Path) -> None:
    """A log whose steps, tokens or epochs do not add up."""
    one = trainer(tmp_path / "run", shard_set)
    assert one.train()
    records = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert [record["step"] for record in records] == [1, 2, 4, 6, 8, 10, 12]
    assert [record["tokens"] for record in records] == [256 * step for step in (1, 2, 4, 6, 8, 10, 12)]
    assert all(0 < record["mfu"] < 1.5 and record["tokens_per_second"] > 0 for record in records)


def test_muon_moves_hidden_matrices_and_adamw_everything_else(tmp_path: Path, shard_set: Path) -> None:
    """A weight that no optimiser moves, one that two move, or decay on norms."""
    model = trainer(tmp_path / "run", shard_set).model
    optimizers = build_optimizers(model, OptimizerOptions())
    moved = {name: [p for group in opt.param_groups for p in group["params"]] for name, opt in optimizers.items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert sorted(names[id(p)] for each in moved.values() for p in each) == sorted(names.values())
    assert all("_proj" in names[id(p)] for p in moved["muon"]) and len(moved["muon"]) == 14
    undecayed = [p for group in optimizers["adamw"].param_groups if not group["weight_decay"] for p in group["params"]]
    assert all("norm" in names[id(p)] for p in undecayed) and len(undecayed) == 5


@pytest.mark.parametrize("name", ["wsd", "cosine"])
def test_schedules_rise_hold_and_fall(name: str) -> None:
    """A rate of zero in the first or last step, a jump, or a decay that begins elsewhere than said."""
    options = ScheduleOptions.model_validate({"name": name, "warmup": 0.1, "decay": 0.2, "final": 0.0})
    rates = [rate(options, step, 100) for step in range(100)]
    assert rate(ScheduleOptions(warmup=0.0, decay=0.0), 99, 100) == 1.0
    assert rates[0] > 0 and rates[99] > 0 and max(rates) <= 1.0
    assert all(a < b for a, b in zip(rates[:10], rates[1:11], strict=True))
    assert max(abs(a - b) for a, b in zip(rates, rates[1:], strict=False)) < 0.11
    if name == "wsd":
        assert rates[10:80] == [1.0] * 70 and all(a > b for a, b in zip(rates[80:], rates[81:], strict=False))
    else:
        assert rates[54] == pytest.approx(0.5, abs=0.02)
    assert rate(ScheduleOptions(name="wsd", warmup=0.0, decay=1.0, final=0.1), 0, 1) > 0.1


def test_a_log_opened_again_drops_what_came_after(tmp_path: Path) -> None:
    """Doubled lines after a crash, and a last line cut short by it."""
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write("train", step, loss=1.0 / step)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "sample", "step": 3, "prompt": "", "text": "一\u2028二"}\n')
        file.write('{"kind": "evaluated", "step": 3}\n')
        file.flush()
        file.buffer.write('{"kind": "sample", "step": 3, "text": "小'.encode()[:-1])
    again = MetricsLog(tmp_path, 3)
    assert [record["step"] for record in again.records] == [1, 2, 3, 3, 3]
    again.close()
    MetricsLog(tmp_path, 2).close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize(("values", "words"), [
    ({"batch_tokens": 1000, "sequence_length": 512}, "1024 would be"),
    ({"micro_batch": 0}, "micro_batch 0"),
    ({"micro_batch": "many"}, "auto"),
    ({"model": {"preset": "gpt5"}}, "babyllama-43m"),
    ({"sequence_length": 1}, "greater than 1"),
    ({"schedule": {"warmup": 0.6, "decay": 0.6}}, "may not exceed 1"),
])
def test_impossible_options_say_what_would_be_right(values: dict[str, Any], words: str) -> None:
    """A run that fails an hour later, or one that silently does something else."""
    with pytest.raises(ValidationError, match=words):
        PretrainOptions.model_validate(values)


def test_mixtures_are_read_as_written() -> None:
    """A path with a colon, or a weight, taken for the other."""
    assert parse_mixture("sample") == (["sample"], (1.0,))
    assert parse_mixture("wikipedia:0.5+zhihu") == (["wikipedia", "zhihu"], (0.5, 1.0))
    assert parse_mixture("a:b") == (["a:b"], (1.0,))
    for wrong in ("a:0", "a:-1", "a:nan"):
        with pytest.raises(UserError, match="must be above 0"):
            parse_mixture(wrong)


def test_durations_read_like_a_clock() -> None:
    """An ETA of 3,661 seconds."""
    assert [duration(s) for s in (0, 59.6, 125, 3661)] == ["0:00", "1:00", "2:05", "1:01:01"]
