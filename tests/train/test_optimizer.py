"""The optimizers update as PyTorch's do, and every weight is in exactly one of them."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from tests.helpers.training import TINY_SHAPE
from train import checkpoint
from train.optimizer import (
    AdamW,
    AdamW8bit,
    FixedWeights,
    Muon,
    Optimizer,
    OptimizerOptions,
    build_optimizers,
    choose_dtype,
)

SHAPES = ((6, 4), (4, 7), (5, 5))


def test_muon_updates_hidden_matrices_and_adamw_the_rest() -> None:
    """Catch a weight in no optimizer or in two, and weight decay on norms."""
    model = Llama(LlamaConfig(99, num_key_value_heads=4, **TINY_SHAPE))
    optimizers = build_optimizers(model, OptimizerOptions())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    updated = {}
    undecayed = []
    for optimizer_name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group_names = [names[id(parameter)] for parameter in group["params"]]
            updated.setdefault(optimizer_name, []).extend(group_names)
            if group["weight_decay"] == 0:
                undecayed += group_names
    assert sorted(updated["muon"] + updated["adamw"]) == sorted(names.values())
    assert len(updated["muon"]) == 14 and all("_proj" in name for name in updated["muon"])
    assert len(undecayed) == 5 and all("norm" in name for name in undecayed)


@pytest.mark.parametrize("optimizer_class", [AdamW, Muon])
def test_fixed_parts_neither_move_nor_count(optimizer_class: type[Optimizer]) -> None:
    """Prevents weight decay of reading heads, and gradients of theirs that clip all others."""
    weight = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[2:4] = True
    fixed = FixedWeights({weight: mask})
    options = {"lr": 0.1, "weight_decay": 0.5, "betas": (0.9, 0.95), "momentum": 0.9}
    optimizer = optimizer_class([{"params": [weight], **options}])
    for _ in range(3):
        weight.grad = torch.ones(6, 4) + torch.eye(6, 4)
        fixed.zero_gradients()
        assert weight.grad[mask].norm() == 0 and weight.grad[~mask].min() >= 1
        optimizer.step()
        fixed.restore()
    assert torch.equal(weight[mask], before[mask]) and (weight != before)[~mask].all()


def train_beside(ours: type[Optimizer], theirs: Any, **options: Any) -> list[list[nn.Parameter]]:
    """Return the matrices that our and PyTorch's optimizer make of the same ones in five steps."""
    generator = torch.Generator().manual_seed(0)
    mine = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    other = [nn.Parameter(matrix.detach().clone()) for matrix in mine]
    optimizer, reference = ours([{"params": mine, **options}]), theirs(other, **options)
    for step in range(5):
        for each in (optimizer, reference):
            each.param_groups[0]["lr"] = options["lr"] / (1 + step)
        for matrix, copy in zip(mine, other, strict=True):
            matrix.grad = copy.grad = torch.randn(matrix.shape, generator=generator)
        # One matrix has no gradient, as a part of a model that a batch does not use.
        if step == 2:
            mine[0].grad = other[0].grad = None
        optimizer.step()
        reference.step()
    return [mine, other]


def test_adamw_equals_that_of_pytorch() -> None:
    """Catch another update than that of the paper, bit for bit."""
    options = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.2}
    fused = functools.partial(torch.optim.AdamW, fused=True)
    for mine, other in zip(*train_beside(AdamW, fused, **options), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_8bit_adamw_equals_that_of_bitsandbytes(dtype: torch.dtype) -> None:
    """Catch another update than that of bitsandbytes, bit for bit, in all forms of its state."""
    import bitsandbytes

    generator = torch.Generator().manual_seed(0)
    # Small; one block that is not full; two blocks.
    mine = [
        nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for shape in ((5, 7), (67, 63), (64, 128))
    ]
    other = [nn.Parameter(matrix.detach().clone()) for matrix in mine]
    options = {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.2}
    optimizer = AdamW8bit([{"params": mine, **options}], is_paged=False)
    reference = bitsandbytes.optim.AdamW8bit(other, **options)
    for _ in range(5):
        for matrix, copy in zip(mine, other, strict=True):
            matrix.grad = torch.randn(matrix.shape, generator=generator).to(dtype)
            copy.grad = matrix.grad.clone()
        optimizer.step()
        reference.step()
    for matrix, copy in zip(mine, other, strict=True):
        assert torch.equal(matrix, copy)
    moments = [optimizer.state[matrix]["state1"].dtype for matrix in mine]
    assert moments == [torch.float32, torch.uint8, torch.uint8]


def test_8bit_state_in_checkpoint_continues_bit_identically(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Catch moments, scales or step counts that a checkpoint does not hold, or rounds."""
    shape = {**TINY_SHAPE, "intermediate_size": 256, "num_key_value_heads": 4}
    config = LlamaConfig(tokenizer.vocab_size, **shape)
    models = [Llama(config).init_weights(0) for _ in range(2)]
    options = OptimizerOptions(name="paged_adamw8bit")
    both_optimizers = [build_optimizers(model, options) for model in models]
    generator = torch.Generator().manual_seed(0)

    def step(index: int, gradients: dict[str, torch.Tensor]) -> None:
        for name, parameter in models[index].named_parameters():
            parameter.grad = gradients[name].clone()
        for optimizer in both_optimizers[index].values():
            optimizer.step()

    shapes = {name: parameter.shape for name, parameter in models[0].named_parameters()}
    all_gradients = [
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for _ in range(4)
    ]
    for gradients in all_gradients[:2]:
        step(0, gradients)
    checkpoint.save(tmp_path, 2, 4, models[0], both_optimizers[0], {}, tokenizer, None)
    models[1].load_state_dict(models[0].state_dict())
    folder = tmp_path / "checkpoints" / "step-00000002"
    checkpoint.restore(folder, models[1], both_optimizers[1])
    for gradients in all_gradients[2:]:
        step(0, gradients)
        step(1, gradients)
    for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(mine, other)
    assert both_optimizers[0].keys() == {"adamw", "adamw8bit"}
    in_32_bits = both_optimizers[0]["adamw"].state.keys()
    assert models[0].model.embed_tokens.weight in in_32_bits
    assert models[0].lm_head.weight not in in_32_bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_equals_that_of_pytorch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch another update than that of PyTorch: bit for bit in bf16, its only dtype."""
    monkeypatch.setattr("train.optimizer.choose_dtype", lambda _: dtype)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    for mine, other in zip(*train_beside(Muon, torch.optim.Muon, **options), strict=True):
        if dtype == torch.bfloat16:
            assert torch.equal(mine, other)
        else:
            assert not torch.equal(mine, other)
            torch.testing.assert_close(mine, other, rtol=0, atol=0.01)


@pytest.mark.parametrize(("has_bf16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_muon_iterates_in_the_dtype_that_is_fast(
    has_bf16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch steps that take ten times as long on processors without products in bf16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    assert choose_dtype(torch.device("cpu")) == dtype
    assert choose_dtype(torch.device("cuda")) == torch.bfloat16
