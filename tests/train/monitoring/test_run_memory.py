"""The memory plan of a run that is about to start."""

from pathlib import Path

import torch

from data.batching.collate import Batch
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import Adapter, attach_adapter
from model.lora_options import LoraOptions
from model.nf4 import Nf4Linear
from train.autotune import ComputePlan
from train.monitoring.memory_plan import NF4_BITS
from train.monitoring.run_memory import count_targets, count_weight_bytes, describe_run
from train.options import DpoOptions, GrpoOptions, OptimizerOptions, PretrainOptions, SftOptions

CONFIG = LlamaConfig(
    64,
    hidden_size=32,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
)
PLAN = ComputePlan("cpu", "bf16", compile=False, micro_rows=2, loss_path="chunked")


def test_a_quantized_run_is_planned_as_one() -> None:
    """Prevents the memory of fp32 weights and full activations before a QLoRA run."""
    lora = LoraOptions(rank=4, dtype="bf16")
    model = Llama(CONFIG)
    attach_adapter(model, Adapter(lora, Path(), "", "nf4"), seed=0)
    options = SftOptions(
        adapter="lora",
        quantize="nf4",
        lora=lora,
        gradient_checkpointing="layers",
        optimizer=OptimizerOptions(name="paged_adamw8bit").model_dump(),
    )
    workload = describe_run(model, PLAN, options)
    assert (workload.quantization, workload.checkpointing) == ("nf4", "layers")
    assert (workload.optimizer, workload.precision) == ("paged_adamw8bit", "bf16")
    assert workload.adapter_bytes == workload.weight_bytes == 2
    # 100 dev questions are answered in batches, with 48 ids each.
    assert (workload.answer_rows, workload.new_tokens) == (16, 48)
    plain = describe_run(Llama(CONFIG), PLAN, PretrainOptions())
    assert (plain.quantization, plain.checkpointing, plain.answer_rows) == (None, "none", 1)


def test_answers_that_are_drawn_and_a_second_model_are_planned() -> None:
    """Prevents a run on rewards whose KV cache, or whose base in memory, nobody has counted."""
    model = Llama(CONFIG)
    options = GrpoOptions(grpo={"prompts": 32, "samples": 8, "batch": 100, "kl": 0.1})  # type: ignore[arg-type]
    workload = describe_run(model, PLAN, options)
    assert (workload.sampled_rows, workload.samples, workload.has_reference) == (100, 8, True)
    # An adapter is switched off for the base.
    assert not describe_run(
        model, PLAN, options.model_copy(update={"adapter": "lora"})
    ).has_reference
    pairs = describe_run(model, PLAN, DpoOptions(data="pairs"))
    assert (pairs.sampled_rows, pairs.has_reference, pairs.new_tokens) == (0, False, 200)


def test_targets_are_those_of_the_fullest_micro_batch() -> None:
    """Prevents a plan for the mean, which the step with most targets exceeds."""
    ids = torch.zeros(3, 4, dtype=torch.int64)
    indices = torch.tensor([0, 5, 6, 7, 8, 9])  # one, three and two of each row
    batch = Batch(ids, targets=indices, loss_indices=indices)
    assert [count_targets(batch, rows) for rows in (1, 2, 3, 8)] == [3, 4, 6, 6]
    assert count_targets(Batch(ids, targets=ids.flatten()), 2) == 8


def test_quantized_weights_count_as_weights() -> None:
    """Prevents 4-bit weights that count as a part of the idle process, and again in the plan."""
    weight = torch.randn(256, 256)
    num_bytes = count_weight_bytes(Nf4Linear(weight))
    # The two tables of numbers are 1,088 bytes.
    assert num_bytes == NF4_BITS / 8 * weight.numel() + 1024 + 64 + 4
