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
    fast, plain = FastModel(model), CachedLlama(model)
    caches = [KVCache(model.config, 2, 9, CPU, torch.float32) for _ in range(2)]
    ids = torch.tensor(random_prompts([7, 7]))
    padding = torch.tensor([0, 3])
    columns = torch.arange(9)

    def arguments(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        positions = (columns[start:stop] - padding[:, None]).clamp(0)
        causal = columns[:stop] <= columns[start:stop, None]
        is_visible = (columns[:stop] >= padding[:, None])[:, None, None]
        return positions, is_visible & causal | (columns[:stop] == columns[start:stop, None])

    # int8 products round activations to bf16, in the two models at other places.
    tolerance = 0.1 if quantized else 2e-5
    for start, stop in ((0, 7), (7, 8), (8, 9)):
        positions, mask = arguments(start, stop)
        if start == 0:
            both = [
                each.prefill(ids, cache, positions, mask)
                for each, cache in zip((fast, plain), caches, strict=True)
            ]
        else:
            both = [
                each.decode_step(ids[:, stop - 7], cache, positions[:, 0], mask)
                for each, cache in zip((fast, plain), caches, strict=True)
            ]
        torch.testing.assert_close(*both, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        caches[0].values, caches[1].values, rtol=5 * tolerance, atol=5 * tolerance
    )


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


@BOTH
def test_several_positions_behind_a_filled_cache_need_a_mask(build: Any) -> None:
    """Prevents positions that attend to their own future, because the mask is misaligned."""
    model = random_llama()
    cache = KVCache(model.config, 1, 10, CPU, torch.float32)
    inference = build(model)
    inference.prefill(torch.tensor([[1, 2, 3]]), cache)
    with pytest.raises(ValueError, match="need a mask"):
        inference.prefill(torch.tensor([[4, 5]]), cache)


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
