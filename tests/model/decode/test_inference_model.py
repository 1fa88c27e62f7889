"""The fast path and its fall-back against `Llama`'s forward pass, and the choice of one."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from model.config import PRESETS, LlamaConfig, config_from_preset
from model.decode.batch_generate import generate_batch
from model.decode.fast.model import FastModel, is_supported
from model.decode.generate import generate
from model.decode.inference_model import CachedLlama, inference_model
from model.decode.kv_cache import KVCache
from model.decode.sampling import Sampling
from model.llama import Llama
from model.quantize import quantize_int8
from tests.helpers.random_llama import SHAPES, greedy_without_cache, random_llama, random_prompts

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("build", [FastModel, CachedLlama])


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_states_match_training_forward(shape: str, dtype: torch.dtype, build: Any) -> None:
    """Prevents a difference too small to change most ids: an epsilon, a scale, a leaking mask."""
    model = random_llama(**SHAPES[shape]).to(dtype)
    ids = torch.tensor(random_prompts([40]))
    cache = KVCache(model.config, 1, 64, CPU, dtype)
    with torch.no_grad():
        expected = model.model(ids)[0, 29:]
        expected_logits = model(ids)[0, 29:].float()
    inference = build(model)
    hidden = [inference.prefill(ids[:, :30], cache)]
    hidden += [inference.decode_step(ids[:, index], cache) for index in range(30, 33)]
    # Several positions at once, then a single one, then several again.
    hidden += [
        inference.extend(ids[0, start:stop], cache)
        for start, stop in ((33, 36), (36, 37), (37, 40))
    ]
    assert cache.length == 40
    # bf16 has 8 bits, and every operation of a layer rounds.
    tolerance = 2e-5 if dtype == torch.float32 else 0.15
    torch.testing.assert_close(torch.cat(hidden), expected, rtol=tolerance, atol=tolerance)
    logits = inference.head.logits(torch.cat(hidden))
    tolerance *= 10
    torch.testing.assert_close(logits, expected_logits, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_fast_model_matches_fall_back_on_padded_rows(shape: str, quantized: bool) -> None:
    """Prevents answers that change when an architecture enters or leaves the fast path."""
    model = random_llama(**SHAPES[shape])
    if quantized:
        quantize_int8(model)
    models = FastModel(model), CachedLlama(model)
    caches = [KVCache(model.config, 2, 9, CPU, torch.float32) for _ in range(2)]
    ids = torch.tensor(random_prompts([9, 9]))
    lengths = torch.tensor([7, 4])
    both = [
        each.prefill(ids[:, :7], cache, lengths - 1)
        for each, cache in zip(models, caches, strict=True)
    ]
    # int8 products round activations to bf16, in the two models at other places.
    tolerance = 0.1 if quantized else 2e-5
    torch.testing.assert_close(*both, rtol=tolerance, atol=tolerance)
    for step in range(2):
        positions = lengths + step
        mask = (torch.arange(8 + step) <= positions[:, None])[:, None, None]
        for cache in caches:
            cache.columns = positions
        both = [
            each.decode_step(ids[:, 7 + step], cache, positions, mask)
            for each, cache in zip(models, caches, strict=True)
        ]
        torch.testing.assert_close(*both, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        caches[0].values, caches[1].values, rtol=5 * tolerance, atol=5 * tolerance
    )


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
def test_prefill_in_chunks_matches_one_pass(
    shape: str, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents chunks that do not see the past, or see the future, and states of another chunk."""
    model = random_llama(**SHAPES[shape])
    inference, ids = build(model), torch.tensor(random_prompts([40, 40]))
    last = torch.tensor([17, 39])
    with torch.no_grad():
        expected = model.model(ids)[[0, 1], last]
    # 7 positions of both rows at once: 17 and 39 are in the middle and at the end of chunks.
    monkeypatch.setattr("model.decode.prefill_chunks.CHUNK_POSITIONS", 14)
    cache = KVCache(model.config, 2, 40, CPU, torch.float32)
    hidden = inference.prefill(ids, cache, last)
    assert cache.length == 40
    torch.testing.assert_close(hidden, expected, rtol=2e-5, atol=2e-5)


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
def test_narrow_cache_changes_states_by_its_rounding_alone(shape: str, build: Any) -> None:
    """Prevents a cache in bf16 that is not narrow, or a step that reads it as another type.

    The last steps write to columns of their own, as rows of different lengths do.
    """
    model = random_llama(**SHAPES[shape])
    model.kv_cache_dtype = torch.bfloat16
    inference, ids = build(model), torch.tensor(random_prompts([40, 40]))
    with torch.no_grad():
        expected = model.model(ids)[:, 30:]
    cache = model.new_cache(2, 40)
    assert cache.storage.dtype == torch.bfloat16
    hidden = [inference.prefill(ids[:, :31], cache)]
    for index in range(31, 40):
        positions, mask = torch.tensor([index, index]), None
        if index > 35:
            cache.columns = positions
            mask = (torch.arange(index + 1) <= positions[:, None])[:, None, None]
        hidden.append(inference.decode_step(ids[:, index], cache, positions, mask))
    error = (torch.stack(hidden, 1) - expected).abs().max()
    assert 1e-4 < error < 0.1
    single = model.new_cache(1, 40)
    inference.prefill(ids[:1, :31], single)
    extended = inference.extend(ids[0, 31:], single)
    torch.testing.assert_close(extended, expected[0, 1:], rtol=0.1, atol=0.1)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_ids_match_training_forward(
    shape: str, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents swapped projections, a wrong rotation, another head's keys, visible padding."""
    monkeypatch.setattr("model.decode.inference_model._build", build)
    model = random_llama(**SHAPES[shape])
    prompts = random_prompts([5, 23, 1, 40, 12])
    expected = [greedy_without_cache(model, prompt, 20) for prompt in prompts]
    assert len({tuple(ids) for ids in expected}) > 3
    batched = generate_batch(model, prompts, max_new_tokens=20, batch_size=5)
    assert [answer.ids for answer in batched] == expected
    greedy = Sampling(temperature=0.0)
    assert [list(generate(model, ids, greedy, max_new_tokens=20)) for ids in prompts] == expected


def test_every_present_config_takes_the_fast_path() -> None:
    """Prevents a new default or field that moves all models to the slow path without notice."""
    for shape in SHAPES.values():
        assert isinstance(inference_model(random_llama(**shape)), FastModel)
    for name in PRESETS:
        assert is_supported(config_from_preset(name, 300))


@dataclass(frozen=True)
class BiasedConfig(LlamaConfig):
    """A config with a field that the fast path has never heard of."""

    attention_bias: bool = False


@pytest.mark.slow
def test_config_fields_unknown_to_the_fast_path_fall_back() -> None:
    """Prevents wrong answers of an architecture that was added to `Llama` alone."""
    config = BiasedConfig(vocab_size=400, hidden_size=64, max_position_embeddings=64)
    assert is_supported(config)
    config = BiasedConfig(
        vocab_size=400, hidden_size=64, max_position_embeddings=64, attention_bias=True
    )
    assert not is_supported(config)
    model = Llama(config).init_weights(1).eval()
    for layer in model.model.layers:
        attention: Any = layer.self_attn
        for name in ("q_proj", "k_proj", "v_proj"):
            biased = nn.Linear(64, 64)
            with torch.no_grad():
                biased.weight.copy_(getattr(attention, name).weight)
                biased.bias.normal_(generator=torch.Generator().manual_seed(1))
            setattr(attention, name, biased)
    assert isinstance(inference_model(model), CachedLlama)
    prompts = random_prompts([5, 11])
    answers = generate_batch(model, prompts, max_new_tokens=10)
    assert [answer.ids for answer in answers] == [
        greedy_without_cache(model, prompt, 10) for prompt in prompts
    ]


def test_inference_model_is_rebuilt_when_weights_change() -> None:
    """Prevents answers of a model that was trained on since.

    Fused optimizers do not raise the version counters of the weights.
    """
    model = random_llama()
    prompts = random_prompts([5, 23])
    first = inference_model(model)
    assert inference_model(model) is first, "every batch would rearrange the weights again"
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0] += 1.0  # type: ignore[union-attr, operator]
    second = inference_model(model)
    assert second is not first
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.05, fused=True)
    generate_batch(model, prompts[:1], max_new_tokens=2)  # in training mode nothing is stored
    model(torch.tensor([[1, 2, 3]]), torch.tensor([2, 3, 4])).backward()
    optimizer.step()
    answer = generate_batch(model.eval(), prompts, max_new_tokens=12)[1]
    assert answer.ids == greedy_without_cache(model, prompts[1], 12)
    assert inference_model(quantize_int8(model)) is not second
