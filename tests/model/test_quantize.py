"""int8 weights stand for the weights they were made from, and a model with them for the model."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chat import load_model
from evaluate.scores.lm import score_stream
from model.checkpoint import weights
from model.config import LlamaConfig
from model.decode.batch_generate import generate_batch
from model.llama import Llama
from model.quantize import Int8Linear, int8_linear, quantize_int8, quantize_rows, weight_bytes
from model.tokenizer.base import Tokenizer


def small(**shape: Any) -> Llama:
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
    """Scales of columns taken for those of rows, a scale rounded after it was used, rows of zeros that become NaN."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 64, generator=generator) * torch.logspace(-6, 3, 300)[:, None]
    weight[7] = 0.0
    values, scale = quantize_rows(weight)
    assert (
        values.dtype == torch.int8
        and scale.dtype == torch.bfloat16
        and values.abs().amax(1)[8:].ge(126).all()
    )
    error = (values.float() * scale.float()[:, None] - weight).abs() / weight.abs().amax(
        1, keepdim=True
    ).clamp(min=1e-30)
    # Half a step, or, where the scale was rounded down by up to 2^-9, what the largest weight was cut by.
    assert error.max() <= 0.5 / 127 * (1 + 2**-8) + 1e-6


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 40, 20])
def test_quantized_matmul_matches_dequantized_weights(
    rows: int, width: int, dtype: torch.dtype
) -> None:
    """A kernel for few rows that does something else than the one for many, or reads beyond the end of a row."""
    generator = torch.Generator().manual_seed(0)
    x = torch.cat(
        [torch.randn(rows, width, generator=generator), torch.full((1, width), torch.nan)]
    ).to(dtype)[:-1]
    values, scale = quantize_rows(torch.randn(96, width, generator=generator))
    expected = x.double() @ (values.double() * scale.double()[:, None]).T
    found = int8_linear(x, values, scale)
    assert found.dtype == dtype
    # Activations and the result are rounded to bf16, each by 2^-8 of what is summed at most.
    allowed = 2**-7 * (x.double().abs() @ (values.double() * scale.double()[:, None]).abs().T)
    assert ((found.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("tied", [False, True])
def test_quantized_model_bounds_logit_error_at_quarter_memory(tied: bool) -> None:
    """A matrix that stayed in fp32, or one that was quantised wrongly and nobody sees it in the text."""
    model = small(tie_word_embeddings=tied)
    ids = torch.randint(3, 512, (4, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, bytes_before = model(ids), weight_bytes(model)
        quantize_int8(model)
        found = model(ids)
    assert (found - expected).norm() / expected.norm() < 0.02 and not torch.equal(found, expected)
    assert not any(isinstance(each, nn.Linear | nn.Embedding) for each in model.modules())
    assert weight_bytes(model) / bytes_before < 0.28
    assert tied == (model.model.embed_tokens.values.data_ptr() == model.lm_head.values.data_ptr())  # type: ignore[union-attr, operator]


def test_decoding_uses_quantized_model() -> None:
    """A decoder that fuses int8 matrices in another order, or reads their scales beside them."""
    model = small()
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
        lost = logits.amax(1) - logits.gather(1, text[0, len(prompt) :, None])[:, 0]
        # Rounded to bf16 here and there: the id taken is the likeliest or all but it.
        assert lost.max() < 0.02 * logits.std() and len(answer.ids) == 12


@pytest.mark.slow
def test_quantizing_trained_model_barely_changes_loss(tokenizer: Tokenizer) -> None:
    """Weights that have learned something are not evenly spread: a bound on random ones says nothing of them."""
    model = small(vocab_size=tokenizer.vocab_size).train()
    draw = np.random.default_rng(0)
    starts, steps = draw.integers(400, 450, (40, 16)), draw.integers(1, 4, (40, 16))
    texts = torch.from_numpy((starts[..., None] + steps[..., None] * np.arange(65)) % 50 + 400)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in texts:
        loss = model(batch[:, :-1], batch[:, 1:].flatten(), scale=1 / batch[:, 1:].numel())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    stream = texts[-4:].flatten().numpy()

    def measured() -> float:
        return score_stream(
            model.eval(), stream, tokenizer.characters_per_id, window=64
        ).compute_metrics()["loss"]

    before = measured()
    assert before < 0.8 * math.log(50)
    quantize_int8(model)
    assert measured() != before and abs(measured() - before) < 0.01 * before


def test_chat_reports_int8_weights(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """An option that is read and not used."""
    weights.save_checkpoint(small(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path)
    loaded = load_model.load_chat_model(tmp_path, torch.device("cpu"), "auto", "int8")
    assert isinstance(loaded.model.lm_head, Int8Linear) and "fp32，权重 int8" in loaded.description
    assert (
        "int8" not in load_model.load_chat_model(tmp_path, torch.device("cpu"), "auto").description
    )
