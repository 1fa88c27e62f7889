"""Autotuning: torch.compile where it works, the micro-batch and loss path that are fastest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from model.config import LlamaConfig
from model.llama import Llama
from model.loss import LossPath
from train import autotune as autotune_module
from train.autotune import FULL_LOGITS_BYTES, ComputePlan, autotune, can_compile

CPU = torch.device("cpu")
LENGTH, VOCABULARY = 512, 8000


def small(vocabulary: int = 99) -> Llama:
    return (
        Llama(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
            )
        )
        .init_weights(0)
        .train()
    )


def choose(model: Llama, **changes: Any) -> ComputePlan:
    wishes = {
        "precision": "auto",
        "compile": "auto",
        "micro_batch": "auto",
        "rows_per_step": 64,
        "length": LENGTH,
    }
    return autotune(model, CPU, **{**wishes, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 8),  # 4,096 tokens
        ({"rows_per_step": 6, "length": 1000}, 3),
        ({"rows_per_step": 7, "length": 5000}, 1),
        ({"micro_batch": 64}, 64),
        ({"micro_batch": 5}, 4),
    ],
)
def test_autotune_is_skipped_on_cpu(changes: dict[str, Any], expected: int) -> None:
    """Catch a plan that differs between two runs of one command, and with it the weights."""
    assert choose(small(), **changes) == ComputePlan("cpu", "fp32", False, expected, "chunked")


# One interpreter imports the compiler's modules for both forks; each detects compilers itself.
FORKS = """
import gc
import os
import sys
from pathlib import Path

import torch
import torch._inductor.compile_fx
from torch._inductor.fx_passes import joint_graph
from tests.train.test_autotune import choose, small

folder = Path(sys.argv[1])
# The search for patterns to fuse prepares for seconds, and leaves the graph of the trial as it is.
joint_graph.lazy_init = lambda *_: None
torch._inductor.config.pattern_matcher = False
# A collection in a fork would copy the pages of all objects.
gc.freeze()


def fork(name, function):
    if os.fork():
        return
    for stream, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / f"{name}.{stream}", os.O_WRONLY | os.O_CREAT), descriptor)
    function()
    sys.stdout.flush()
    os._exit(0)


def without():
    os.environ["CXX"] = "/bin/false"
    torch._inductor.config.cpp.cxx = (None, "/bin/false")
    # The keys of the caches are digests of the whole compiler.
    torch._inductor.config.fx_graph_cache = False
    torch._functorch.config.enable_autograd_cache = False
    model = small()
    choices = choose(model, compile=True)
    assert not choices.compile and all(each.grad is None for each in model.parameters())
    ids = torch.randint(99, (2, 16))
    model(ids, ids).backward()
    print("goes on")


def working():
    # Without the checks and caches of the compiler that take longer than the trial.
    torch._inductor.config.cpp.vec_isa_ok = False
    torch._inductor.config.cpp_cache_precompile_headers = False
    model = small()
    print(choose(model, compile=True).compile, choose(model, compile=False).compile)


for each in sys.argv[2:]:
    fork(each, {"without": without, "working": working}[each])
for each in sys.argv[2:]:
    os.wait()
"""


@pytest.fixture(scope="module")
def compiled(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training prints (NAME.out, NAME.err) without a compiler and with a working one.

    In processes of their own, because torch caches the compilers that it detects, and because
    packages of other tests import a distutils that setuptools, which the compiler imports, does
    not work beside.
    """
    folder = tmp_path_factory.mktemp("compiled")
    has_compiler = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    names = ["without", *(["working"] if has_compiler else [])]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, str(folder), *names],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_missing_compiler_falls_back_to_eager(compiled: Path) -> None:
    """Catch a run that ends, or prints a page, for want of a C compiler that it can do without."""
    stderr = (compiled / "without.err").read_text()
    assert (compiled / "without.out").read_text() == "goes on\n", stderr
    (warning,) = (
        line for line in stderr.splitlines() if not line.startswith("W")
    )  # torch's own log lines
    assert warning.startswith(
        "warning: torch.compile does not work here, training goes on without it: "
    )
    assert "compiler" in warning.rpartition("without it: ")[2] and len(warning) < 400


