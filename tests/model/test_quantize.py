"""int8 weights against the weights that they were made from."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chat import load_model
from evaluate.metrics.language_model import score_stream
from model.checkpoint import weights
from model.config import LlamaConfig
from model.decode.batch_generate import generate_batch
from model.decode.fast.fused_linear import LinearAdd, RMSNormLinear
from model.llama import Llama, RMSNorm
from model.quantize import Int8Linear, int8_linear, quantize_int8, quantize_rows
from model.tokenizer.base import Tokenizer


def small_model(**shape: Any) -> Llama:
    """Return a small model with random weights."""
    values = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        **shape,
    }
    return Llama(LlamaConfig(**values)).init_weights(0).eval()


def test_quantization_error_is_at_most_half_a_step() -> None:
    """Prevents scales per column, a scale that is rounded after use, and NaN for rows of zeros."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 64, generator=generator) * torch.logspace(-6, 3, 300)[:, None]
    weight[7] = 0.0
    values, scale = quantize_rows(weight)
    assert values.dtype == torch.int8 and scale.dtype == torch.bfloat16
    assert values.abs().amax(1)[8:].ge(126).all(), "the range of int8 is not used"
    error = (values.float() * scale.float()[:, None] - weight).abs()
    relative_error = error / weight.abs().amax(1, keepdim=True).clamp(min=1e-30)
    # Half a step, of a scale that is rounded by up to 2^-8.
    assert relative_error.max() <= 0.5 / 127 * (1 + 2**-8) + 1e-6


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 40, 20])
def test_quantized_matmul_matches_dequantized_weights(
    rows: int, width: int, dtype: torch.dtype
) -> None:
    """Prevents a kernel for few rows that differs from the one for many, or reads beyond a row."""
    generator = torch.Generator().manual_seed(0)
    # NaN in the memory behind the last row reveals a kernel that reads it.
    sentinel = torch.full((1, width), torch.nan)
    x = torch.cat([torch.randn(rows, width, generator=generator), sentinel]).to(dtype)[:-1]
    values, scale = quantize_rows(torch.randn(96, width, generator=generator))
    weight = values.double() * scale.double()[:, None]
    expected = x.double() @ weight.T
    out = int8_linear(x, values, scale)
    assert out.dtype == dtype
    # Activations and the result are rounded to bf16, by at most 2^-8 of the summands each.
    tolerance = 2**-7 * (x.double().abs() @ weight.abs().T)
    assert ((out.double() - expected).abs() <= tolerance).all()


def weight_bytes(model: Llama) -> int:
    """Return the bytes of a model's weights, shared tensors counted once."""
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@pytest.mark.parametrize("tied", [False, True])
def test_quantized_model_bounds_logit_error_at_quarter_memory(tied: bool) -> None:
    """Prevents a matrix that stays in fp32, and one whose quantization is too coarse."""
    model = small_model(tie_word_embeddings=tied)
    ids = torch.randint(3, 512, (4, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, bytes_before = model(ids), weight_bytes(model)
        quantize_int8(model)
        logits = model(ids)
    assert 0 < (logits - expected).norm() / expected.norm() < 0.02
    assert not any(isinstance(module, nn.Linear | nn.Embedding) for module in model.modules())
    assert weight_bytes(model) / bytes_before < 0.28
    embedding, head = model.model.embed_tokens, model.lm_head
    assert tied == (embedding.values.data_ptr() == head.values.data_ptr())  # type: ignore[union-attr, operator]


def test_decoding_uses_quantized_model() -> None:
    """Prevents a fast path that fuses int8 matrices or their scales in the wrong order."""
    model = small_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0 if parameter.dim() > 1 else 1.0)
    prompts = [[1, 5, 9, 200], [1, 77], [1, *range(40, 70)]]
    quantize_int8(model)
    for prompt, answer in zip(
        prompts, generate_batch(model, prompts, max_new_tokens=12), strict=True
    ):
        text = torch.tensor([prompt + answer.ids])
        with torch.no_grad():
            logits = model(text)[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, text[0, len(prompt) :, None])[:, 0]
        # Both round to bf16, at other places: the chosen id may be a very close second.
        assert (logits.amax(1) - chosen).max() < 0.02 * logits.std() and len(answer.ids) == 12


@pytest.mark.slow
def test_quantizing_trained_model_barely_changes_loss(tokenizer: Tokenizer) -> None:
    """Prevents a loss of quality on trained weights, less evenly spread than random ones."""
    model = small_model().train()
    draw = np.random.default_rng(0)
    starts, steps = draw.integers(400, 450, (40, 8)), draw.integers(1, 4, (40, 8))
    texts = torch.from_numpy((starts[..., None] + steps[..., None] * np.arange(65)) % 50 + 400)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in texts:
        loss = model(batch[:, :-1], batch[:, 1:].flatten(), scale=1 / batch[:, 1:].numel())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    stream = texts[-4:].flatten().numpy()

    characters_per_id = tokenizer.characters_per_id[: model.config.vocab_size]

    def evaluate() -> float:
        score = score_stream(model.eval(), stream, characters_per_id, window=64)
        return score.compute_metrics()["loss"]

    before = evaluate()
    assert before < 0.8 * math.log(50), "the model learned nothing"
    quantize_int8(model)
    assert 0 < abs(evaluate() - before) < 0.01 * before


@pytest.mark.slow
def test_chat_reports_int8_weights(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Prevents an option that is parsed but not used."""
    weights.save_checkpoint(small_model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path)
    loaded = load_model.load_chat_model(tmp_path, torch.device("cpu"), "auto", "int8")
    assert isinstance(loaded.model.lm_head, Int8Linear) and "fp32，int8 权重" in loaded.description
    plain = load_model.load_chat_model(tmp_path, torch.device("cpu"), "auto")
    assert "int8 权重" not in plain.description


def test_int8_layers_keep_their_bias() -> None:
    """Prevents a layer with a bias from losing it in int8, on the plain and on the fast path."""
    linear = nn.Linear(32, 32)
    with torch.no_grad():
        linear.bias.copy_(10 + torch.arange(32.0))
    layer = Int8Linear(*quantize_rows(linear.weight), torch.float32, linear.bias)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), linear(x), rtol=0, atol=0.1)
    added = LinearAdd(layer)
    torch.testing.assert_close(added(torch.zeros(3, 32), x), linear(x), rtol=0, atol=0.1)
    norm = RMSNorm(32, eps=1e-6)
    nn.init.ones_(norm.weight)
    projected = RMSNormLinear(norm, [layer, layer])(x)
    expected = torch.cat([linear(norm(x))] * 2, -1)
    torch.testing.assert_close(projected, expected, rtol=0, atol=0.1)
