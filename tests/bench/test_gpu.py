"""`make check-gpu` on a CPU: all checks run, a wrong model fails, an interrupted run continues."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import decoding, equality, runs, speed, worker
from bench.gpu.__main__ import main
from bench.gpu.checks import BY_NAME, CHECKS
from bench.gpu.context import Context, build_model
from bench.gpu.report import Report
from bench.gpu.results import JSON, PAGE, Results
from bench.gpu.runner import Device, Runner, _describe_death
from bench.gpu.speed import bytes_per_token
from bench.gpu.training import (
    Plan,
    collect_results,
    configured_steps,
    fitting_steps,
    judge_outcome,
)
from common.errors import UserError
from model.config import LlamaConfig
from model.llama import Llama
from train.options import PretrainOptions

ROOT = Path(__file__).parents[2]
KEY = {"name": "x", "torch": "t", "shapes": "small", "source": "s"}


def check_gpu(
    out: Path, *arguments: str, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        **({"PYTHONPATH": str(path)} if path else {}),
    }
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--out", str(out), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def read_entries(out: Path) -> dict[str, Any]:
    checks: dict[str, Any] = json.loads((out / JSON).read_text(encoding="utf-8"))["checks"]
    return checks


def create_context(folder: Path) -> Context:
    return Context(torch.device("cpu"), folder, Report(folder / "report.json"))


def failed(context: Context) -> list[str]:
    return [each["name"] for each in context.report.comparisons if not each["passed"]]


@pytest.mark.slow
def test_the_whole_list_passes_with_small_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a bug that only a real GPU would meet, and a check skipped without a reason.

    The first check has passed in an earlier call, and the third was cut off in it.
    """
    out = tmp_path / "out"
    # In this process, whose fork server the other tests use too.
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu", "--out", str(out)])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [*sys.argv, "--only", "loss-3m"])
        assert main() == 0
    before = json.loads((out / JSON).read_text(encoding="utf-8"))
    before["checks"]["loss-43m"] = {"begun": 1}
    (out / JSON).write_text(json.dumps(before), encoding="utf-8")
    capsys.readouterr()
    assert main() == 0, capsys.readouterr().out
    entries, printed = read_entries(out), capsys.readouterr().out
    assert sorted(entries) == sorted(check.name for check in CHECKS)
    for check in CHECKS:
        entry = entries[check.name]
        on_cpu = not check.cpu_reason
        assert entry["verdict"] == ("passed" if on_cpu else "not run"), entry
        assert "CPU" in entry["reason"] or on_cpu
        assert not on_cpu or entry["comparisons"] or entry["figures"]
    page = (out / PAGE).read_text(encoding="utf-8")
    assert all(f"| {check.name} | " in page for check in CHECKS) and "0 failed, 0 timed out" in page
    assert (out / JSON).stat().st_size + (out / PAGE).stat().st_size < 200_000
    shards = out.with_name("out-work") / "shards"
    assert sum(file.stat().st_size for file in shards.iterdir()) < 10 * 2**20
    # Verdicts are not computed twice, and the check that was cut off comes last.
    assert entries["loss-3m"] == before["checks"]["loss-3m"]
    names = [line.split()[0] for line in printed.splitlines()[1:]]
    assert sorted(names) == sorted(entries.keys() - {"loss-3m"}) and names[-1] == "loss-43m"


def test_checks_that_were_cut_off_come_last_and_those_not_run_come_again(tmp_path: Path) -> None:
    """Prevents a check that hangs from running first in each call, and a stale missing package."""
    results = Results(tmp_path, KEY, {})
    first, second, third, fourth = CHECKS[:4]
    results.begin(first.name)
    results.end(second.name, {"verdict": "passed", "reason": "", "seconds": 1.0})
    results.end(third.name, {"verdict": "not run", "reason": "x is not installed", "seconds": 0.0})
    left = Results(tmp_path, KEY, {}).pending(CHECKS[:4])
    assert left == [third, fourth, first]


