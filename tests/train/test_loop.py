"""What the loop does when something is not as it should be, and what it says beforehand."""

import functools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from common.errors import UserError
from common.machine import matmul_flops
from common.metrics_file import read_metrics
from data.batching.collate import Batch, TextBatchLoader, collate
from data.batching.text_rows import Mixture, TextPlan
from data.shards import ShardSet
from model.checkpoint.locate import find_newest_step, resolve_checkpoint, step_folder
from model.config import LlamaConfig
from model.llama import Llama
from train.autotune import ComputePlan
from train.lr_schedule import ScheduleOptions, get_lr_multiplier
from train.metrics_log import VALIDATION_LOSS, MetricsLog
from train.optimizer import OptimizerOptions, build_optimizers
from train.options import PretrainOptions
from train.run_dir import RunDir
from train.startup import parse_mixture, parse_train_options
from train.throughput import ThroughputMonitor, count_attention_pairs, format_duration
from train.trainer import MAX_CONSECUTIVE_SKIPS, RunLength, Trainer

MATMUL_FLOPS = functools.lru_cache(matmul_flops)


@pytest.fixture(autouse=True)
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rate, which every trainer measures when it is made, for seconds."""
    monkeypatch.setattr("train.throughput.matmul_flops", MATMUL_FLOPS)


def trainer(folder: Path, shard_set: Path, micro_rows: int = 4, **changes: Any) -> Trainer:
    shards = ShardSet.open(shard_set)
    tokenizer = shards.load_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    values = {
        "max_steps": 12,
        "batch_tokens": 256,
        "sequence_length": 32,
        "log_every": 2,
        "checkpoint": {"every": 6},
        "evaluation": {"every": 6},
        **changes,
    }
    options = PretrainOptions.model_validate(values)
    run = RunDir(folder)
    run.open(options.model_dump(mode="json"), {"seed": 0}, [shard_set], torch.device("cpu"))
    plan = TextPlan(
        Mixture((shards.load_split("train"),), (1.0,)), seed=0, length=32, folder=folder / "plan"
    )
    choices = ComputePlan(
        device="cpu", precision="fp32", compile=False, micro_rows=micro_rows, loss_path="chunked"
    )
    return Trainer(
        options,
        RunLength(options.max_steps, options.evaluation.every),
        run,
        Llama(config).init_weights(0),
        TextBatchLoader(plan, 8),
        choices,
        lambda into: tokenizer.save(into),
        lambda *_: None,
    )


@pytest.mark.slow
def test_gradient_accumulation_matches_full_batch(tmp_path: Path, shard_set: Path) -> None:
    """A micro-batch that changes what is learned: a mean of means, or a forgotten scale."""
    gradients = []
    for micro_rows in (8, 2, 1):
        one = trainer(tmp_path / str(micro_rows), shard_set, micro_rows)
        loss, norm = one._forward_backward(one.batches.micro_batches(0, micro_rows), None)
        gradients.append((loss, norm, one.model.lm_head.weight.grad))
    for loss, norm, gradient in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-5) and norm == pytest.approx(
            gradients[0][1], rel=1e-4
        )
        torch.testing.assert_close(gradient, gradients[0][2], rtol=1e-3, atol=1e-7)


Example = tuple[np.ndarray, np.ndarray]


def examples(*sizes: int) -> list[Example]:
    """Ids, and which targets have a loss: the second half of each example."""
    draw = np.random.default_rng(1)
    return [(draw.integers(400, 900, size + 1), np.arange(size) >= size // 2) for size in sizes]


def test_packed_examples_train_like_unpacked(tmp_path: Path, shard_set: Path) -> None:
    """Examples of a row that see each other in the training step, where only the mask keeps them apart."""
    one = trainer(tmp_path / "run", shard_set, optimizer={"clip": 1e9})
    with torch.no_grad():
        for parameter in one.model.parameters():
            parameter.mul_(
                3.0
            )  # at initialisation attention is nearly uniform whatever goes into it

    def gradients(row: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
        """Of the sum of the losses."""
        count = sum(int(scored.sum()) for _, scored in row)
        loss, _ = one._forward_backward([collate([row], 32)], None)
        found = {
            name: count * p.grad for name, p in one.model.named_parameters() if p.grad is not None
        }
        one.model.zero_grad(set_to_none=True)
        return count * loss, found

    row = examples(9, 5, 14)
    loss, packed = gradients(row)
    losses, alone = zip(*(gradients([each]) for each in row), strict=True)
    assert loss == pytest.approx(sum(losses), rel=1e-5) and len(packed) == len(
        list(one.model.parameters())
    )
    for name, gradient in packed.items():
        torch.testing.assert_close(
            gradient, sum(each[name] for each in alone), rtol=1e-3, atol=1e-4, msg=name
        )


def seen(batch: Batch) -> int:
    """Keys that a batch's tokens attend to, by its mask."""
    mask = batch.attention_mask()
    assert mask is not None and batch.segments is not None
    return int(mask[:, 0][batch.segments > 0].sum())


