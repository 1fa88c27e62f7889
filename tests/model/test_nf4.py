"""4-bit layers against bitsandbytes' own, and their sizes against the plan."""

import pytest
import torch
import torch.nn.functional as F

from model import nf4
from model.config import LlamaConfig
from model.llama import Llama
from model.nf4 import Nf4Linear, round_to_nf4


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return normal numbers of a fixed seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 200), (320, 192)])
def test_layer_equals_that_of_bitsandbytes(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Catch other blocks, a scale that is lost, and a gradient of other weights."""
    import bitsandbytes

    weight = random_tensor(*shape) * torch.linspace(0.01, 3, shape[0])[:, None]
    theirs = bitsandbytes.nn.Linear4bit(
        shape[1], shape[0], bias=False, compute_dtype=dtype, quant_type="nf4"
    )
    theirs.weight = bitsandbytes.nn.Params4bit(
        weight.clone(), compress_statistics=True, quant_type="nf4", module=theirs
    )
    theirs = theirs.to("cpu")  # quantizes
    results = []
    for layer in (Nf4Linear(weight), theirs):
        x = random_tensor(2, 7, shape[1], seed=1).to(dtype).requires_grad_()
        out = layer(x)
        out.backward(random_tensor(2, 7, shape[0], seed=2).to(dtype))
        results.append((out.detach(), x.grad))
    for mine, other in zip(*results, strict=True):
        assert mine.dtype == dtype and torch.equal(mine, other)


@pytest.mark.parametrize("shape", [(64, 64), (448, 160), (96, 96), (5, 96), (33, 7)])
def test_weights_are_the_nearest_quantiles(shape: tuple[int, int]) -> None:
    """Catch the wrong scales of bitsandbytes for rows that are no multiple of a block, on a CPU."""
    weight = random_tensor(*shape)
    layer = Nf4Linear(weight)
    count = weight.numel()
    blocks = F.pad(weight.flatten(), (0, -count % 64)).view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / largest)[..., None] - layer.code).abs().argmin(-1)
    expected = (layer.code[nearest] * largest).flatten()[:count].view(shape)
    # Double quantization changes a scale by up to some hundredths.
    difference = layer.dequantize(torch.float32) - expected
    assert difference.norm() < 0.02 * weight.norm()
    assert 0.07 < (expected - weight).norm() / weight.norm() < 0.11


def test_evaluation_computes_as_training_does() -> None:
    """Catch kernels that round activations to bf16 when no gradient is needed."""
    layer, x = Nf4Linear(random_tensor(96, 64)), random_tensor(5, 64)
    expected = layer(x.clone().requires_grad_()).detach()
    with torch.inference_mode():
        assert torch.equal(layer.eval()(x), expected)
    assert torch.equal(round_to_nf4(random_tensor(96, 64)), layer.dequantize(torch.float32))


def test_quantized_layer_takes_the_planned_bytes() -> None:
    """Catch single quantization, and a plan of another number of bits."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = Llama(config).init_weights(0)
    quantized, others = 0, 0
    for name, parameter in model.named_parameters():
        if nf4.is_quantizable(name):
            layer = Nf4Linear(parameter)
            # The two tables are the same for every layer.
            tables = layer.code.nbytes + layer.scales_code.nbytes
            quantized += sum(buffer.nbytes for buffer in layer.buffers()) - tables
        else:
            others += parameter.numel()
    assert quantized + 2 * others == pytest.approx(nf4.num_bytes(config, 2), rel=1e-3)
    assert len([name for name in model.state_dict() if nf4.is_quantizable(name)]) == 14
