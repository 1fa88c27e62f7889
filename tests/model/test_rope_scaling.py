"""Scaled rotary frequencies: the bits of transformers', and what its configs leave out."""

from typing import Any

import pytest
import torch

from model.config import LlamaConfig
from model.llama import Llama, RotaryEmbedding
from model.rope_scaling import attention_factor, make_rope_scaling, unscaled_length

YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 256}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 3.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 100,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "none": {},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn, odd factor": {**YARN, "factor": 7.3, "original_max_position_embeddings": 500},
    "yarn, factor 1": {**YARN, "factor": 1.0},
    "yarn, attention factor": {**YARN, "attention_factor": 1.5},
    "yarn, mscale": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.4},
    "yarn, one mscale": {**YARN, "mscale": 0.7},
    "yarn, betas": {**YARN, "beta_fast": 16, "beta_slow": 2},
    "yarn, not truncated": {**YARN, "truncate": False},
    "yarn, long original": {**YARN, "factor": 4.0, "original_max_position_embeddings": 10**9},
    "yarn, zeros and nulls": {**YARN, "beta_fast": 0, "mscale": 0, "attention_factor": None},
    "yarn, no original": {"rope_type": "yarn", "factor": 2.0},
}


def hf_config(rope: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the contents of a config.json with rotary parameters as transformers 5 writes them."""
    values = {
        "model_type": "llama",
        "vocab_size": 11,
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **rope},
    }
    return {**values, **changes}


def their_table(values: dict[str, Any]) -> torch.Tensor:
    """Return transformers' cosines and sines of all positions, fp32[2, T, d / 2]."""
    from transformers import LlamaConfig as TheirConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    entries = {key: value for key, value in values.items() if key != "model_type"}
    theirs = LlamaRotaryEmbedding(TheirConfig(**entries))
    positions = torch.arange(values["max_position_embeddings"])[None]
    cos, sin = theirs(torch.zeros(1), positions)
    # Their halves are equal.
    return torch.stack([cos[0], sin[0]])[..., : cos.shape[-1] // 2]


@pytest.mark.slow
@pytest.mark.parametrize("theta", [10000.0, 500_000.0])
@pytest.mark.parametrize("name", CONFIGS)
def test_table_has_the_bits_of_transformers(name: str, theta: float) -> None:
    """Prevents frequencies that are nearly right: at position 4,000 an ulp is visible."""
    values = hf_config({**CONFIGS[name], "rope_theta": theta})
    config = LlamaConfig.from_hf(values)
    assert torch.equal(RotaryEmbedding(config).cos_sin, their_table(values))
    # The same after an export, which writes rope_scaling outside of rope_parameters.
    assert LlamaConfig.from_hf(config.to_hf()) == config
    assert torch.equal(their_table({**config.to_hf(), "model_type": "llama"}), their_table(values))


@pytest.mark.slow
def test_original_length_beside_the_parameters_comes_first() -> None:
    """Prevents another original length than transformers takes, where a file names two."""
    values = hf_config(YARN, original_max_position_embeddings=777)
    config = LlamaConfig.from_hf(values)
    assert config.rope_scaling is not None
    assert config.rope_scaling["original_max_position_embeddings"] == 777
    assert torch.equal(RotaryEmbedding(config).cos_sin, their_table(values))


def test_made_scalings_are_valid_and_know_their_original_length() -> None:
    """Prevents a second extension whose factor is relative to the first one's length."""
    for rope_type in ("linear", "llama3", "yarn"):
        scaling = make_rope_scaling(rope_type, 1000 / 300, 300)
        config = LlamaConfig(vocab_size=9, max_position_embeddings=1000, rope_scaling=scaling)
        length = unscaled_length(config.rope_scaling, context=1000, trained_length=800)
        assert length == 300, rope_type
    assert unscaled_length(None, context=1000, trained_length=300) == 300


def test_only_yarn_raises_scores() -> None:
    """Prevents the temperature of one method in another."""
    assert attention_factor(None) == attention_factor(LLAMA3) == 1.0
    assert attention_factor(YARN) == pytest.approx(1.2772589)
    assert attention_factor({**YARN, "attention_factor": 2}) == 2.0


def test_set_context_rebuilds_the_table_and_nothing_else() -> None:
    """Prevents a model that decodes with the frequencies of its base."""
    small = {"vocab_size": 50, "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    plain = LlamaConfig(**small, num_key_value_heads=2, max_position_embeddings=64)
    longer = LlamaConfig(
        **small, num_key_value_heads=2, max_position_embeddings=256, rope_scaling=YARN
    )
    model = Llama(plain).init_weights(0).eval()
    expected = Llama(longer).init_weights(0).eval()
    table = model.model.rotary.cos_sin
    model.set_context(plain)
    assert model.model.rotary.cos_sin is table
    model.set_context(longer)
    assert model.config == longer
    ids = torch.randint(50, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(ids), expected(ids))