def test_attention_flops_count_actual_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of the machine's rate that counts attention over whole rows where examples are short."""
    packed = collate([examples(9, 5, 14), examples(30, 1)], 32)
    assert (
        count_attention_pairs(packed)
        == seen(packed)
        == sum(n * (n + 1) // 2 for n in (9, 5, 14, 30, 1))
    )
    whole = Batch(torch.zeros((3, 32), dtype=torch.int64), torch.zeros(96))
    assert count_attention_pairs(whole) == 3 * 32 * 33 // 2
    assert (
        count_attention_pairs(collate([examples(20)], 32)) == 20 * 21 // 2
    )  # one example and padding
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    monkeypatch.setattr("train.throughput.matmul_flops", lambda *_: 1.0)
    choices = ComputePlan(
        device="cpu", precision="fp32", compile=False, micro_rows=1, loss_path="chunked"
    )
    for batch, pairs in ((packed, seen(packed)), (whole, 3 * 32 * 32 // 2)):
        clock = ThroughputMonitor(9, choices, Llama(config), torch.device("cpu"))
        clock.record_step(batch.num_tokens, 0, count_attention_pairs(batch))
        clock._seconds = 1.0
        weights = 6 * (config.num_matmul_parameters - 32 * 99)
        # A score and a sum of values over the width, each forward and twice backward; half a key less, as of whole rows.
        expected = batch.num_tokens * weights + 2 * 2 * 3 * 2 * 32 * (
            pairs - (batch is packed) * batch.num_tokens / 2
        )
        assert clock.pop_metrics()["mfu"] == pytest.approx(expected)


def test_stop_time_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes announced as a second, or the time of an evaluation or of a first, compiling step for good."""
    now = [0.0]
    monkeypatch.setattr("train.throughput.matmul_flops", lambda *_: 1.0)
    monkeypatch.setattr("train.throughput.time.perf_counter", lambda: now[0])
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    clock = ThroughputMonitor(
        9, ComputePlan("cpu", "fp32", False, 1, "chunked"), Llama(config), torch.device("cpu")
    )

    def step(*micro_batches: float) -> None:
        for seconds in micro_batches:
            clock.record_stop_check()
            now[0] += seconds
        clock.record_step(1, 1, 1)

    assert clock.estimate_stop_seconds() is None
    step(60.0, 3.0)
    assert clock.estimate_stop_seconds() == 60.0
    step(4.0, 5.0)
    step(4.0, 5.0)
    assert clock.estimate_stop_seconds() == 5.0
    now[0] += 20.0
    clock.record_save(20.0)
    clock.pause()
    now[0] += 100.0
    clock.resume()
    step(4.0, 6.0)
    assert clock.estimate_stop_seconds() == 6.0 + 20.0


@pytest.mark.slow
def test_early_stopped_run_resolves_to_best_checkpoint(tmp_path: Path, shard_set: Path) -> None:
    """Chat and evaluation with the checkpoint that was worse, after every other was; one that trains on and stays behind."""
    folder, finals = tmp_path / "run", []

    def go_on(patience: int) -> Trainer:
        one = trainer(folder, shard_set, checkpoint={"every": 2})
        one.run_length = RunLength(12, 2, VALIDATION_LOSS, patience)

        def evaluate(_: Any, step: int, log: MetricsLog, final: Any) -> None:
            before = final()
            log.write("validation", step, loss=float(step))
            finals.append((step, before, final()))

        one._evaluate = evaluate
        assert one.train()
        one.close()
        one.run._lock.close()  # type: ignore[union-attr]
        return one

    for _ in range(2):
        assert go_on(2).is_out_of_patience() and find_newest_step(folder) == 6
        assert resolve_checkpoint(folder) == step_folder(folder, 2)
        # Whether it is the last evaluation is known with its own score.
        assert finals == [(2, False, False), (4, False, False), (6, False, True)]
    config = step_folder(folder, 2) / "config.json"
    whole = config.read_bytes()
    config.write_text("{}")
    assert resolve_checkpoint(folder) == step_folder(folder, 6)
    config.write_bytes(whole)
    finals.clear()
    go_on(0)
    assert resolve_checkpoint(folder) == step_folder(folder, 12)
    assert finals == [(8, False, False), (10, False, False), (12, True, True)]


@pytest.mark.slow
def test_non_finite_loss_skips_weight_update(tmp_path: Path, shard_set: Path) -> None:
    """One bad batch turning every weight into NaN."""
    one = trainer(tmp_path / "run", shard_set)
    one._step()
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    good = one._forward_backward
    one._forward_backward = lambda *_: (math.nan, 1.0)  # type: ignore[method-assign]
    one._step()
    one._forward_backward = lambda *_: (1.0, math.inf)  # type: ignore[method-assign]
    one._step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.model.state_dict().items())
    assert (one.state.skipped, one.state.step) == (2, 3)
    one._forward_backward = good  # type: ignore[method-assign]
    one._step()
    assert one.state.skipped_in_a_row == 0
    assert not torch.equal(one.model.lm_head.weight, before["lm_head.weight"])
    assert [
        record["step"] for record in read_metrics(tmp_path / "run") if record["kind"] == "skipped"
    ] == [2, 3]


@pytest.mark.slow
def test_diverged_run_ends_with_advice(tmp_path: Path, shard_set: Path) -> None:
    """Hours of skipped steps."""
    one = trainer(tmp_path / "run", shard_set)
    with torch.no_grad():
        one.model.lm_head.weight[5] = math.nan
    with pytest.raises(
        UserError, match=f"{MAX_CONSECUTIVE_SKIPS} steps in a row.*rows.*optimizer.lr"
    ):
        one.train()


@pytest.mark.slow
def test_logged_steps_and_tokens_are_consistent(tmp_path: Path, shard_set: Path) -> None:
    """A log whose steps, tokens or epochs do not add up."""
    one = trainer(tmp_path / "run", shard_set)
    assert one.train()
    records = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert [record["step"] for record in records] == [1, 2, 4, 6, 8, 10, 12]
    assert [record["tokens"] for record in records] == [
        256 * step for step in (1, 2, 4, 6, 8, 10, 12)
    ]
    assert all(0 < record["mfu"] < 1.5 and record["tokens_per_second"] > 0 for record in records)


def test_muon_updates_hidden_matrices_and_adamw_the_rest(tmp_path: Path, shard_set: Path) -> None:
    """A weight that no optimiser moves, one that two move, or decay on norms."""
    model = trainer(tmp_path / "run", shard_set).model
    optimizers = build_optimizers(model, OptimizerOptions())
    moved = {
        name: [p for group in opt.param_groups for p in group["params"]]
        for name, opt in optimizers.items()
    }
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert sorted(names[id(p)] for each in moved.values() for p in each) == sorted(names.values())
    assert all("_proj" in names[id(p)] for p in moved["muon"]) and len(moved["muon"]) == 14
    undecayed = [
        p
        for group in optimizers["adamw"].param_groups
        if not group["weight_decay"]
        for p in group["params"]
    ]
    assert all("norm" in names[id(p)] for p in undecayed) and len(undecayed) == 5


@pytest.mark.parametrize("name", ["wsd", "cosine"])
def test_lr_schedules_warm_up_hold_and_decay(name: str) -> None:
    """A rate of zero in the first or last step, a jump, or a decay that begins elsewhere than said."""
    options = ScheduleOptions.model_validate(
        {"name": name, "warmup": 0.1, "decay": 0.2, "final": 0.0}
    )
    rates = [get_lr_multiplier(options, step, 100) for step in range(100)]
    assert get_lr_multiplier(ScheduleOptions(warmup=0.0, decay=0.0), 99, 100) == 1.0
    assert rates[0] > 0 and rates[99] > 0 and max(rates) <= 1.0
    assert all(a < b for a, b in zip(rates[:10], rates[1:11], strict=True))
    assert max(abs(a - b) for a, b in zip(rates, rates[1:], strict=False)) < 0.11
    if name == "wsd":
        assert rates[10:80] == [1.0] * 70 and all(
            a > b for a, b in zip(rates[80:], rates[81:], strict=False)
        )
    else:
        assert rates[54] == pytest.approx(0.5, abs=0.02)
    assert (
        get_lr_multiplier(ScheduleOptions(name="wsd", warmup=0.0, decay=1.0, final=0.1), 0, 1) > 0.1
    )


def test_reopened_log_drops_records_after_resume_step(tmp_path: Path) -> None:
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
    again.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 3, 3]
    MetricsLog(tmp_path, 2).close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch_tokens": 1000, "sequence_length": 512}, "1024 would be"),
        ({"micro_batch": 0}, "greater than 0"),
        ({"micro_batch": "many"}, "auto"),
        ({"model": {"preset": "gpt5"}}, "babyllama-43m"),
        ({"sequence_length": 1}, "greater than 1"),
        ({"schedule": {"warmup": 0.6, "decay": 0.6}}, "may not exceed 1"),
    ],
)
def test_invalid_option_errors_suggest_valid_values(values: dict[str, Any], words: str) -> None:
    """A run that fails an hour later, or one that silently does something else."""
    with pytest.raises(ValidationError, match=words):
        PretrainOptions.model_validate(values)


def test_mixture_syntax_is_parsed() -> None:
    """A path with a colon, or a weight, taken for the other."""
    assert parse_mixture("sample") == (["sample"], (1.0,))
    assert parse_mixture("wikipedia:0.5+zhihu") == (["wikipedia", "zhihu"], (0.5, 1.0))
    assert parse_mixture("a:b") == (["a:b"], (1.0,))
    for wrong in ("a:0", "a:-1", "a:nan"):
        with pytest.raises(UserError, match="must be above 0"):
            parse_mixture(wrong)


def test_durations_are_formatted_as_clock_time() -> None:
    """An ETA of 3,661 seconds."""
    assert [format_duration(s) for s in (0, 59.6, 125, 3661)] == ["0:00", "1:00", "2:05", "1:01:01"]


def test_help_defaults_do_not_depend_on_existing_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An old run's options taken for what a new one begins with."""
    (tmp_path / "config.yaml").write_text("max_steps: 7654321\n")
    monkeypatch.chdir(root)
    for word in ("-h", "--help"):
        monkeypatch.setattr(sys, "argv", ["pretrain", "--run", str(tmp_path), word])
        with pytest.raises(SystemExit):
            parse_train_options(PretrainOptions, "pretrain", "")
        text = " ".join(capsys.readouterr().out.split())
        assert "start (default: 260)" in text and "7654321" not in text
