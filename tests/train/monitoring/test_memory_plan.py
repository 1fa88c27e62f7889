"""The memory plan against what PyTorch allocates, and its arithmetic for a model of 33B."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.attention import blocks
from model.attention.segments import Segment, Segments
from model.config import LlamaConfig
from model.llama import Llama, RotaryEmbedding
from model.lora import Adapter, attach_adapter
from model.lora_options import LoraOptions
from model.nf4 import Nf4Linear, is_quantizable
from model.precision import DTYPES
from model.recomputation import Checkpointing
from train.autotune import autocast
from train.monitoring.memory_plan import (
    MemoryPlan,
    Workload,
    count_adapter_parameters,
    plan_memory,
    saved_tensors,
)
from train.optimizer import build_optimizers
from train.options import OptimizerOptions

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
CONFIG = LlamaConfig(vocab_size=96, **SHAPE)
WORKLOAD = Workload(CONFIG, length=16, micro_rows=3)
QLORA: dict[str, Any] = {"quantization": "nf4", "lora": LoraOptions(rank=4, targets=SEVEN)}
QLORA_33B = Workload(
    LlamaConfig(
        vocab_size=32_000,
        hidden_size=6656,
        intermediate_size=17_920,
        num_hidden_layers=60,
        num_attention_heads=52,
        num_key_value_heads=52,
    ),
    length=1024,
    micro_rows=1,
    micro_batches=16,
    precision="bf16",
    optimizer="adamw8bit",
    lora=LoraOptions(rank=64, targets=SEVEN, dtype="bf16"),
    quantization="nf4",
    checkpointing="layers",
    has_base=True,
    device="cuda",
)


def build_model(workload: Workload) -> Llama:
    model = Llama(workload.config).init_weights(0).train()
    if workload.quantization is not None:
        # As `load_quantized` makes it from a file.
        model.to(DTYPES[workload.precision])
        model.model.rotary = RotaryEmbedding(workload.config)
        for name, weight in list(model.named_parameters()):
            if is_quantizable(name):
                parent, _, child = name.removesuffix(".weight").rpartition(".")
                setattr(model.get_submodule(parent), child, Nf4Linear(weight))
    if workload.lora is not None:
        attach_adapter(model, Adapter(workload.lora, Path(), ""), seed=0)
    if workload.checkpointing != "none":
        keeps_attention = workload.checkpointing == "attention"
        model.model.set_checkpointing(Checkpointing(keeps_attention, workload.offloads))
    return model


def run_loss(model: Llama, workload: Workload) -> Tensor:
    """Return the loss of random ids, in rows of two examples if the workload is packed."""
    ids = torch.randint(workload.config.vocab_size, (workload.micro_rows, workload.length))
    segments = None
    if workload.is_packed:
        rows, length = workload.micro_rows, workload.length
        halves = ((0, length // 2), (length // 2, length))
        items = [Segment(row, start, stop) for row in range(rows) for start, stop in halves]
        segments = Segments(tuple(items), rows, length)
    with autocast(torch.device("cpu"), workload.precision):
        return model(ids, ids, mask=segments, loss_path=workload.loss_path)


def measure_saved_bytes(workload: Workload) -> int:
    """Return the bytes that autograd saves, weights excluded."""
    model = build_model(workload)
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    kept = []  # a freed tensor's address would be used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run_loss(model, workload)
    return sum(sizes.values())


def measure_peak_of_a_pass(workload: Workload) -> int:
    """Return the most bytes that are allocated at a time in a forward and a backward pass."""
    from torch.profiler import ProfilerActivity, profile

    model = build_model(workload)
    # The buffers of attention that an earlier test left would not be allocated here.
    blocks._workspace = blocks._Workspace()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run_loss(model, workload).backward()
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    peak = allocated = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def planned_peak_of_a_pass(workload: Workload) -> int:
    """Return the same of the plan."""
    plan = plan_memory(workload)
    transient = ("activations", "logits and loss", "gradients", "temporaries")
    return max(
        sum(plan.phases[name].get(part, 0) for part in transient)
        for name in ("loss", "backward of the last layer", "backward of the first layer")
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"config": replace(CONFIG, num_key_value_heads=2)},
        {"is_packed": True},
        {"precision": "bf16"},
        {"precision": "bf16", "is_packed": True},
        {"lora": LoraOptions(rank=4)},
        {"lora": LoraOptions(rank=4, targets=SEVEN)},
        {"lora": LoraOptions(rank=4), "precision": "bf16"},
        QLORA,
        {**QLORA, "precision": "bf16"},
        {**QLORA, "precision": "bf16", "lora": LoraOptions(rank=4, targets=SEVEN, dtype="bf16")},
    ],
    ids=str,
)
@pytest.mark.slow
def test_activations_of_a_layer_are_what_autograd_saves(changes: dict[str, Any]) -> None:
    """Prevents a plan that misses a tensor which a change of the model makes autograd keep."""
    workload = replace(WORKLOAD, **changes)
    deeper = replace(workload, config=replace(workload.config, num_hidden_layers=3))
    saved = measure_saved_bytes(deeper) - measure_saved_bytes(workload)
    assert sum(saved_tensors(workload).values()) == pytest.approx(saved, rel=0.01)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4, targets=("q_proj", "down_proj"))])
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.slow
def test_weights_gradients_and_states_are_those_of_a_step(
    optimizer: Any, lora: LoraOptions | None, is_tied: bool
) -> None:
    """Catch a state that is counted twice, a tied table, or gradients of frozen weights."""
    config = replace(CONFIG, tie_word_embeddings=is_tied)
    workload = replace(WORKLOAD, config=config, optimizer=optimizer, lora=lora)
    model = build_model(workload)
    run_loss(model, workload).backward()
    optimizers = build_optimizers(model, OptimizerOptions(name=optimizer))
    states = []
    for each in optimizers.values():
        each.step()
        for fields in each.state.values():
            states += [field for field in fields.values() if field.dim()]
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    parts = plan_memory(workload).phases["update"]
    rotary = model.model.rotary.cos_sin.nbytes
    weights = sum(weight.nbytes for weight in model.parameters())
    assert parts["parameters"] + parts.get("adapter", 0) == weights + rotary
    assert parts["gradients"] == sum(gradient.nbytes for gradient in gradients)
    assert parts["optimizer state"] == sum(state.nbytes for state in states)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"is_packed": True},
        {"precision": "bf16"},
        {"loss_path": "full"},
        {"lora": LoraOptions(rank=4)},
        {"checkpointing": "layers"},
        {"checkpointing": "layers", "lora": LoraOptions(rank=4, targets=SEVEN)},
        {"checkpointing": "attention"},
        QLORA,
        {**QLORA, "precision": "bf16"},
        {**QLORA, "precision": "bf16", "checkpointing": "layers"},
        {"config": LlamaConfig(vocab_size=4000, **SHAPE)},
        {"config": LlamaConfig(vocab_size=4000, **{**SHAPE, "tie_word_embeddings": True})},
    ],
    ids=str,
)
@pytest.mark.slow
def test_peak_of_a_pass_is_what_the_allocator_reports(changes: dict[str, Any]) -> None:
    """Prevents a phase whose temporaries are not counted, and one that counts what is freed."""
    workload = replace(WORKLOAD, length=64, micro_rows=8, **changes)
    peak = measure_peak_of_a_pass(workload)
    assert peak <= planned_peak_of_a_pass(workload) <= 1.15 * peak


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpointing": "layers"},
        {"checkpointing": "attention"},
        {"checkpointing": "attention", "precision": "bf16"},
        {"checkpointing": "layers", "lora": LoraOptions(rank=4, targets=SEVEN)},
        {**QLORA, "checkpointing": "attention", "precision": "bf16"},
    ],
    ids=str,
)
@pytest.mark.slow
def test_peak_of_a_long_row_is_what_the_allocator_reports(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a plan without the tiles of long rows, or without what is kept of attention."""
    for module in ("model.recomputation", "train.monitoring.memory_plan"):
        monkeypatch.setattr(f"{module}.TILE_POSITIONS", 16)
    shape = {"num_hidden_layers": 6, "intermediate_size": 160, "max_position_embeddings": 256}
    config = LlamaConfig(96, **{**SHAPE, **shape})
    workload = replace(WORKLOAD, config=config, length=256, micro_rows=8, **changes)
    peak = measure_peak_of_a_pass(workload)
    assert peak <= planned_peak_of_a_pass(workload) <= 1.15 * peak


