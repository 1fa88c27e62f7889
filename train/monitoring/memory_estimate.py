"""Estimate the memory that a run needs, before it starts."""

from common.machine import resident_memory_bytes
from model.llama import Llama
from model.loss import loss_chunk_size
from train.autotune import ComputePlan, count_trainable_parameters

# Memory, as measured, of the modules that a process imports after the estimate: TensorBoard, and
# parts of PyTorch at the first step.
LAZY_IMPORT_BYTES = 120 << 20


def estimate_process_bytes(model: Llama, compute_plan: ComputePlan, length: int) -> int:
    """Return the peak memory of a run with rows of `length` tokens, in bytes.

    On a GPU this is GPU memory. On a CPU it is the memory of the whole process: training, whatever
    is resident now (interpreter, PyTorch, mapped files), and later imports. The buffers of an
    evaluation or a checkpoint are not counted.
    """
    training_bytes = estimate_training_bytes(model, compute_plan, length)
    if model.lm_head.weight.device.type != "cpu":
        return training_bytes
    # The model exists already, so its fp32 weights are in the resident memory too.
    weight_bytes = 4 * model.config.num_parameters
    return training_bytes - weight_bytes + resident_memory_bytes() + LAZY_IMPORT_BYTES


def estimate_training_bytes(model: Llama, compute_plan: ComputePlan, length: int) -> int:
    """Return the bytes that training needs on its device, with rows of `length` tokens.

    They are those of the fp32 weights, of the gradients and optimizer moments of the trainable
    weights, and of the activations and logits of one micro-batch.
    """
    config = model.config
    dtype_bytes = 4 if compute_plan.precision == "fp32" else 2
    tokens = compute_plan.micro_rows * length
    # Autograd saves about 10 vectors of the hidden size and 3 of the feed-forward size per token
    # and layer for the backward pass.
    activations_per_token = config.num_hidden_layers * (
        10 * config.hidden_size + 3 * config.intermediate_size
    )
    # Only the full path holds the logits of all tokens of a micro-batch at once.
    chunk = loss_chunk_size(model.lm_head.weight.device)
    logit_positions = tokens if compute_plan.loss_path == "full" else min(tokens, chunk)
    # In fp32 the chunked path writes the gradient over the logits. Otherwise the logits and their
    # fp32 gradient exist side by side.
    is_in_place = compute_plan.loss_path == "chunked" and dtype_bytes == 4
    logit_bytes = 4 if is_in_place else dtype_bytes + 4
    # Every micro-batch computes the gradient of the head, often the largest matrix, in a tensor of
    # its own, which autograd then adds to the sum over the earlier micro-batches.
    head_gradient_bytes = 0
    if model.lm_head.weight.requires_grad:
        head_gradient_bytes = 4 * config.vocab_size * config.hidden_size
    return (
        4 * config.num_parameters
        + 12 * count_trainable_parameters(model)  # gradients and two moments, fp32
        + dtype_bytes * tokens * activations_per_token
        + logit_bytes * logit_positions * config.vocab_size
        + head_gradient_bytes
    )
