"""Estimate the memory that a run needs, before it starts."""

from common.machine import resident_memory_bytes
from model.llama import Llama
from model.loss import loss_chunk_size
from train.autotune import ComputePlan, count_trainable_parameters

# What a process loads once training has begun: TensorBoard, and parts of torch at the first step
# (measured).
LAZY_IMPORT_BYTES = 120 << 20


def estimate_process_bytes(model: Llama, compute_plan: ComputePlan, length: int) -> int:
    """Return the peak memory of a run in bytes: of the GPU, or on a CPU of the whole process.

    A CPU process holds, besides the memory of training, what is resident now (interpreter, torch,
    mapped files, and the weights, which are counted once) and what is imported later. The buffers
    of an evaluation or a checkpoint are not counted.
    """
    needed = estimate_training_bytes(model, compute_plan, length)
    if model.lm_head.weight.device.type != "cpu":
        return needed
    weights = 4 * model.config.num_parameters
    return needed - weights + resident_memory_bytes() + LAZY_IMPORT_BYTES


def estimate_training_bytes(model: Llama, compute_plan: ComputePlan, length: int) -> int:
    """Return the bytes of weights, gradients, moments, and of one micro-batch of rows of `length`.

    Frozen weights have neither gradients nor moments.
    """
    config = model.config
    dtype_bytes = 4 if compute_plan.precision == "fp32" else 2
    tokens = compute_plan.micro_rows * length
    # The backward pass keeps about 10 hidden and 3 feed-forward vectors per token and layer.
    activations_per_token = config.num_hidden_layers * (
        10 * config.hidden_size + 3 * config.intermediate_size
    )
    chunk = loss_chunk_size(model.lm_head.weight.device)
    logit_rows = tokens if compute_plan.loss_path == "full" else min(tokens, chunk)
    # In fp32 the chunked path writes the gradient over the logits; else both exist side by side.
    is_in_place = compute_plan.loss_path == "chunked" and dtype_bytes == 4
    logit_bytes = 4 if is_in_place else dtype_bytes + 4
    head_gradient = 0
    if model.lm_head.weight.requires_grad:
        head_gradient = 4 * config.vocab_size * config.hidden_size
    return (
        4 * config.num_parameters
        + 12 * count_trainable_parameters(model)  # gradients and two moments, fp32
        + dtype_bytes * tokens * activations_per_token
        + logit_bytes * logit_rows * config.vocab_size
        + head_gradient
    )