def test_results_of_another_device_are_put_aside(tmp_path: Path) -> None:
    """Prevents the verdicts of one GPU from counting for another, or from being lost."""
    results = Results(tmp_path, KEY, {})
    results.end("loss-3m", {"verdict": "failed", "reason": "y", "seconds": 1.0, "log": "a\nb"})
    assert results.failures == ["loss-3m"] and "    a\n    b" in (tmp_path / PAGE).read_text()
    other = Results(tmp_path, {**KEY, "name": "z"}, {})
    assert other.moved_previous and not other.entries and not other.failures
    assert (
        json.loads((tmp_path / f"previous-{JSON}").read_text())["checks"]["loss-3m"]["verdict"]
        == "failed"
    )


@pytest.mark.slow
def test_a_failed_check_is_reported_and_the_exit_status_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a failure that scrolls by, ends the other checks or leaves no report."""
    out = tmp_path / "out"

    def run(*arguments: str) -> int:
        command = ["bench.gpu", "--device", "cpu", "--out", str(out), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        return main()

    assert run("--only", "environment") == 0
    (tmp_path / "out-work" / "shards").mkdir()
    capsys.readouterr()
    assert run("--only", "overflow", "loss-3m") == 1
    entries = read_entries(out)
    assert (
        entries["overflow"]["verdict"] == "failed"
        and "there are no files in it" in entries["overflow"]["reason"]
    )
    assert "Traceback" in entries["overflow"]["log"] and entries["loss-3m"]["verdict"] == "passed"
    assert entries["environment"]["verdict"] == "passed"
    assert f"failed: overflow; send {out / JSON}" in capsys.readouterr().out
    # A call without time starts no check and says how to go on.
    assert run("--minutes", "1e-9") == 1
    assert "the same command goes on with them" in capsys.readouterr().out


@pytest.mark.slow
def test_a_check_that_hangs_is_ended_and_one_that_the_budget_ends_has_no_verdict(
    tmp_path: Path,
) -> None:
    """Prevents a hang that stops later checks, and a timeout caused by a short call."""
    runner = Runner(tmp_path / "out", tmp_path / "work", Device("cpu", "x", "t"))
    slow = BY_NAME["resume"]
    assert runner.run([slow], 0.005) == ["resume"]
    assert read_entries(tmp_path / "out")["resume"] == {"begun": 1}
    assert runner.run([replace(slow, timeout=1), BY_NAME["environment"]], None) == []
    entries = read_entries(tmp_path / "out")
    assert (
        entries["resume"]["verdict"] == "timed out"
        and entries["environment"]["verdict"] == "passed"
    )
    assert runner.results.failures == ["resume"]


@pytest.mark.slow
def test_a_late_command_can_end_its_processes_and_leaves_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Prevents a training process that torchrun leaves behind, and a timeout without its output."""
    (tmp_path / "late.py").write_text(
        "import signal, time\n"
        "def main():\n"
        "    signal.signal(signal.SIGTERM, lambda *_: exit('was asked to end'))\n"
        "    print('waits', flush=True)\n"
        "    time.sleep(60)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="python -m late did not end within 0 s"):
        runs.run_command(create_context(tmp_path), "late", [], timeout=0.5)
    output = capfd.readouterr().out
    assert "waits" in output and "was asked to end" in output


@pytest.mark.slow
def test_without_a_package_its_checks_are_not_run(tmp_path: Path) -> None:
    """Prevents a traceback in place of a reason if a required package is missing."""
    package = tmp_path / "lacking" / "pydantic"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'pydantic'\", name='pydantic')\n"
    )
    # Imports of the fork server that take seconds, and that this check does not reach.
    (package.parent / "sitecustomize.py").write_text(
        "import sys\nsys.modules['torch._dynamo'] = sys.modules['torch.utils.tensorboard'] = None\n"
    )
    done = check_gpu(tmp_path / "out", "--only", "loss-3m", path=package.parent)
    assert done.returncode == 0, done.stderr
    entry = read_entries(tmp_path / "out")["loss-3m"]
    assert (entry["verdict"], entry["reason"]) == ("not run", "pydantic is not installed")


