"""Layers that are computed again, and feed-forward networks in tiles: the gradients stay."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from model import recomputation
from model.attention import blocks
from model.attention.segments import Segment, Segments
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import Adapter, adapter_tensors, attach_adapter, seed_dropout
from model.lora_options import LoraOptions
from model.loss import LossPath
from model.nf4 import Nf4Linear, is_quantizable
from model.precision import DTYPES, Precision
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
ROWS, LENGTH = 2, 40


def build_model(kind: str = "full") -> Llama:
    """Return a model all of whose weights train, or one with an adapter that has dropout."""
    model = Llama(CONFIG).init_weights(0).train()
    if kind == "qlora":
        for name, weight in list(model.named_parameters()):
            if is_quantizable(name):
                parent, _, child = name.removesuffix(".weight").rpartition(".")
                setattr(model.get_submodule(parent), child, Nf4Linear(weight))
    if kind != "full":
        options = LoraOptions(dropout=0.4, targets=SEVEN)
        attach_adapter(model, Adapter(options, Path(), ""), seed=1)
        for tensor in adapter_tensors(model).values():
            nn.init.normal_(tensor, std=0.1, generator=torch.Generator().manual_seed(2))
    return model


def compute_gradients(
    model: Llama,
    checkpointing: Checkpointing | None,
    *,
    mask: Tensor | Segments | None = None,
    loss_path: LossPath = "full",
    precision: Precision = "fp32",
) -> list[Tensor]:
    """Return the loss of random ids, and the gradients of the weights that train."""
    ids = torch.randint(199, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    model.model.set_checkpointing(checkpointing)
    seed_dropout(model, [5, 6])
    with torch.autocast("cpu", dtype=DTYPES[precision], enabled=precision != "fp32"):
        loss = model(ids, ids.roll(-1, 1), scale=1 / ids.numel(), mask=mask, loss_path=loss_path)
    loss.backward()
    trained = [weight.grad for weight in model.parameters() if weight.requires_grad]
    model.zero_grad()
    return [loss.detach(), *(gradient for gradient in trained if gradient is not None)]


def make_mask() -> Tensor:
    """Return the mask of rows of two texts, the second of which does not see the first."""
    text = torch.arange(LENGTH) // 25
    mask = (text[:, None] == text) & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    return mask[None, None]


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
@pytest.mark.parametrize("choice", [None, *CHOICES], ids=str)
@pytest.mark.parametrize("tile", [LENGTH, 16])
def test_gradients_are_those_of_the_plain_path(
    kind: str, choice: Checkpointing | None, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch layers computed again with another mask or dropout, and tiles that lose a gradient."""
    model = build_model(kind)
    expected = compute_gradients(model, None, mask=make_mask())
    monkeypatch.setattr(recomputation, "TILE_POSITIONS", tile)
    gradients = compute_gradients(model, choice, mask=make_mask())
    assert len(gradients) == len(expected) > 20
    for gradient, reference in zip(gradients, expected, strict=True):
        if tile == LENGTH or choice is None:
            assert torch.equal(gradient, reference)
        else:
            torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_tiles_are_as_exact_as_the_plain_path_in_bf16(
    choice: Checkpointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch tiles that are computed in fp32 again, and sums of their gradients in bf16."""
    model = build_model()
    exact = compute_gradients(model, None)
    plain = compute_gradients(model, None, precision="bf16")
    monkeypatch.setattr(recomputation, "TILE_POSITIONS", 8)
    tiled = compute_gradients(model, choice, precision="bf16")
    errors = [
        [float((each - reference).norm() / reference.norm()) for each in (gradient, rounded)]
        for gradient, rounded, reference in zip(tiled, plain, exact, strict=True)
    ]
    tiled_errors, plain_errors = zip(*errors, strict=True)
    assert 0.8 * sum(plain_errors) < sum(tiled_errors) < 1.2 * sum(plain_errors)


class Counter(TorchDispatchMode):
    """Records the names of operations, and the size of the largest tensor that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self._names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._names.append(func._schema.name)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result

    def count(self, name: str) -> int:
        """Return how many operations have `name` in their names."""
        return sum(name in each for each in self._names)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_attention_is_computed_once_if_its_result_is_kept(choice: Checkpointing) -> None:
    """Catch a choice that costs as much time as the one that keeps less."""
    model = build_model()
    with Counter() as counter:
        compute_gradients(model, choice)
    name = "flash_attention_for_cpu"
    num_forward = counter.count(name) - counter.count(f"{name}_backward")
    assert num_forward == CONFIG.num_hidden_layers * (1 if choice.keeps_attention else 2)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_strips_of_packed_rows_are_computed_once_if_kept(
    choice: Checkpointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch attention of packed rows that forgets to keep its result, and costs twice."""
    items = [Segment(row, *ends) for row in range(ROWS) for ends in ((0, 25), (25, LENGTH))]
    segments = Segments(tuple(items), ROWS, LENGTH)
    model = build_model()
    expected = compute_gradients(model, None, mask=segments)
    calls: list[int] = []
    original = blocks._attend

    def count(*arguments: Any) -> Any:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(blocks, "_attend", count)
    gradients = compute_gradients(model, choice, mask=segments)
    assert all(map(torch.equal, gradients, expected))
    assert len(calls) == CONFIG.num_hidden_layers * (1 if choice.keeps_attention else 2)


def test_tiles_are_never_wide_as_a_row_nor_computed_three_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catch tiles that exist all at once, and a result that is computed again for nothing."""
    model = build_model()
    width = ROWS * LENGTH * CONFIG.intermediate_size
    with Counter() as plain:
        compute_gradients(model, Checkpointing())
    monkeypatch.setattr(recomputation, "TILE_POSITIONS", LENGTH // 4)
    # The logits of all positions would be larger than the feed-forward network.
    monkeypatch.setattr("model.loss.loss_chunk_size", lambda device: 8)
    with Counter() as tiled:
        compute_gradients(model, Checkpointing(), loss_path="chunked")
    assert tiled.count("silu") == 4 * plain.count("silu")
    # The embedding has 6,368 numbers.
    assert tiled.largest < width + 1 > CONFIG.vocab_size * CONFIG.hidden_size
    with torch.no_grad(), Counter() as scored:
        model.eval().model(torch.zeros(ROWS, LENGTH, dtype=torch.int64))
    assert scored.largest < width


class OwnAttention(torch.autograd.Function):
    """An attention that is not PyTorch's, whose result `keep_attention` keeps."""

    num_calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        def attend() -> tuple[Tensor, Tensor]:
            OwnAttention.num_calls += 1
            return x.exp(), x.sum(-1)

        result, sums = keep_attention(attend)
        ctx.save_for_backward(result, sums)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        result, sums = ctx.saved_tensors
        return gradients[0] * result * sums.unsqueeze(-1)


@pytest.mark.parametrize("choice", [None, *CHOICES], ids=str)
def test_an_attention_of_our_own_is_kept(choice: Checkpointing | None) -> None:
    """Catch results that are kept in another order, or computed with each operation dispatched."""

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = OwnAttention.apply(OwnAttention.apply(x.sin()).cos())
            return result

    def gradient(choice: Checkpointing | None) -> Tensor:
        x = torch.linspace(0, 1, 12).view(3, 4).requires_grad_()
        layer = Layer()
        out = layer(x) if choice is None else run_layer(layer, x, checkpointing=choice)
        out.square().sum().backward()
        assert x.grad is not None
        return x.grad

    expected = gradient(None)
    OwnAttention.num_calls = 0
    assert torch.equal(gradient(choice), expected)
    is_kept = choice is None or choice.keeps_attention
    assert OwnAttention.num_calls == (2 if is_kept else 4)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_what_is_kept_is_freed_with_the_graph(
    choice: Checkpointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch kept tensors that live on in a cycle of references after the backward pass."""
    monkeypatch.setattr(recomputation, "TILE_POSITIONS", 16)
    model = build_model()
    expected = [None, *(weight.shape for weight in model.parameters())]
    compute_gradients(model, choice)
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(each, Tensor) for each in gc.get_objects())
        gradients = compute_gradients(model, choice)
        after = sum(isinstance(each, Tensor) for each in gc.get_objects())
    finally:
        gc.enable()
    assert len(gradients) == len(expected) == after - before


def test_dropout_in_tiles_without_seeds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a backward pass that drops other elements than the forward pass did."""
    monkeypatch.setattr(recomputation, "TILE_POSITIONS", 16)
    model = build_model("lora")
    model.model.set_checkpointing(Checkpointing())
    with pytest.raises(ValueError, match="call seed_dropout"):
        model(torch.zeros(ROWS, LENGTH, dtype=torch.int64))
