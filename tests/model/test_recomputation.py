"""Layers that are computed again, and feed-forward networks in tiles: the gradients stay."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from model import recomputation
from model.config import LlamaConfig
from model.llama import Llama, RotaryEmbedding
from model.lora import Adapter, adapter_tensors, attach_adapter, seed_dropout
from model.lora_options import LoraOptions
from model.nf4 import Nf4Linear, is_quantizable
from model.recomputation import Checkpointing, keep_attention, run_layer

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG = LlamaConfig(
    vocab_size=199,
    hidden_size=32,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
CHOICES = [
    Checkpointing(),
    Checkpointing(keeps_attention=True),
    Checkpointing(offloads=True),
    Checkpointing(keeps_attention=True, offloads=True),
]


def build_model(kind: str, dtype: torch.dtype = torch.float32) -> Llama:
    """Return a model whose weights train, or one with an adapter that has dropout."""
    model = Llama(CONFIG).init_weights(0).train()
    if kind == "qlora":
        for name, weight in list(model.named_parameters()):
            if is_quantizable(name):
                parent, _, child = name.removesuffix(".weight").rpartition(".")
                setattr(model.get_submodule(parent), child, Nf4Linear(weight))
    else:
        model.to(dtype)
        model.model.rotary = RotaryEmbedding(CONFIG)
    if kind != "full":
        options = LoraOptions(dropout=0.4, targets=SEVEN)
        attach_adapter(model, Adapter(options, Path(), ""), seed=1)
        for tensor in adapter_tensors(model).values():
            tensor.data = tensor.data.to(dtype)
            nn.init.normal_(tensor, std=0.1, generator=torch.Generator().manual_seed(2))
    return model


def gradients(model: Llama, checkpointing: Checkpointing | None, mask: Tensor | None = None) -> Any:
    """Return loss and gradients of two rows of 40 positions."""
    ids = torch.randint(199, (2, 40), generator=torch.Generator().manual_seed(0))
    model.model.set_checkpointing(checkpointing)
    seed_dropout(model, [5, 6])
    loss = model(ids, ids.roll(-1, 1), scale=1 / 80, mask=mask, loss_path="full")
    loss.backward()
    results = [loss.detach(), *(each.grad for each in model.parameters() if each.requires_grad)]
    model.zero_grad()
    return results


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("tile", [None, 16])
def test_gradients_are_those_of_the_plain_path(
    kind: str, choice: Checkpointing, tile: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch layers computed again with another mask or dropout, and tiles that lose a gradient."""
    # The second text of a row does not see the first.
    text = torch.arange(40) // 25
    mask = (text[:, None] == text) & torch.ones(40, 40, dtype=torch.bool).tril()
    mask = mask[None, None]
    model = build_model(kind)
    expected = gradients(model, None, mask)
    if tile is not None:
        monkeypatch.setattr(recomputation, "TILE_POSITIONS", tile)
    results = gradients(model, choice, mask)
    assert len(results) == len(expected) > 20
    for result, reference in zip(results, expected, strict=True):
        if tile is None:
            assert torch.equal(result, reference)
        else:
            torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-7)


class Counter(TorchDispatchMode):
    """Counts operations by the beginning of their names, and the largest tensor that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(func._schema.name)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result

    def count(self, name: str) -> int:
        """Return how many operations have a name in their names."""
        return sum(name in each for each in self.names)


@pytest.mark.parametrize("choice", CHOICES[:2], ids=str)
def test_attention_is_computed_once_if_its_result_is_kept(choice: Checkpointing) -> None:
    """Catch a choice that costs as much time as the one that keeps less."""
    model = build_model("full")
    with Counter() as counter:
        gradients(model, choice)
    forward = "flash_attention_for_cpu"
    num_forward = counter.count(forward) - counter.count(f"{forward}_backward")
    assert num_forward == CONFIG.num_hidden_layers * (1 if choice.keeps_attention else 2)


def test_tiles_hold_no_wide_vectors_of_a_row_and_are_computed_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catch tiles that exist all at once, or that are computed a third time for nothing."""
    # As many matrix products of a feed-forward network as in plain checkpointing.
    model = build_model("full")
    with Counter() as counter:
        gradients(model, Checkpointing())
    products = counter.count("silu")
    monkeypatch.setattr(recomputation, "TILE_POSITIONS", 10)
    monkeypatch.setattr("model.loss.loss_chunk_size", lambda device: 8)
    with Counter() as tiled:
        gradients(model, Checkpointing(), loss_path="chunked")
    assert tiled.count("silu") == 4 * products
    # Rows of 40, two of them, are 6,400 wide; the logits of 8 positions are 1,592.
    assert tiled.largest < 2 * 40 * CONFIG.intermediate_size <= counter.largest
    with torch.no_grad(), Counter() as scored:
        model.eval().model(torch.zeros(2, 40, dtype=torch.int64))
    assert scored.largest < 2 * 40 * CONFIG.intermediate_size


@pytest.mark.parametrize("tile", [None, 16])
def test_gradients_in_fp64_and_bf16(tile: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch a difference that fp32 hides, and tiles that forget autocast."""