def test_33b_with_qlora_fits_a_card_of_24_gib() -> None:
    """Catch a plan of Anima's recipe that a card of 24 GB could not hold (arithmetic by hand)."""
    plan = plan_memory(QLORA_33B)
    hidden, width, layers, vocabulary = 6656, 17_920, 60, 32_000
    matrices = layers * (4 * hidden**2 + 3 * hidden * width)
    adapter = layers * 64 * (4 * 2 * hidden + 3 * (hidden + width))
    parts = plan.breakdown
    assert count_adapter_parameters(QLORA_33B) == adapter == 487_587_840
    # 4.127 bits a weight, embedding and head in bf16.
    assert parts["parameters"] == pytest.approx(
        matrices * 4.127 / 8 + 2 * 2 * vocabulary * hidden, rel=0.001
    )
    assert parts["adapter"] == parts["gradients"] == 2 * adapter
    assert parts["optimizer state"] == pytest.approx(2 * adapter, rel=0.02)
    # The input of each block, and one block that is computed again.
    assert parts["activations"] > 2 * 1024 * layers * hidden
    assert 21.5e9 < plan.peak_bytes < 23 * 2**30
    # With adapter and moments in fp32 it does not fit.
    wide = replace(QLORA_33B, optimizer="adamw", lora=LoraOptions(rank=64, targets=SEVEN))
    assert plan_memory(wide).peak_bytes > 24 * 2**30


