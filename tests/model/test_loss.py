"""Every loss path against the plain formula, its memory, and its precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.loss import (
    LossPath,
    available_loss_paths,
    linear_cross_entropy,
    loss_chunk_size,
    score_tokens,
    token_log_probs,
)
from tests.helpers.tensor_recorder import TensorRecorder

PATHS = available_loss_paths()


def random_inputs(
    rows: int = 1100, width: int = 32, vocabulary: int = 700, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, head weights and targets; 1,100 rows end inside a chunk."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, width, generator=generator) * spread,
        torch.randn(vocabulary, width, generator=generator),
        torch.randint(vocabulary, (rows,), generator=generator),
    )


def loss_and_gradients(
    path: LossPath, hidden: Tensor, weight: Tensor, targets: Tensor, factor: float = 1.0
) -> tuple[Tensor, ...]:
    """Return the mean loss, and the gradients of `factor` times it by hidden states and weights."""
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = linear_cross_entropy(x, w, targets, scale=1 / len(targets), path=path)
    (loss * factor).backward()
    assert x.grad is not None and w.grad is not None
    return loss.detach(), x.grad, w.grad


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 1024.0])
@pytest.mark.parametrize("path", PATHS)
def test_loss_and_gradients_match_cross_entropy(path: LossPath, factor: float) -> None:
    """Prevents an approximate loss, and gradients without the factor of fp16's loss scaling."""
    hidden, weight, targets = random_inputs()
    x, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    exact = F.cross_entropy(x @ w.T, targets)
    (exact * factor).backward()
    loss, dx, dw = loss_and_gradients(path, hidden, weight, targets, factor)
    torch.testing.assert_close(loss.double(), exact.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(dx.double(), x.grad, rtol=1e-4, atol=1e-8 * factor)
    torch.testing.assert_close(dw.double(), w.grad, rtol=1e-4, atol=1e-7 * factor)


@pytest.mark.parametrize("path", PATHS)
def test_very_unlikely_target_has_finite_exact_loss(path: LossPath) -> None:
    """Prevents an infinite loss, and a skipped step, where a probability underflows to zero."""
    hidden, weight, targets = random_inputs(spread=30.0)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, targets)
    assert exact > 100
    loss, dx, _ = loss_and_gradients(path, hidden, weight, targets)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    assert dx.isfinite().all()


def test_full_batch_logits_are_never_materialized() -> None:
    """Prevents memory that grows with the batch times the vocabulary."""
    rows, vocabulary = 4 * loss_chunk_size(torch.device("cpu")), 700
    hidden, weight, targets = random_inputs(rows, 32, vocabulary)
    with TensorRecorder() as chunked:
        loss_and_gradients("chunked", hidden, weight, targets)
    # At most the logits and the gradient of one chunk.
    assert chunked.largest_output <= 2 * loss_chunk_size(torch.device("cpu")) * vocabulary
    with TensorRecorder() as full:
        loss_and_gradients("full", hidden, weight, targets)
    assert full.largest_output >= rows * vocabulary


