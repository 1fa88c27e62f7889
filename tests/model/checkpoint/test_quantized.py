"""Checkpoints in 4 bits: the weights of their merged form, and the memory that loading takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import InsufficientMemoryError, UserError
from model import nf4
from model.checkpoint import locate, weights
from model.checkpoint.quantized import load_quantized, load_with_adapter
from model.config import LlamaConfig
from model.interop.gguf.export import export_gguf
from model.interop.hf_export import export_hf
from model.llama import Llama
from model.lora import Adapter, LoraOptions, adapter_tensors, attach_adapter
from model.lora_options import Merge
from model.tokenizer.base import Tokenizer
from tests.helpers.gguf_files import read_gguf_tensors

CPU = torch.device("cpu")
# Rows of 96 are no multiple of a block of 64.
SHAPE: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
TARGETS = ("q_proj", "o_proj", "down_proj")


def save_base(folder: Path, tokenizer: Tokenizer, **changes: Any) -> Path:
    """Write a checkpoint of random weights."""
    folder.mkdir()
    config = LlamaConfig(tokenizer.vocab_size, **{**SHAPE, **changes})
    weights.save_checkpoint(Llama(config).init_weights(0), tokenizer, folder)
    return folder


def save_adapter(folder: Path, base: Path, seed: int) -> Path:
    """Write a random adapter that was trained beside the 4-bit weights of `base`."""
    model = load_quantized(base, CPU, torch.float32)
    adapter = Adapter(
        LoraOptions(targets=TARGETS), base, locate.weights_sha256(base), quantize="nf4"
    )
    attach_adapter(model, adapter, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter_tensors(model).values():
            tensor.normal_(std=0.1, generator=generator)
    model.trained_context = 64
    folder.mkdir()
    weights.save_checkpoint(model, weights.load_tokenizer(base), folder)
    return folder


def load_attached(folder: Path, base: Path) -> Llama:
    """Return the 4-bit base with the adapter of a folder beside it, as in training."""
    model = load_quantized(base, CPU, torch.float32)
    options = LoraOptions(targets=TARGETS)
    attach_adapter(model, Adapter(options, base, "", quantize="nf4"), seed=9)
    weights.load_weights(model, folder)
    return model


def compute_logits(model: Llama) -> torch.Tensor:
    """Return the logits of fixed ids."""
    ids = torch.randint(300, 4000, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(ids)


@pytest.mark.parametrize("is_tied", [True, False])
def test_layers_are_quantized_and_the_rest_is_not(
    is_tied: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Catch a head in 4 bits, weights that can be trained, and another dtype than the given one."""
    base = save_base(tmp_path / "base", tokenizer, tie_word_embeddings=is_tied)
    model = load_quantized(base, CPU, torch.bfloat16)
    whole, _ = weights.load_checkpoint(base, CPU)
    assert sum(isinstance(module, nf4.Nf4Linear) for module in model.modules()) == 14
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16 and not parameter.requires_grad
        assert torch.equal(parameter, whole.get_parameter(name).bfloat16())
    assert not any(nf4.is_quantizable(name) for name, _ in model.named_parameters())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == is_tied
    assert torch.equal(model.model.rotary.cos_sin, whole.model.rotary.cos_sin)
    assert model.unused_ids == whole.unused_ids and not model.training