def test_bf16_copies_of_weights_are_there_in_the_update() -> None:
    """Prevents a plan below the peak: the copies stay in memory after the backward pass."""
    workload = replace(WORKLOAD, precision="bf16")
    phases = plan_memory(workload).phases
    assert phases["update"]["narrow weights"] == 2 * workload.config.num_matmul_parameters
    assert phases["scoring"]["narrow weights"] == phases["update"]["narrow weights"]


def test_peak_is_the_largest_phase_and_not_the_sum() -> None:
    """Prevents activations that are added to gradients, which come when they are gone."""
    plan = MemoryPlan({"a": {"process": 5, "x": 1}, "b": {"process": 5, "y": 3}})
    assert (plan.peak_phase, plan.peak_bytes, plan.tensor_bytes) == ("b", 8, 3)
    # With one micro-batch the weights need gradients only when the activations are almost gone.
    single, several = (
        plan_memory(replace(WORKLOAD, micro_batches=number)).phases["loss"] for number in (1, 2)
    )
    assert "gradients" not in single and several["gradients"] == 4 * CONFIG.num_parameters


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("lora", [None, LoraOptions()])
def test_more_work_never_needs_less_memory(device: Any, lora: LoraOptions | None) -> None:
    """Prevents a largest micro-batch that a search by halving misses."""
    base = replace(WORKLOAD, device=device, lora=lora)
    for changes in (
        {"micro_rows": 4},
        {"length": 17},
        {"micro_batches": 2},
        {"is_packed": True},
        {"config": replace(CONFIG, vocab_size=97)},
        {"config": replace(CONFIG, num_hidden_layers=3)},
        {"config": replace(CONFIG, intermediate_size=96)},
        {"optimizer": "adamw"},
    ):
        assert plan_memory(replace(base, **changes)).peak_bytes >= plan_memory(base).peak_bytes
    assert plan_memory(replace(base, targets=5)).peak_bytes <= plan_memory(base).peak_bytes
    if device == "cuda":
        # On a CPU the heap may waste what it saves.
        checkpointed = plan_memory(replace(base, checkpointing="layers"))
        assert checkpointed.peak_bytes <= plan_memory(base).peak_bytes
    states = [
        plan_memory(replace(base, optimizer=name)).phases["update"]["optimizer state"]
        for name in ("paged_adamw8bit", "adamw8bit", "adamw")
    ]
    assert states == sorted(states)


def test_frozen_weights_have_neither_gradients_nor_states() -> None:
    """Prevents an adapter that seems to need the memory of full training."""
    full = plan_memory(WORKLOAD).phases["update"]
    adapted = plan_memory(replace(WORKLOAD, lora=LoraOptions(rank=1))).phases["update"]
    # q and v of both layers, with matrices of 1 x 32 and 32 x 1.
    assert adapted["adapter"] == adapted["gradients"] == 4 * 2 * 2 * 64
    assert adapted["optimizer state"] == 2 * adapted["gradients"]
    assert full["gradients"] == 4 * CONFIG.num_parameters