def skewed_inputs(rows: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs whose gradients are hard to represent in fp16.

    Nine of ten targets are the same id, probabilities range from 1e-12 to 0.99, and one feature is
    200 at every position, so that its sum over 512 positions exceeds the range.
    """
    hidden, weight, targets = random_inputs(rows, 8, vocabulary)
    hidden[:, 0], hidden[:, 1] = 200, hidden[:, 1] + 2
    weight[:, 0] *= 1e-3
    weight[7] = torch.tensor([0.01, 5, 0, 0, 0, 0, 0, 0])
    targets[rows // 10 :] = 7
    return hidden, weight, targets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "rows", "vocabulary"),
    [
        (torch.float16, 520, 65_000),
        (torch.bfloat16, 700, 8_192),
        # More than three chunks.
        (torch.float16, 1_700, 8_192),
    ],
)
def test_low_precision_gradients_match_fp32(dtype: torch.dtype, rows: int, vocabulary: int) -> None:
    """Prevents fp16 gradients that vanish for rare ids of a large vocabulary, or overflow.

    Every row of the weight's gradient counts, however small it is.
    """
    hidden, weight, targets = skewed_inputs(rows, vocabulary)
    hidden, weight = hidden.to(dtype).float(), weight.to(dtype).float()
    loss, dx, dw = loss_and_gradients("chunked", hidden, weight, targets)
    with torch.autocast("cpu", dtype):
        narrow_loss, narrow_dx, narrow_dw = loss_and_gradients("chunked", hidden, weight, targets)
    assert narrow_dx.dtype == narrow_dw.dtype == torch.float32
    # Rounded are the logits (0.8 % of a probability where a logit is 16) and the gradient itself.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(narrow_loss, loss, rtol=unit, atol=0)
    for one, other, largest in (
        (narrow_dx[:, 1:], dx[:, 1:], 16),
        (narrow_dw[:, 1:], dw[:, 1:], 12),
        (narrow_dw[:, :1], dw[:, :1], 12),
    ):
        error = (one - other).norm(dim=1) / other.norm(dim=1)
        assert error.max() < largest * unit and error.median() < unit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "dtype"),
    [
        *((path, torch.float32) for path in PATHS),
        ("full", torch.bfloat16),
        ("chunked", torch.bfloat16),
    ],
)
def test_num_correct_is_computed_with_the_loss(path: LossPath, dtype: torch.dtype) -> None:
    """Prevents an accuracy unlike that of evaluation, ties included, and changed gradients."""
    hidden, weight, targets = random_inputs()
    hidden[:, :16], weight[:, 16:] = hidden[:, :16].round(), 0  # many ties
    weight[:, :16] = weight[:, :16].round()
    targets[::2] = (hidden @ weight.T).argmax(-1)[::2]
    logits = hidden.to(dtype) @ weight.to(dtype).T
    top = logits.max(-1, keepdim=True).values
    assert ((logits == top).sum(-1) > 1).sum() > 50  # so the order of ties is tested
    expected = int((logits.argmax(-1) == targets).sum())
    assert 500 < expected < 1000
    plain = loss_and_gradients(path, hidden, weight, targets)
    for num_correct in (torch.zeros((), dtype=torch.int64), torch.zeros(())):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            for _ in range(2):
                linear_cross_entropy(hidden, weight, targets, path=path, num_correct=num_correct)
        assert num_correct == 2 * expected, "counts are added, not replaced"
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = linear_cross_entropy(
        x, w, targets, scale=1 / len(targets), path=path, num_correct=num_correct
    )
    loss.backward()
    for counted, uncounted in zip((loss, x.grad, w.grad), plain, strict=True):
        assert counted is not None and torch.equal(counted, uncounted)


def test_num_correct_is_skipped_when_not_requested() -> None:
    """Prevents a pass over the vocabulary at every step for a figure that is logged at some."""
    hidden, weight, targets = random_inputs()
    with TensorRecorder() as recorder:
        linear_cross_entropy(hidden, weight, targets)
    names = " ".join(name for name, _ in recorder.outputs)
    assert "argmax" not in names and "log" in names


def test_fp16_uses_exact_loss_path() -> None:
    """Prevents the path whose gradients vanish in fp16, on GPUs without bf16."""
    assert available_loss_paths(torch.float16) == ["chunked"]
    assert available_loss_paths(torch.bfloat16) == ["full", "chunked"]


@pytest.mark.parametrize("path", available_loss_paths(torch.bfloat16))
def test_autocast_computes_lm_head_in_low_precision(path: LossPath) -> None:
    """Prevents a head that runs in fp32 under autocast, and a loss that is summed in bf16."""
    hidden, weight, targets = random_inputs()
    exact = F.cross_entropy(hidden @ weight.T, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, scale=1 / len(targets), path=path)
    assert loss.dtype == torch.float32
    assert 0 < abs(loss - exact) < 0.05 * exact


def test_score_matches_cross_entropy_and_argmax() -> None:
    """Prevents an evaluation of something else than the training loss."""
    hidden, weight, targets = random_inputs()
    losses, is_correct = score_tokens(hidden, weight, targets)
    logits = hidden @ weight.T
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"))
    assert torch.equal(is_correct, logits.argmax(-1) == targets)


def test_log_probs_of_tokens_and_gradients_match_log_softmax() -> None:
    """Prevents a preference loss whose gradient mixes up the factors of different tokens."""
    hidden, weight, targets = random_inputs()
    # Of both signs and several sizes, as the answers of several pairs have.
    factors = torch.randn(len(targets), generator=torch.Generator().manual_seed(1)) ** 3
    x, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    exact = F.log_softmax(x @ w.T, -1).gather(1, targets.unsqueeze(1)).squeeze(1)
    (exact * factors).sum().backward()
    x32, w32 = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    log_probs = token_log_probs(x32, w32, targets)
    (log_probs * factors).sum().backward()
    assert x32.grad is not None and w32.grad is not None
    torch.testing.assert_close(log_probs.double(), exact, rtol=1e-6, atol=1e-5)
    for gradient, expected in ((x32.grad, x.grad), (w32.grad, w.grad)):
        assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()


def test_log_probs_of_tokens_need_the_logits_of_one_chunk() -> None:
    """Prevents memory that grows with the batch times the vocabulary, backward pass included."""
    chunk, vocabulary = loss_chunk_size(torch.device("cpu")), 700
    hidden, weight, targets = random_inputs(4 * chunk, 32, vocabulary)
    x, w = hidden.requires_grad_(), weight.requires_grad_()
    with TensorRecorder() as recorder:
        token_log_probs(x, w, targets).sum().backward()
    assert recorder.largest_output <= chunk * vocabulary


def test_frozen_head_gets_no_gradient_from_log_probs() -> None:
    """Prevents a matrix of the head's size, and its arithmetic, where an adapter trains."""
    hidden, weight, targets = random_inputs(100)
    x = hidden.requires_grad_()
    with TensorRecorder() as recorder:
        token_log_probs(x, weight, targets).sum().backward()
    assert not recorder.operations_returning(weight.shape) and x.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_log_probs_keep_small_gradients(dtype: torch.dtype) -> None:
    """Prevents gradients of answers that vanish in fp16, or a head that runs in fp32."""
    hidden, weight, targets = random_inputs(60)
    # So small are gradients of a mean over many pairs; fp16's smallest number is 6e-8.
    factors = torch.linspace(1e-7, 1e-6, len(targets))
    gradients = []
    for narrow in (False, True):
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=narrow):
            log_probs = token_log_probs(x, w, targets)
        assert log_probs.dtype == torch.float32
        (log_probs * factors).sum().backward()
        gradients.append((log_probs.detach(), x.grad, w.grad))
    for exact, result in zip(*gradients, strict=True):
        assert exact is not None and result is not None
        assert 0 < (result - exact).norm() < 0.02 * exact.norm()