def test_merge_has_the_logits_of_training_and_the_original_has_others(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Catch a merged model that is not the one that was trained, and merges that are one."""
    base = save_base(tmp_path / "base", tokenizer)
    folder = save_adapter(tmp_path / "adapter", base, seed=1)
    trained = compute_logits(load_attached(folder, base))
    merged, _ = weights.load_checkpoint(folder, CPU)
    assert merged.trained_context == 64
    torch.testing.assert_close(compute_logits(merged), trained, rtol=1e-4, atol=1e-5)
    original, _ = weights.load_checkpoint(folder, CPU, merge="original")
    assert (compute_logits(original) - trained).abs().max() > 0.01
    # Without the adapter, the original weights are those of the base.
    name = "model.layers.0.self_attn.k_proj.weight"
    whole, _ = weights.load_checkpoint(base, CPU)
    assert torch.equal(original.get_parameter(name), whole.get_parameter(name))
    assert not torch.equal(merged.get_parameter(name), whole.get_parameter(name))


@pytest.mark.parametrize("merge", ["dequantized", "original"])
def test_exports_hold_the_merge_that_was_asked_for(
    merge: Merge, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Catch an export of the other weights, in either format."""
    base = save_base(tmp_path / "base", tokenizer)
    folder = save_adapter(tmp_path / "adapter", base, seed=1)
    expected, _ = weights.load_checkpoint(folder, CPU, merge=merge)
    export_hf(folder, tmp_path / "hf", merge=merge)
    exported, _ = weights.load_checkpoint(tmp_path / "hf", CPU)
    name = "model.layers.1.self_attn.o_proj.weight"
    assert torch.equal(exported.get_parameter(name), expected.get_parameter(name))
    export_gguf(folder, tmp_path / "model.gguf", dtype="f32", merge=merge)
    tensor = read_gguf_tensors(tmp_path / "model.gguf")["blk.1.attn_output.weight"]
    assert torch.equal(torch.from_numpy(tensor.data.copy()), expected.get_parameter(name))
    with pytest.raises(UserError, match=f"^--merge {merge}: .* has no adapter that was trained"):
        export_hf(base, tmp_path / "other", merge=merge)


def test_trained_model_loads_without_its_run(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Catch an adapter that is loaded with another rank, scale or length than in training."""
    base = save_base(tmp_path / "base", tokenizer)
    folder = save_adapter(tmp_path / "adapter", base, seed=1)
    model = load_with_adapter(folder, CPU, torch.float32)
    assert torch.equal(compute_logits(model), compute_logits(load_attached(folder, base)))
    assert model.trained_context == 64 and model.adapter is not None
    assert model.adapter.quantize == "nf4"
    (base / "model.safetensors").unlink()
    with pytest.raises(UserError, match="its base"):
        load_with_adapter(folder, CPU, torch.float32)


def test_second_adapter_stands_on_the_first(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Catch a base that is an adapter itself, and is loaded in 4 bits without it."""
    base = save_base(tmp_path / "base", tokenizer)
    first = save_adapter(tmp_path / "first", base, seed=1)
    second = save_adapter(tmp_path / "second", first, seed=2)
    trained = compute_logits(load_attached(second, first))
    merged, _ = weights.load_checkpoint(second, CPU)
    torch.testing.assert_close(compute_logits(merged), trained, rtol=1e-4, atol=1e-5)
    plain = compute_logits(load_attached(second, base))
    assert (plain - trained).abs().max() > 0.01


def _drop_tensor(folder: Path) -> str:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.other.weight"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return "does not fit its config.json: it lacks model.layers.1.mlp.up_proj.weight"


def _change_shape(folder: Path) -> str:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "intermediate_size": 192}))
    return "mlp.down_proj.weight is (96, 160), expected (96, 192)"


def _damage_value(folder: Path) -> str:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return "model.layers.1.mlp.up_proj.weight holds values that are not finite"


@pytest.mark.parametrize("damage", [_drop_tensor, _change_shape, _damage_value])
def test_damaged_weights_give_one_line(damage: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Catch a traceback, or noise, from files that the whole model would refuse."""
    base = save_base(tmp_path / "base", tokenizer)
    message = damage(base)
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        load_quantized(base, CPU, torch.float32)
    assert message in str(error.value)


def test_model_that_fits_in_4_bits_alone_is_loaded(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch a check that asks for the memory of fp32 weights, and one that asks for none."""
    base = save_base(tmp_path / "base", tokenizer, tie_word_embeddings=True)
    config = LlamaConfig.from_hf(json.loads((base / "config.json").read_text()))
    needed = nf4.num_bytes(config, 4) + 8 * config.max_position_embeddings * config.head_dim
    assert needed < 4 * config.num_parameters
    monkeypatch.setattr("model.config.total_memory_bytes", lambda: needed)
    load_quantized(base, CPU, torch.float32)
    with pytest.raises(InsufficientMemoryError):
        weights.load_checkpoint(base, CPU)
    monkeypatch.setattr("model.config.total_memory_bytes", lambda: needed - 1)
    with pytest.raises(InsufficientMemoryError):
        load_quantized(base, CPU, torch.float32)


_MEASURE = """
import sys
from pathlib import Path
import torch
from model.checkpoint.quantized import load_quantized
from model.nf4 import Nf4Linear
from common.machine import peak_memory_bytes
Nf4Linear(torch.ones(256, 256)).dequantize(torch.float32)  # what is imported at the first call
before = peak_memory_bytes()
model = load_quantized(Path(sys.argv[1]), torch.device("cpu"), torch.bfloat16)
print(peak_memory_bytes() - before)
"""


@pytest.mark.slow
def test_loading_holds_one_whole_tensor_at_a_time(
    root: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Catch a loader that holds, or maps, the 16-bit model: in a process, for 300 MB of weights."""
    shape = {
        "hidden_size": 1024,
        "intermediate_size": 2560,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    }
    config = LlamaConfig(tokenizer.vocab_size, **shape)
    base = tmp_path / "base"
    base.mkdir()
    model = Llama(config).bfloat16()
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter)
    weights.save_checkpoint(model, tokenizer, base)
    file_bytes = (base / "model.safetensors").stat().st_size
    assert file_bytes > 300e6
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(base)],
        cwd=root,
        # Freed blocks go back to the system at once: what the allocator keeps varies.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    needed = nf4.num_bytes(config, 2)
    # The largest matrix in bf16, in fp32, and in parts of that, for any number of layers.
    largest = config.hidden_size * config.intermediate_size
    assert int(done.stdout) < needed + 30 * largest < 0.6 * file_bytes