def test_a_package_that_only_a_command_misses_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prevents a missing package of a subprocess or peer from counting as a failure."""
    with pytest.raises(ModuleNotFoundError) as caught:
        runs.check_packages(
            runs.CommandResult(
                1, "", "Traceback\nModuleNotFoundError: No module named 'orjson.x'\n"
            )
        )
    assert caught.value.name == "orjson.x"
    successful = runs.CommandResult(0, "", "No module named 'triton'")
    assert runs.check_packages(successful) == successful
    for name in [
        name
        for name in sys.modules
        if name.partition(".")[0] == "transformers" or name == "bench.gpu.peers"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    verdict = worker.judge_check("transformers-eager", "cpu", tmp_path, Report(tmp_path / "report"))
    assert verdict == {"verdict": "not run", "reason": "transformers is not installed"}
    monkeypatch.setitem(sys.modules, "bench.gpu.equality", None)
    with pytest.raises(ModuleNotFoundError):
        worker.judge_check("loss-3m", "cpu", tmp_path, Report(tmp_path / "report"))


@pytest.mark.slow
def test_an_exceeded_bound_is_a_failure_with_its_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prevents a verdict that does not depend on the measurements."""
    monkeypatch.setitem(equality.FP32_BOUNDS, "loss", -1.0)
    verdict = worker.judge_check("loss-3m", "cpu", tmp_path, Report(tmp_path / "report"))
    assert verdict["verdict"] == "failed" and "full loss: loss: " in verdict["reason"]
    assert "above the bound of -1 (and 5 more)" in verdict["reason"]


def test_a_number_that_is_none_is_above_every_bound(tmp_path: Path) -> None:
    """Prevents NaN from passing a bound, and a report that is not JSON."""
    report = Report(tmp_path / "report.json")
    report.compare("x", math.nan, math.inf)
    report.require("y", False)
    report.require("z", True)
    written = json.loads((tmp_path / "report.json").read_text())["comparisons"]
    assert [each["passed"] for each in written] == [False, False, True]


