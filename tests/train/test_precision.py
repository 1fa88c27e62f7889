"""Low precision trains like fp32; on a CPU, whose autocast follows the rules of a GPU."""

from typing import Any

import pytest
import torch

from model.attention.attend import attend
from model.config import LlamaConfig
from model.llama import Llama
from train.autotune import autocast

CPU = torch.device("cpu")


def build_model() -> Llama:
    """Return a small model whose attention is far from uniform."""
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
            parameter.mul_(3.0)
    return model


def random_ids(rows: int = 4) -> torch.Tensor:
    """Return ids[rows, 64]."""
    return torch.randint(199, (rows, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("has_gradients", [True, False])
def test_attention_inputs_share_one_low_precision_dtype(
    has_gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch fp32 angles that widen queries and keys but not values, in both rotary functions."""
    dtypes = []

    def record_dtypes(*qkv_and_mask: Any) -> torch.Tensor:
        dtypes.append({tensor.dtype for tensor in qkv_and_mask[:3]})
        return attend(*qkv_and_mask)

    monkeypatch.setattr("model.llama.attend", record_dtypes)
    with torch.set_grad_enabled(has_gradients), autocast(CPU, "bf16"):
        build_model()(random_ids())
    assert dtypes == [{torch.bfloat16}] * 3


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("has_gradients", [True, False])
def test_low_precision_matches_fp32_within_rounding(precision: Any, has_gradients: bool) -> None:
    """Catch a step that computes something else in low precision, and gradients left in it."""
    model, ids = build_model(), random_ids()
    targets = ids.roll(-1, 1)
    losses = []
    gradients = []
    for each in ("fp32", precision):
        with torch.set_grad_enabled(has_gradients), autocast(CPU, each):
            loss = model(ids, targets, scale=1 / ids.numel())
        losses.append(loss.item())
        if has_gradients:
            tensors = torch.autograd.grad(loss, list(model.parameters()))
            assert all(tensor.dtype == torch.float32 for tensor in tensors)
            gradients.append(torch.cat([tensor.flatten() for tensor in tensors]))
    rounding = {"bf16": 2**-8, "fp16": 2**-11}[precision]
    assert losses[0] > 5
    assert 0 < abs(losses[1] - losses[0]) < rounding * losses[0]
    if has_gradients:
        # About ten units of rounding are usual; a missing term is many times more.
        assert (gradients[1] - gradients[0]).norm() < 16 * rounding * gradients[0].norm()


def test_packed_rows_are_masked_in_low_precision() -> None:
    """Catch a mask that is lost or refused when queries are bf16."""
    model, ids = build_model(), random_ids(1)
    segments = torch.arange(64).unsqueeze(0) // 20
    mask = (segments.unsqueeze(2) == segments.unsqueeze(1)).tril().unsqueeze(1)
    with torch.no_grad(), autocast(CPU, "bf16"):
        packed = model(ids, mask=mask)[:, 40:60]
        alone = model(ids[:, 40:60])
        unmasked = model(ids)[:, 40:60]

    def distance(logits: torch.Tensor) -> float:
        return float((logits - alone).float().norm() / alone.float().norm())

    assert distance(packed) < 0.02
    assert distance(unmasked) > 0.1
