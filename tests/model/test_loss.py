"""Every way to the loss gives the plain formula's value and gradients, and none makes the logits of a batch."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.loss import (
    LossPath,
    available_loss_paths,
    linear_cross_entropy,
    loss_chunk_size,
    score_tokens,
)

PATHS = available_loss_paths()


def inputs(
    rows: int = 1100, width: int = 32, vocabulary: int = 700, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, width, generator=generator) * spread,
        torch.randn(vocabulary, width, generator=generator),
        torch.randint(vocabulary, (rows,), generator=generator),
    )


def run(
    path: LossPath, hidden: Tensor, weight: Tensor, targets: Tensor, factor: float = 1.0
) -> tuple[Tensor, ...]:
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = linear_cross_entropy(x, w, targets, scale=1 / len(targets), path=path)
    (loss * factor).backward()
    assert x.grad is not None and w.grad is not None
    return loss.detach(), x.grad, w.grad


@pytest.mark.parametrize("factor", [1.0, 1024.0])
@pytest.mark.parametrize("path", PATHS)
def test_loss_and_gradients_match_cross_entropy(path: LossPath, factor: float) -> None:
    """An approximate loss, or one whose gradient forgets the factor that fp16 scaling puts on it. 1,100 rows end
    inside a chunk."""
    hidden, weight, targets = inputs()
    x, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    exact = F.cross_entropy(x @ w.T, targets)
    (exact * factor).backward()
    loss, dx, dw = run(path, hidden, weight, targets, factor)
    torch.testing.assert_close(loss.double(), exact.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(dx.double(), x.grad, rtol=1e-4, atol=1e-8 * factor)
    torch.testing.assert_close(dw.double(), w.grad, rtol=1e-4, atol=1e-7 * factor)


@pytest.mark.parametrize("path", PATHS)
def test_very_unlikely_target_has_finite_exact_loss(path: LossPath) -> None:
    """A probability that underflows to zero turning into an infinite loss and a skipped step."""
    hidden, weight, targets = inputs(spread=30.0)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, targets)
    assert exact > 100
    loss, dx, _ = run(path, hidden, weight, targets)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    assert dx.isfinite().all()


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_full_batch_logits_are_never_materialized() -> None:
    """Memory that grows with the batch times the vocabulary."""
    rows, vocabulary = 4 * loss_chunk_size(torch.device("cpu")), 700
    hidden, weight, targets = inputs(rows, 32, vocabulary)
    with Largest() as seen:
        run("chunked", hidden, weight, targets)
    assert (
        seen.elements <= 2 * loss_chunk_size(torch.device("cpu")) * vocabulary
    )  # logits and gradient of one chunk
    with Largest() as plain:
        run("full", hidden, weight, targets)
    assert plain.elements >= rows * vocabulary


def skewed(rows: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nine of ten targets the same one, probabilities from 1e-12 to 0.99, a feature of size 200 in every
    position: its sum over 512 of them is beyond fp16."""
    hidden, weight, targets = inputs(rows, 8, vocabulary)
    hidden[:, 0], hidden[:, 1] = 200, hidden[:, 1] + 2
    weight[:, 0] *= 1e-3
    weight[7] = torch.tensor([0.01, 5, 0, 0, 0, 0, 0, 0])
    targets[rows // 10 :] = 7
    return hidden, weight, targets


@pytest.mark.parametrize(
    ("dtype", "rows", "vocabulary"),
    [
        (torch.float16, 700, 65_000),
        (torch.bfloat16, 700, 65_000),
        pytest.param(torch.float16, 4200, 16_384, marks=pytest.mark.slow),
    ],
)
def test_low_precision_gradients_match_fp32(dtype: torch.dtype, rows: int, vocabulary: int) -> None:
    """fp16 gradients in which the rare ids of a large vocabulary vanish and the frequent ones overflow. Every row of the
    weight's gradient counts, however small it is."""
    hidden, weight, targets = skewed(rows, vocabulary)
    hidden, weight = hidden.to(dtype).float(), weight.to(dtype).float()
    loss, dx, dw = run("chunked", hidden, weight, targets)
    with torch.autocast("cpu", dtype):
        narrow_loss, narrow_dx, narrow_dw = run("chunked", hidden, weight, targets)
    assert narrow_dx.dtype == narrow_dw.dtype == torch.float32
    # Rounding: of the logits, 0.8 % of a probability where they are 16, and of the gradient itself.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(narrow_loss, loss, rtol=unit, atol=0)
    for one, other, largest in (
        (narrow_dx[:, 1:], dx[:, 1:], 16),
        (narrow_dw[:, 1:], dw[:, 1:], 12),
        (narrow_dw[:, :1], dw[:, :1], 12),
    ):
        error = (one - other).norm(dim=1) / other.norm(dim=1)
        assert error.max() < largest * unit and error.median() < unit


@pytest.mark.parametrize(
    ("path", "dtype"),
    [
        *((path, torch.float32) for path in PATHS),
        ("full", torch.bfloat16),
        ("chunked", torch.bfloat16),
    ],
)
def test_num_correct_is_computed_with_the_loss(path: LossPath, dtype: torch.dtype) -> None:
    """A training accuracy that is not that of the evaluation, ties included, or that changes the gradients."""
    hidden, weight, targets = inputs()
    hidden[:, :16], weight[:, 16:] = hidden[:, :16].round(), 0  # many ties
    weight[:, :16] = weight[:, :16].round()
    targets[::2] = (hidden @ weight.T).argmax(-1)[::2]
    logits = hidden.to(dtype) @ weight.to(dtype).T
    top = logits.max(-1, keepdim=True).values
    assert ((logits == top).sum(-1) > 1).sum() > 50  # else the order of ties is not tested
    expected = int((logits.argmax(-1) == targets).sum())
    assert 500 < expected < 1000
    plain = run(path, hidden, weight, targets)
    for hits in (torch.zeros((), dtype=torch.int64), torch.zeros(())):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            for _ in range(2):
                linear_cross_entropy(hidden, weight, targets, path=path, num_correct=hits)
        assert hits == 2 * expected  # added, not set
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = linear_cross_entropy(x, w, targets, scale=1 / len(targets), path=path, num_correct=hits)
    loss.backward()
    for with_hits, without in zip((loss, x.grad, w.grad), plain, strict=True):
        assert with_hits is not None and torch.equal(with_hits, without)


def test_num_correct_is_skipped_when_not_requested() -> None:
    """A pass over V columns at every step for a figure that is shown at some."""
    hidden, weight, targets = inputs()
    with Called() as seen:
        linear_cross_entropy(hidden, weight, targets)
    assert "argmax" not in " ".join(seen.names) and "log" in " ".join(seen.names)


class Called(TorchDispatchMode):
    """Remembers the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_fp16_uses_exact_loss_path() -> None:
    """A GPU without bf16 being given the loss whose gradients vanish there."""
    assert available_loss_paths(torch.float16) == ["chunked"]
    assert available_loss_paths(torch.bfloat16) == ["full", "chunked"]


@pytest.mark.parametrize("path", available_loss_paths(torch.bfloat16))
def test_autocast_computes_lm_head_in_low_precision(path: LossPath) -> None:
    """A head that silently runs in fp32 under autocast, or a loss that is summed in bf16."""
    hidden, weight, targets = inputs()
    exact = F.cross_entropy(hidden @ weight.T, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, scale=1 / len(targets), path=path)
    assert loss.dtype == torch.float32
    assert 0 < abs(loss - exact) < 0.05 * exact


def test_score_matches_cross_entropy_and_argmax() -> None:
    """An evaluation that measures something else than the loss that was trained."""
    hidden, weight, targets = inputs()
    losses, hits = score_tokens(hidden, weight, targets)
    logits = hidden @ weight.T
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"))
    assert torch.equal(hits, logits.argmax(-1) == targets)
