"""Every way to the loss gives the plain formula's value and gradients, and none makes the logits of a batch."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.loss import LossPath, available_paths, chunk_rows, linear_cross_entropy, score

PATHS = available_paths()


def inputs(rows: int = 1100, width: int = 32, vocabulary: int = 700, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(rows, width, generator=generator) * spread, torch.randn(vocabulary, width, generator=generator),
            torch.randint(vocabulary, (rows,), generator=generator))


def run(path: LossPath, hidden: Tensor, weight: Tensor, targets: Tensor, factor: float = 1.0) -> tuple[Tensor, ...]:
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = linear_cross_entropy(x, w, targets, scale=1 / len(targets), path=path)
    (loss * factor).backward()
    assert x.grad is not None and w.grad is not None
    return loss.detach(), x.grad, w.grad


@pytest.mark.parametrize("factor", [1.0, 1024.0])
@pytest.mark.parametrize("path", PATHS)
def test_value_and_gradients_are_those_of_cross_entropy(path: LossPath, factor: float) -> None:
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
def test_a_hopeless_prediction_has_a_finite_exact_loss(path: LossPath) -> None:
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


def test_the_logits_of_a_batch_never_exist() -> None:
    """Memory that grows with the batch times the vocabulary."""
    rows, vocabulary = 4 * chunk_rows(torch.device("cpu")), 700
    hidden, weight, targets = inputs(rows, 32, vocabulary)
    with Largest() as seen:
        run("chunked", hidden, weight, targets)
    assert seen.elements <= 2 * chunk_rows(torch.device("cpu")) * vocabulary  # logits and gradient of one chunk
    with Largest() as plain:
        run("full", hidden, weight, targets)
    assert plain.elements >= rows * vocabulary


@pytest.mark.parametrize("path", available_paths(torch.bfloat16))
def test_autocast_computes_the_head_in_its_type(path: LossPath) -> None:
    """A head that silently runs in fp32 under autocast, or a loss that is summed in bf16."""
    hidden, weight, targets = inputs()
    exact = F.cross_entropy(hidden @ weight.T, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, scale=1 / len(targets), path=path)
    assert loss.dtype == torch.float32
    assert 0 < abs(loss - exact) < 0.05 * exact


def test_score_is_cross_entropy_and_argmax() -> None:
    """An evaluation that measures something else than the loss that was trained."""
    hidden, weight, targets = inputs()
    losses, hits = score(hidden, weight, targets)
    logits = hidden @ weight.T
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"))
    assert torch.equal(hits, logits.argmax(-1) == targets)