def test_toolchain_error_is_reported_with_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catch a check that expects the errors of one compiler: Triton and gcc differ."""
    for error in (
        RuntimeError("backend raised:\nFailed to find C compiler.\n\nSet VERBOSE=1"),
        OSError("Failed to find C"),
        subprocess.CalledProcessError(1, ["gcc", "Failed to find C"]),
    ):

        def broken(*_: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(torch, "compile", broken)
        assert not can_compile(small())
        output = capsys.readouterr().err
        assert output.count("\n") == 1 and "Failed to find C" in output and "VERBOSE" not in output


@pytest.mark.slow
def test_a_working_compiler_is_used(compiled: Path) -> None:
    """Catch a trial that always fails, so that nothing is ever compiled."""
    if not (compiled / "working.out").exists():
        pytest.skip("there is no C++ compiler here")
    assert (compiled / "working.out").read_text() == "True False\n", (
        compiled / "working.err"
    ).read_text()


class Card:
    """A simulated GPU: the times and bytes that a benchmark would measure on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gigabytes: float, **seconds: float) -> None:
        self.bytes, self.seconds = gigabytes * 1e9, seconds
        self.tried: list[tuple[int, LossPath]] = []
        monkeypatch.setattr(autotune_module, "_benchmark_forward_backward", self.attempt)
        monkeypatch.setattr(autotune_module, "_available_gpu_bytes", lambda device: self.bytes)

    def attempt(
        self,
        model: Llama,
        body: Any,
        device: torch.device,
        precision: str,
        rows: int,
        length: int,
        path: LossPath,
    ) -> tuple[float, int]:
        self.tried.append((rows, path))
        tokens = rows * length
        logits = tokens * VOCABULARY * 6 if path == "full" else 4096 * VOCABULARY * 6
        needed = logits + tokens * 100_000
        if needed > self.bytes:
            raise torch.cuda.OutOfMemoryError
        # A launch takes its time whatever the size; then time goes with the tokens.
        return (0.01 + tokens * self.seconds[path] * 1e-6) / rows, needed

    def choose(
        self, precision: Any = "bf16", rows: int = 64, divisors: list[int] | None = None
    ) -> tuple[int, LossPath]:
        divisors = divisors or [n for n in range(1, rows + 1) if rows % n == 0]
        return autotune_module._find_fastest_micro_batch(
            small(VOCABULARY), torch.device("cuda"), precision, divisors, LENGTH, is_compiled=False
        )


def test_loss_path_is_chosen_at_training_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch the full path chosen on a few rows and used on many, where it takes gigabytes."""
    card = Card(monkeypatch, 80, full=0.9, chunked=1.0)
    rows, path = card.choose()
    assert (rows, path) == (64, "chunked")
    assert (16, "full") in card.tried
    assert all(
        rows * LENGTH * VOCABULARY * 4 <= FULL_LOGITS_BYTES
        for rows, path in card.tried
        if path == "full"
    )
    # Where few rows are all there is, it is taken.
    assert card.choose(rows=8) == (8, "full")
    assert card.choose(divisors=[4]) == (4, "full")


def test_micro_batch_leaves_memory_headroom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch a search that leaves no room for the optimizer, or ends at the first failed path."""
    card = Card(monkeypatch, 2.0, full=1.0, chunked=1.1)
    assert card.choose() == (16, "full")
    assert card.tried[-1] == (32, "chunked")  # which ran, in nine tenths of the memory and more
    # Here 16 rows at once are too many, in chunks they are not.
    assert Card(monkeypatch, 1.15, full=1.0, chunked=1.0).choose() == (16, "chunked")


def test_marginally_faster_plan_is_rejected_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch twice the memory for one hundredth of the time."""
    assert Card(monkeypatch, 80, full=1000.0, chunked=1000.0).choose()[0] == 1


def test_row_too_large_for_memory_error_gives_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevent a page of allocator statistics."""
    with pytest.raises(UserError, match=r"1 × 512 tokens .* do not fit .*--sequence_length"):
        Card(monkeypatch, 0.01, full=1.0, chunked=1.0).choose()


def test_fp16_cards_use_the_exact_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch a loss path whose gradients vanish in fp16, chosen because it is the fastest."""
    assert Card(monkeypatch, 80, full=0.1, chunked=1.0).choose("fp16", rows=8)[1] == "chunked"
