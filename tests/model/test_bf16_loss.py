"""The head in bf16 without logits: against fp64 on the same rounded factors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import bf16_loss
from model.bf16_loss import CHUNK_SIZE, TILE_SIZE
from model.loss import linear_cross_entropy, token_log_probs
from model.precision import multiplies_bf16
from tests.helpers.tensor_recorder import TensorRecorder

pytestmark = pytest.mark.skipif(
    not multiplies_bf16(torch.device("cpu")), reason="needs a CPU that multiplies bf16"
)
# A chunk and a part of one, tiles and a part of one.
ROWS, VOCABULARY, WIDTH = CHUNK_SIZE + 76, 2 * TILE_SIZE + 30, 32


def random_inputs(spread: float = 1.0, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states and head weights that bf16 holds exactly, and targets."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, WIDTH, generator=generator) * spread
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    targets = torch.randint(VOCABULARY, (rows,), generator=generator)
    return hidden.bfloat16().float(), weight.bfloat16().float(), targets


def exact_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the losses in fp64[N], with a gradient."""
    return F.cross_entropy(hidden @ weight.T, targets, reduction="none")


def results(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, per_target: bool, factors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted sum of the losses and its gradients, as `model.loss` computes them."""
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        if per_target:
            loss = -(token_log_probs(x, w, targets) * factors).sum()
        else:
            loss = linear_cross_entropy(x, w, targets, scale=float(factors[0]))
    loss.backward()
    assert x.grad is not None and w.grad is not None
    return loss.detach(), x.grad, w.grad


@pytest.mark.slow
@pytest.mark.parametrize("per_target", [False, True])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 30.0])
def test_losses_and_gradients_match_fp64(per_target: bool, spread: float) -> None:
    """Prevents a bound of E that is passed, a tile that is left out, and chunks that are mixed up.

    From logits all alike to those of a broken model, with losses of hundreds of nats.
    """
    hidden, weight, targets = random_inputs(spread)
    targets[::2] = (hidden @ weight.T).argmax(-1)[::2]  # some are predicted well
    factors = torch.full((ROWS,), 1 / 512)
    if per_target:
        factors = torch.randn(ROWS, generator=torch.Generator().manual_seed(1)) ** 3
    loss, dx, dw = results(hidden, weight, targets, per_target=per_target, factors=factors)
    x, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    exact = (exact_losses(x, w, targets) * factors).sum()
    exact.backward()
    assert x.grad is not None and w.grad is not None
    assert dx.dtype == dw.dtype == torch.float32
    # E and the sums of tiles are rounded to 2^-9 of themselves, which are as many nats of a loss.
    assert abs(loss - exact) < 2 * 2**-9 * factors.abs().sum()
    for one, other in ((dx, x.grad), (dw, w.grad)):
        # A number is rounded to 2^-9 of itself three times at most on its way.
        assert (one - other).norm() < 3 * 2**-9 * other.norm()


def test_well_predicted_targets_keep_their_gradients() -> None:
    """Prevents a probability near one that is rounded to one before one is subtracted."""
    hidden, weight, targets = random_inputs(rows=200)
    targets = (hidden @ weight.T).argmax(-1)
    # So that the largest logit is far above the others.
    hidden *= 4
    x, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    exact_losses(x, w, targets).sum().backward()
    assert x.grad is not None
    _, dx, _ = results(hidden, weight, targets, per_target=False, factors=torch.ones(200))
    probabilities = (-exact_losses(x, w, targets)).exp()
    good = (probabilities > 0.99) & (probabilities < 0.9999)
    assert good.sum() > 10
    error = (dx - x.grad)[good].norm(dim=1) / x.grad[good].norm(dim=1)
    assert error.max() < 2**-6


def test_no_logits_of_a_chunk_are_written() -> None:
    """Prevents passes over logits, which take longer than their products, and their memory."""
    hidden, weight, targets = random_inputs(spread=0.3)
    x = hidden.requires_grad_()
    with TensorRecorder() as recorder, torch.autocast("cpu", torch.bfloat16):
        linear_cross_entropy(x, weight, targets).backward()
    assert recorder.largest_output <= TILE_SIZE * CHUNK_SIZE
    names = recorder.operations_returning(torch.Size((TILE_SIZE, CHUNK_SIZE)))
    # The targets are set to zero in place; nothing else passes over a tile and writes it.
    names = [name for name in names if "index_put" not in name]
    assert len(names) == VOCABULARY // TILE_SIZE, names


def test_a_copy_of_the_head_is_not_cast_again() -> None:
    """Prevents a cast of the largest weight in each micro-batch."""
    hidden, weight, targets = random_inputs(rows=10)
    narrow = weight.bfloat16()
    outputs = []
    for copy in (None, narrow):
        x = hidden.clone().requires_grad_()
        with TensorRecorder() as recorder, torch.autocast("cpu", torch.bfloat16):
            loss = linear_cross_entropy(x, weight, targets, narrow_weight=copy)
            log_probs = token_log_probs(x, weight, targets, copy)
        assert bool(recorder.operations_returning(weight.shape)) == (copy is None)
        outputs.append((loss, log_probs))
    assert torch.equal(outputs[0][0], outputs[1][0]) and torch.equal(outputs[0][1], outputs[1][1])


def test_a_step_without_targets_has_gradients_of_zero() -> None:
    """Prevents undefined memory as the gradient of the head where no position has a loss."""
    hidden, weight, targets = random_inputs(rows=0)
    loss, dx, dw = results(hidden, weight, targets, per_target=False, factors=torch.ones(1))
    assert loss == 0 and not dw.any() and dx.shape == (0, WIDTH)


def test_other_devices_and_types_keep_their_path() -> None:
    """Prevents an operation of oneDNN on a GPU, or sums of fp16 without a scale."""
    assert bf16_loss.can_fuse(torch.device("cpu"), torch.bfloat16)
    assert not bf16_loss.can_fuse(torch.device("cpu"), torch.float16)
    assert not bf16_loss.can_fuse(torch.device("cuda"), torch.bfloat16)