def damaged(model: Llama) -> Llama:
    with torch.no_grad():
        model.model.norm.weight[: len(model.model.norm.weight) // 2] *= 1.2
    return model


@pytest.mark.parametrize(
    "check",
    [
        lambda context: equality.losses(context, "3m"),
        equality.packed,
        equality.attention,
        equality.lora,
        lambda context: equality.compiled(context, "43m"),
        lambda context: decoding.decoding(context, "43m"),
    ],
    ids=["losses", "packed", "attention", "lora", "compiled", "decoding"],
)
@pytest.mark.slow
def test_a_device_that_computes_something_else_fails(
    check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prevents a comparison of a model with itself, or a bound without effect (damaged models)."""
    models: list[Llama] = []

    def build(*arguments: Any, **options: Any) -> Llama:
        models.append(build_model(*arguments, **options))
        return damaged(models[-1]) if len(models) % 2 == 0 else models[-1]

    for module in (equality, decoding):
        monkeypatch.setattr(module, "build_model", build)
    context = create_context(tmp_path)
    check(context)
    torch.compiler.reset()
    names = failed(context)
    assert names, context.report.comparisons
    assert any(
        "logits" in name or "loss" in name or "ids" in name or "adapter" in name for name in names
    )


def test_ids_may_differ_only_where_the_gap_is_small() -> None:
    """Prevents a tie that counts as an error, and another text that counts as a tie."""
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model, prompt = build_model(config, torch.device("cpu")).eval(), [5, 6]
    assert decoding.logit_gap_at_divergence(model, prompt, [7, 8], [7, 8]) == 0.0
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7]]))[0, -1]
    gap = float((logits[8] - logits[9]).abs())
    assert decoding.logit_gap_at_divergence(model, prompt, [7, 9, 3], [7, 8, 4]) == pytest.approx(
        gap, rel=1e-3
    )
    top = logits.topk(2).values
    assert decoding.logit_gap_at_divergence(model, prompt, [7], [7, 8]) == pytest.approx(
        float(top[0] - top[1]), rel=1e-3
    )


def test_bytes_of_a_token_are_those_of_its_matmuls() -> None:
    """Catch a bandwidth limit without a matrix, a pass or the head."""
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    matrices = [(8, 8), (8, 4), (8, 4), (8, 8), (8, 20), (8, 20), (20, 8)] * 3 + [(8, 100)]
    assert bytes_per_token(config, 2) == 2 * 3 * sum(map(sum, matrices))


def test_peak_memory_of_training_is_that_of_its_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prevents the largest micro-batch of the search, or a measured rate, from being the peak."""
    peak = [0.0]

    def allocate(name: str, gigabytes: float) -> None:
        function = getattr(speed, name)

        def call(*arguments: Any, **options: Any) -> Any:
            peak[0] = max(peak[0], gigabytes * 1e9)
            return function(*arguments, **options)

        monkeypatch.setattr(speed, name, call)

    allocate("autotune", 70)
    allocate("measure_training_speed", 6)
    allocate("memory_bandwidth", 50)
    monkeypatch.setattr(Context, "reset_peak_memory", lambda self: peak.__setitem__(0, 0.0))
    monkeypatch.setattr(Context, "peak_memory_bytes", lambda self: peak[0])
    context = create_context(tmp_path)
    speed.training(context, "3m", "eager")
    figures = {figure["name"]: figure["value"] for figure in context.report.figures}
    assert figures["peak memory"] == 6


def test_a_process_that_dies_is_named_by_its_signal() -> None:
    """Prevents a crash in a kernel that reads like a verdict."""
    assert _describe_death(-11) == "its process was ended by SIGSEGV"
    assert "exit code 3" in _describe_death(3)


def test_steps_are_fitted_into_the_minutes() -> None:
    """Prevents a plan from the speed of the first step, or beyond the time or the configuration."""
    records = [
        {"step": step, "tokens": 100 * step, "tokens_per_second": speed}
        for step, speed in ((1, 1.0), (5, 50.0), (10, 200.0), (15, 200.0))
    ]
    assert fitting_steps(records, 60.0, 1000) == 120 and fitting_steps(records, 60.0, 50) == 50
    assert fitting_steps(records, 0.1, 50) == 1


def test_how_a_training_command_ended() -> None:
    """Prevents a planned stop or a missing package from counting as a failure."""
    assert judge_outcome(0, "a\nb\n", was_stopped=False) == ("done", "b")
    assert judge_outcome(0, "saved after step 5", was_stopped=True)[0] == "stopped"
    text = "ModuleNotFoundError: No module named 'jieba'\n"
    assert judge_outcome(1, text, was_stopped=False) == ("not run", "jieba is not installed")
    assert judge_outcome(2, "error: no\nmore", was_stopped=False) == ("failed", "error: no")


def test_planned_steps_have_the_limit_of_the_config(tmp_path: Path) -> None:
    """Prevents `--train` that ends after its trial where the model is that of the defaults."""
    sample = Plan(tmp_path, tmp_path, device="cpu", data="sample", tune="csl")
    assert configured_steps(sample) == PretrainOptions().max_steps
    assert configured_steps(replace(sample, device="cuda", data="wikipedia")) == 10_000


def test_what_is_collected_from_training_is_small_unless_weights_are_wanted(tmp_path: Path) -> None:
    """Prevents gigabytes of checkpoints in the results folder."""
    plan = Plan(tmp_path / "out", tmp_path / "work", "cpu", "sample", "csl")
    run = plan.work / "pretrain"
    (run / "results").mkdir(parents=True)
    (run / "checkpoints" / "step-00000005").mkdir(parents=True)
    (run / "checkpoints" / "step-00000005" / "model.safetensors").write_bytes(b"x" * 1000)
    (run / "results" / "perplexity.json").write_text('{"loss": 2.5, "text": "dev"}')
    (run / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 5, "loss": 3.5, "tokens_per_second": 1000}\n'
    )
    plan.out.mkdir()
    collect_results(plan, {"asked": {}, "calls": [], "steps": 7}, [], keep_weights=False)
    assert not list(plan.out.rglob("*.safetensors"))
    page = (plan.out / "train.md").read_text(encoding="utf-8")
    assert "- perplexity: loss 2.5" in page and "step 5, loss 3.5, 1,000 tokens/s" in page
