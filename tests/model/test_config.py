"""The shape of a model: what it refuses, what it costs, and its Hugging Face form."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from model.config import PRESETS, LlamaConfig, config_from_preset
from model.llama import Llama

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def small_config(**changes: Any) -> LlamaConfig:
    """Return a small shape with single fields changed."""
    shape = {
        "vocab_size": 199,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
    }
    return LlamaConfig(**{**shape, **changes})


def test_reference_config_has_documented_parameter_count() -> None:
    """Prevents plans and documents that rest on another size than the model has."""
    config = config_from_preset("babyllama-43m", 65_000)
    assert config.num_parameters == sum(p.numel() for p in Llama(config).parameters()) == 43_510_016
    head = 6 * 256 * 65_000
    body = 6 * 12 * (4 * 256**2 + 3 * 256 * 768)
    assert config.flops_per_token(512) == head + body + 6 * 12 * 256 * 512
    assert config.flops_per_token(512, include_head=False) == body + 6 * 12 * 256 * 512


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count_formula_matches_model(name: str) -> None:
    """Prevents memory and speed figures that rest on a wrong count."""
    with torch.device("meta"):
        model = Llama(config_from_preset(name, 1000))
    assert model.config.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 64 is not a multiple of num_attention_heads 5"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "must be even"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be positive"),
        ({"head_dim": 15}, "head_dim 15 .* must be even"),
        ({"rope_theta": 0.0}, "rope_theta must be positive"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "dynamic"),
        (
            {"rope_scaling": {"rope_type": "linear"}},
            "linear: factor must be a number above 0, not missing",
        ),
        (
            {"rope_scaling": {**LLAMA3, "factor": -1}},
            "llama3: factor must be a number above 0, not -1",
        ),
        *(
            ({"rope_scaling": {"rope_type": "linear", "factor": factor}}, "linear: factor must be ")
            for factor in (
                0,
                -1e30,
                1e-30,
                0.5,
                1e30,
                10**400,
                float("nan"),
                float("inf"),
                True,
                "4",
            )
        ),
        (
            {"rope_scaling": {**LLAMA3, "factor": 10_001}},
            "llama3: factor must be from 1 to 10,000, not 10001",
        ),
        (
            {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}},
            "low_freq_factor must be below high_freq_factor",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "yarn: original_max_position_embeddings must be a number above 0, not missing",
        ),
        *(
            ({"rope_scaling": {**YARN, key: value}}, f"yarn: {message}")
            for key, value, message in (
                ("factor", 0.5, "factor must be from 1 to 10,000, not 0.5"),
                ("attention_factor", 0, "attention_factor must be a number above 0, not 0"),
                ("mscale", "1", "mscale must be a number above 0, not 1"),
                ("truncate", None, "truncate must be true or false, not None"),
                ("beta_fast", 1, "beta_slow must be below beta_fast"),
            )
        ),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "yarn: rope_theta must be above 1, not 1.0"),
        (
            {
                **PRESETS["babyllama-3m"],
                "intermediate_size": 64,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
            "reading_heads needs the .* of babyllama-3m, and no rope_scaling",
        ),
    ],
)
def test_invalid_config_error_names_the_field(changes: dict[str, Any], message: str) -> None:
    """Prevents a shape error deep inside a matmul."""
    with pytest.raises(UserError, match=message):
        small_config(**changes)


@pytest.mark.parametrize(
    ("changes", "scaling", "theta"),
    [
        ({}, None, 10000.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 3e5}}, None, 3e5),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
            {"rope_type": "linear", "factor": 4.0},
            10000.0,
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 5e5},
            {"rope_type": "linear", "factor": 4.0},
            5e5,
        ),
        (
            {
                "rope_scaling": LLAMA3,
                "rope_theta": 5e5,
                "tie_word_embeddings": True,
                "head_dim": 32,
            },
            LLAMA3,
            5e5,
        ),
    ],
)
def test_hf_saved_config_loads_as_same_model(
    tmp_path: Path, changes: dict[str, Any], scaling: dict[str, Any] | None, theta: float
) -> None:
    """Prevents a base whose rotary base, scaling or head width is replaced by a default."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers import LlamaConfig as TheirConfig

    shape = small_config(num_key_value_heads=2).to_hf()
    their_shape = {
        key: shape[key]
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        )
    }
    # A copy, because transformers changes the dictionaries that it is given.
    TheirConfig(**their_shape, **deepcopy(changes)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in values and "rope_theta" not in values  # as transformers 5 writes it
    config = LlamaConfig.from_hf(values)
    assert (config.rope_scaling, config.rope_theta, config.rms_norm_eps) == (scaling, theta, 1e-6)
    ours = Llama(config).init_weights(3)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(199, (2, 100), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    # This project's own files load as the same config; their keys are those of transformers 4.
    assert LlamaConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_old_config_format_still_loads() -> None:
    """Prevents wrong defaults in files from before grouped-query attention, or with nulls."""
    values = {
        "model_type": "llama",
        "vocab_size": 199,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "rope_scaling": None,
        "head_dim": None,
    }
    config = LlamaConfig.from_hf(values)
    assert config == small_config(rms_norm_eps=1e-6, max_position_embeddings=2048)
    assert config.num_key_value_heads == 4


def test_multiple_stop_ids_round_trip_in_hf_format() -> None:
    """Prevents checkpoints that lose stop ids, and a new key in files that older versions read."""
    several = small_config(eos_token_id=5, more_stop_ids=(7, 2))
    assert (
        several.to_hf()["eos_token_id"] == [5, 7, 2]
        and LlamaConfig.from_hf(several.to_hf()) == several
    )
    assert (
        small_config().to_hf()["eos_token_id"] == 2
        and "more_stop_ids" not in small_config().to_hf()
    )


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({"model_type": "qwen3"}, ["model_type is 'qwen3'; only llama is supported"]),
        (
            # Bloom has its width in other keys.
            {"model_type": "bloom", "intermediate_size": None, "attention_bias": True},
            ["model_type is 'bloom'; only llama is supported"],
        ),
        (
            {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
            [
                "attention_bias is set; biases are not supported",
                "mlp_bias is set; biases are not supported",
                "hidden_act is 'gelu'; only silu is supported",
            ],
        ),
        (
            {"vocab_size": None, "hidden_size": None},
            ["vocab_size is missing", "hidden_size is missing"],
        ),
        (
            {
                "num_hidden_layers": "3",
                "rms_norm_eps": True,
                "tie_word_embeddings": 1,
                "eos_token_id": [2, "3"],
            },
            [
                "num_hidden_layers: '3' is not valid; expected a whole number",
                "rms_norm_eps: True is not valid; expected a number",
                "tie_word_embeddings: 1 is not valid; expected true or false",
                "eos_token_id: [2, '3'] is not valid; expected a whole number",
            ],
        ),
        ({"eos_token_id": [2, 2**63]}, ["eos_token_id holds invalid ids, or more than 64"]),
        ({"eos_token_id": list(range(65))}, ["eos_token_id holds invalid ids, or more than 64"]),
        (
            {"rope_parameters": 4},
            ["rope_parameters or rope_scaling: 4 is not valid; expected keys and values"],
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            ["rope_scaling 'dynamic' is not supported; linear, llama3 and yarn are"],
        ),
        (
            {"rope_parameters": {"rope_type": ["linear"]}},
            ["rope_scaling \"['linear']\" is not supported; linear, llama3 and yarn are"],
        ),
        (
            {"rope_scaling": {"type": "linear"}},
            ["rope_scaling linear: factor must be a number above 0, not missing"],
        ),
        (
            {"rope_parameters": {"rope_theta": "much"}},
            ["rope_theta: 'much' is not valid; expected a number"],
        ),
        (
            {"num_attention_heads": 5},
            [
                "hidden_size 64 is not a multiple of num_attention_heads 5",
                "num_attention_heads 5 is not a multiple of num_key_value_heads 4",
            ],
        ),
    ],
)
def test_unsupported_config_error_names_the_value(
    change: dict[str, Any], problems: list[str]
) -> None:
    """Prevents a Qwen that is loaded as a Llama, and a traceback for an incomplete file."""
    values = {"rope_scaling": None, **small_config(hidden_size=64).to_hf()}
    assert LlamaConfig.from_hf(values) == small_config()
    with pytest.raises(UserError) as error:
        LlamaConfig.from_hf({**values, **change, "head_dim": None}, "x.json")
    assert str(error.value).splitlines() == [f"x.json: {line}" for line in problems]


@pytest.mark.parametrize("values", [[1], "text", None])
def test_non_mapping_config_error_names_the_file(values: Any) -> None:
    """Prevents a traceback for a file that is JSON but not a config."""
    with pytest.raises(UserError, match=r"x\.json: expected keys and values"):
        LlamaConfig.from_hf(values, "x.json")
