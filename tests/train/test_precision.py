"""Narrow precision: what runs in it, and that it trains like fp32. On a CPU, whose autocast follows the same rules."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model.config import LlamaConfig
from model.llama import Llama
from train.autotune import autocast

CPU = torch.device("cpu")


def small() -> Llama:
    config = LlamaConfig(
        vocab_size=199,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    model = Llama(config).init_weights(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(
                3.0
            )  # at initialisation attention is nearly uniform whatever goes into it
    return model


def text(rows: int = 4) -> torch.Tensor:
    return torch.randint(199, (rows, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("gradients", [True, False])
def test_attention_inputs_share_one_low_precision_dtype(
    gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Angles in fp32 that widen queries and keys but not values: attention that is cast at every layer, or refused by the
    kernels for narrow types. With gradients the hand-written rotation runs, without them the plain one, as on a GPU."""
    seen = []

    def attention(*inputs: Any, **options: Any) -> torch.Tensor:
        seen.append({each.dtype for each in inputs})
        return original(*inputs, **options)

    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    with torch.set_grad_enabled(gradients), autocast(CPU, "bf16"):
        small()(text())
    assert seen == [{torch.bfloat16}] * 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("gradients", [True, False])
def test_low_precision_matches_fp32_within_rounding(precision: Any, gradients: bool) -> None:
    """A step in the narrow type that computes something else, or gradients that are left in it. Errors of some ten units of
    the type, in bf16 and in fp16 alike, are its rounding; a term that is missing is many times more."""
    model, ids = small(), text()
    targets = ids.roll(-1, 1)
    unit = {"bf16": 2**-8, "fp16": 2**-11}[precision]
    losses, norms = [], []
    for each in ("fp32", precision):
        with torch.set_grad_enabled(gradients), autocast(CPU, each):
            loss = model(ids, targets, scale=1 / ids.numel())
        losses.append(loss.item())
        if gradients:
            found = torch.autograd.grad(loss, list(model.parameters()))
            assert all(each.dtype == torch.float32 for each in found)
            norms.append(torch.cat([each.flatten() for each in found]))
    assert losses[0] > 5
    assert 0 < abs(losses[1] - losses[0]) < unit * losses[0]
    if gradients:
        assert (norms[1] - norms[0]).norm() < 16 * unit * norms[0].norm()


def test_packed_rows_are_masked_in_low_precision() -> None:
    """A mask that is lost or refused when queries are bf16."""
    model, ids = small(), text(1)
    segments = torch.arange(64).unsqueeze(0) // 20
    mask = (segments.unsqueeze(2) == segments.unsqueeze(1)).tril().unsqueeze(1)
    with torch.no_grad(), autocast(CPU, "bf16"):
        packed, alone = model(ids, mask=mask), model(ids[:, 40:60])
        unmasked = model(ids)
    near, far = (
        (each[:, 40:60] - alone).float().norm() / alone.float().norm()
        for each in (packed, unmasked)
    )
    assert near < 0.02 and far > 0.1
