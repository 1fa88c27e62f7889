"""The config of a run: that of its base, with the context that --model.rope_scaling asks for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from common.files import write_json
from model.checkpoint import weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from train.options import ModelOptions
from train.run.initial_checkpoint import InitialCheckpoint
from train.run.model_config import resolve_model_config

SHAPE: dict[str, Any] = {
    "vocab_size": 5000,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def write_base(folder: Path, trained_length: int, **changes: Any) -> InitialCheckpoint:
    """Write the config.json of a checkpoint that was trained with rows of a length."""
    folder.mkdir()
    config = LlamaConfig(**{**SHAPE, **changes})
    write_json(folder / "config.json", {**config.to_hf(), "trained_length": trained_length})
    return InitialCheckpoint(folder, "", folder)


def resolve(base: InitialCheckpoint, length: int, **options: Any) -> LlamaConfig:
    """Return the config of a run with rows of `length` tokens."""
    return resolve_model_config(ModelOptions(**options), base, None, length)  # type: ignore[arg-type]


def test_factor_is_relative_to_the_trained_length(tmp_path: Path) -> None:
    """Prevents a scaling from the 2,048 positions that the model could have had."""
    base = write_base(tmp_path / "base", trained_length=256)
    plain = resolve(base, 256)
    assert plain.rope_scaling is None and plain.max_position_embeddings == 2048
    config = resolve(base, 4096, rope_scaling="yarn")
    assert config == replace(
        plain,
        max_position_embeddings=4096,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 256,
        },
    )
    linear = resolve(base, 1024, rope_scaling="linear", rope_factor=32)
    assert linear.rope_scaling == {"rope_type": "linear", "factor": 32.0}
    assert linear.max_position_embeddings == 8192


def test_none_adds_positions_alone(tmp_path: Path) -> None:
    """Prevents an extension that is compared with itself."""
    base = write_base(tmp_path / "base", trained_length=256)
    config = resolve(base, 4096, rope_scaling="none")
    assert config == replace(resolve(base, 256), max_position_embeddings=4096)


@pytest.mark.parametrize("rope_type", ["none", "linear", "llama3", "yarn"])
@pytest.mark.parametrize("options", [{}, {"rope_factor": 12.7}], ids=["", "with a factor"])
def test_resumed_run_resolves_to_its_own_config(
    tmp_path: Path, rope_type: str, options: dict[str, Any]
) -> None:
    """Prevents a run that is refused, or scaled a second time, when it is resumed."""
    if rope_type == "none":
        options = {}
    base = write_base(tmp_path / "base", trained_length=300)
    config = resolve(base, 1000, rope_scaling=rope_type, **options)
    checkpoint = write_base(tmp_path / "step", 1000, **{**config.__dict__})
    resumed = replace(base, resume_folder=checkpoint.folder)
    assert resolve(resumed, 1000, rope_scaling=rope_type, **options) == config
    assert resolve(resumed, 1000) == config
    if rope_type != "none":
        # From the first length again, though the base has been trained with longer rows since.
        further = resolve(checkpoint, 6000, rope_scaling=rope_type)
        assert further == resolve(base, 6000, rope_scaling=rope_type)
        other = "linear" if rope_type == "yarn" else "yarn"
        assert resolve(resumed, 1000, rope_scaling=other, **options) != config


def test_scaled_reading_heads_train_on(tmp_path: Path) -> None:
    """Prevents heads that are fixed to frequencies which the model no longer has."""
    preset = {
        "hidden_size": 160,
        "intermediate_size": 448,
        "num_hidden_layers": 4,
        "rope_theta": 500_000.0,
        "reading_heads": True,
    }
    base = write_base(tmp_path / "base", 256, **preset)
    assert not resolve(base, 1024, rope_scaling="yarn").reading_heads
    assert resolve(base, 4096, rope_scaling="none").reading_heads


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("base_changes", "length", "options", "message"),
    [
        (
            {},
            4096,
            {},
            "max_position_embeddings 2048 is shorter than the 4096 tokens of a row or an "
            "evaluation window: use a shorter --sequence_length, or extend the context",
        ),
        (
            {},
            256,
            {"rope_scaling": "yarn"},
            "--model.rope_scaling yarn: 256 tokens are not more than the 256 that the model was "
            "trained with before",
        ),
        (
            {},
            2000,
            {"rope_scaling": "yarn", "rope_factor": 2},
            "--model.rope_factor 2: the context would be 512 tokens, fewer than the 2,000 of a row",
        ),
        (
            {"rope_scaling": YARN, "max_position_embeddings": 1024},
            512,
            {"rope_scaling": "linear"},
            "the context would be 512 tokens, and the model has 1,024 already",
        ),
        (
            {"rope_scaling": YARN, "max_position_embeddings": 1024},
            4096,
            {"rope_scaling": "none"},
            "was trained with yarn scaling, which its weights need",
        ),
        ({}, 10**9, {"rope_scaling": "none"}, "--model.rope_scaling none: .* GB of memory"),
    ],
)
def test_impossible_extension_is_one_line(
    tmp_path: Path,
    base_changes: dict[str, Any],
    length: int,
    options: dict[str, Any],
    message: str,
) -> None:
    """Prevents a run whose positions are not what its options say."""
    base = write_base(tmp_path / "base", trained_length=256, **base_changes)
    with pytest.raises(UserError, match=message) as refused:
        resolve(base, length, **options)
    assert "\n" not in str(refused.value)


def test_new_model_has_nothing_to_extend(tokenizer: Tokenizer) -> None:
    """Prevents an option without effect."""
    with pytest.raises(UserError, match=r"--model\.rope_scaling yarn: extends the context of"):
        resolve_model_config(
            ModelOptions(rope_scaling="yarn"), InitialCheckpoint(None, "", None), tokenizer, 512
        )


def test_adapter_brings_the_context_that_it_was_trained_with(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Prevents an adapter beside the frequencies of its base, and a context of the base's rows."""
    model = Llama(LlamaConfig(**{**SHAPE, "num_hidden_layers": 1})).init_weights(0)
    model.trained_context = 256
    base = write_base(tmp_path / "adapter", 1000, max_position_embeddings=1024, rope_scaling=YARN)
    assert base.folder is not None
    weights.apply_adapter_context(model, base.folder)
    assert model.config.rope_scaling == YARN and model.trained_context == 1000
    assert model.model.rotary.cos_sin.shape == (2, 1024, 8)
    # Comparisons only lower what is trained.
    weights.limit_trained_context(model, write_base(tmp_path / "short", 128).folder or Path())
    assert model.trained_context == 128 and model.config.rope_scaling == YARN
    assert torch.isfinite(model(torch.zeros(1, 1024, dtype=torch.int64))).all()
