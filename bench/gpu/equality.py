"""Checks that results agree: device with CPU, 16-bit types with fp32, compiled with eager."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.context import (
    CPU,
    UNIT_ROUNDOFF,
    Context,
    Gradients,
    best_precision,
    build_model,
    compare_step,
    gradient_errors,
    loss_and_gradients,
    packed_batch,
    random_ids,
    relative_error,
    text_batch,
)
from data.batching.collate import Batch
from model.config import LlamaConfig
from model.decode.batched_inference import start_batch
from model.llama import Llama
from model.lora import Adapter, LoraOptions, adapter_tensors, attach_adapter, seed_dropout
from model.loss import available_loss_paths
from model.precision import DTYPES, Precision

# Bounds of the relative errors of fp32 against fp32, which adds thousands of terms in a different
# order on each device. A bug is far above them.
FP32_OUTPUTS = 1e-4
FP32_BOUNDS = {"loss": 1e-5, "gradients": 3e-4, "worst": 3e-3}
# Bounds of a 16-bit type against fp32, in units of its rounding error (2 to 4 in bf16 on a CPU).
LOW_PRECISION_LOSS, LOW_PRECISION_GRADIENTS, LOW_PRECISION_WORST = 1.0, 12.0, 48.0


def low_precision_bounds(precision: Precision) -> dict[str, float]:
    """Return the bounds of `compare_step` for a 16-bit type against fp32."""
    rounding_error = UNIT_ROUNDOFF[precision]
    return {
        "loss": LOW_PRECISION_LOSS * rounding_error,
        "gradients": LOW_PRECISION_GRADIENTS * rounding_error,
        "worst": LOW_PRECISION_WORST * rounding_error,
    }


def losses(context: Context, name: str) -> None:
    """Compare logits, losses and gradients of all loss paths with the plain formula on the CPU.

    Everything is fp32.
    """
    config, report = context.model_config(name), context.report
    rows, length = (2, 32) if context.is_small else (4, 256)
    reference, model = build_model(config, CPU), build_model(config, context.device)
    ids = random_ids(config, rows, length)
    with torch.no_grad():
        logits = reference(ids)
        report.compare(
            "logits", relative_error(model(ids.to(context.device)), logits), FP32_OUTPUTS
        )
    # Half of the targets are the argmax, so that the number of correct ids is not zero.
    targets = ids.roll(-1, 1)
    targets[: rows // 2] = logits[: rows // 2].argmax(-1)
    batch = text_batch(ids, targets)
    expected_correct = torch.zeros((), dtype=torch.int64)
    expected = loss_and_gradients(reference, batch, loss_path="full", num_correct=expected_correct)
    for path in available_loss_paths():
        # The model adds to this counter.
        num_correct = torch.zeros((), dtype=torch.int64, device=context.device)
        compare_step(
            report,
            f"{path} loss",
            loss_and_gradients(model, batch, loss_path=path, num_correct=num_correct),
            expected,
            **FP32_BOUNDS,
        )
        # An id with a nearly equal logit may win on the other device.
        report.compare(
            f"{path} loss: difference of the accuracies",
            abs(int(num_correct) - int(expected_correct)) / ids.numel(),
            0.005,
        )
    # Fine-tuning has a loss at some positions only.
    loss_indices = torch.arange(0, ids.numel(), 3)
    sparse_batch = Batch(ids, batch.targets[loss_indices], loss_indices)
    expected = loss_and_gradients(reference, sparse_batch, loss_path="full")
    for path in available_loss_paths():
        compare_step(
            report,
            f"{path} loss at a third of the positions",
            loss_and_gradients(model, sparse_batch, loss_path=path),
            expected,
            **FP32_BOUNDS,
        )


def narrow(context: Context, name: str) -> None:
    """Compare bf16 and fp16 (with loss scaling) with fp32 on the device, for all loss paths."""
    config, report = context.model_config(name), context.report
    rows, length = (2, 32) if context.is_small else (4, 256)
    model, batch = build_model(config, context.device), text_batch(random_ids(config, rows, length))
    expected = loss_and_gradients(model, batch)
    for precision in context.low_precisions():
        for path in available_loss_paths(DTYPES[precision]):
            value = loss_and_gradients(model, batch, precision=precision, loss_path=path)
            compare_step(
                report,
                f"{precision}, {path} loss",
                value,
                expected,
                **low_precision_bounds(precision),
            )


def packed(context: Context) -> None:
    """Compare packed rows with the CPU in all types, and a packed row with its examples alone."""
    config, report = context.model_config("43m"), context.report
    rows, length = (
        ([[9, 5, 14], [20]], 32) if context.is_small else ([[90, 50, 100], [200], [3, 250]], 256)
    )
    reference, model = build_model(config, CPU), build_model(config, context.device)
    batch = packed_batch(config, rows, length)
    expected = loss_and_gradients(reference, batch, loss_path="full")
    compare_step(
        report,
        "packed, fp32, against the CPU",
        loss_and_gradients(model, batch),
        expected,
        **FP32_BOUNDS,
    )
    for precision in context.low_precisions():
        value = loss_and_gradients(model, batch, precision=precision)
        compare_step(
            report, f"packed, {precision}", value, expected, **low_precision_bounds(precision)
        )
    one_row = packed_batch(config, rows[:1], length)
    compare_step(
        report,
        "one packed row against its examples alone",
        loss_and_gradients(model, one_row),
        _one_example_at_a_time(model, one_row),
        **FP32_BOUNDS,
    )


def _one_example_at_a_time(model: Llama, batch: Batch) -> tuple[float, Gradients]:
    """Return mean loss and gradients of a batch of one packed row, unpacked into its examples."""
    assert batch.segments is not None and batch.loss_indices is not None
    total_loss = 0.0
    total_gradients: Gradients = {}
    for segment in batch.segments.items:
        positions = torch.arange(segment.start, segment.stop, device=batch.ids.device)
        is_in_segment = torch.isin(batch.loss_indices, positions)
        example = Batch(
            batch.ids[:, positions],
            batch.targets[is_in_segment],
            batch.loss_indices[is_in_segment] - segment.start,
        )
        loss, gradients = loss_and_gradients(model, example)
        # The mean over the row weights each example by its number of targets.
        weight = len(example.targets) / len(batch.targets)
        total_loss += weight * loss
        for name, gradient in gradients.items():
            previous = total_gradients.get(name, torch.zeros_like(gradient))
            total_gradients[name] = previous + weight * gradient
    return total_loss, total_gradients


def attention(context: Context) -> None:
    """Compare all attention kernels with the CPU: causal, packed, grouped heads.

    The CPU computes in fp32, the device in fp32 and the 16-bit types.
    """
    length, intermediate_size, num_layers = (16, 32, 1) if context.is_small else (256, 256, 2)
    # Kernels differ in the head sizes that they support, and in whether they take grouped heads.
    head_layouts: dict[str, dict[str, Any]] = {
        "heads of 32": {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4},
        "heads of 64, grouped": {
            "hidden_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    }
    # No fp16 on a CPU, which computes it slowly.
    low_precisions: list[Precision] = ["bf16"] if context.is_small else context.low_precisions()
    for layout, fields in head_layouts.items():
        config = LlamaConfig(
            vocab_size=500,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_layers,
            **fields,
        )
        reference, model = build_model(config, CPU), build_model(config, context.device)
        batches = {
            "causal": text_batch(random_ids(config, 2, length)),
            "packed": packed_batch(
                config, [[length // 2, length // 3], [length // 4, length // 2]], length
            ),
        }
        for kind, batch in batches.items():
            expected = loss_and_gradients(reference, batch, loss_path="full")
            for precision in ("fp32", *low_precisions):
                _compare_kernels(context, model, batch, expected, precision, f"{layout}, {kind}")


def _compare_kernels(
    context: Context,
    model: Llama,
    batch: Batch,
    expected: tuple[float, Gradients],
    precision: Precision,
    case: str,
) -> None:
    """Compare a step with `expected`, by the kernel that torch chooses and by every single one.

    `case` names the model and the batch in the report, which also notes a kernel that does not
    support them.
    """
    bounds = FP32_BOUNDS if precision == "fp32" else low_precision_bounds(precision)
    value = loss_and_gradients(model, batch, precision=precision)
    compare_step(context.report, f"torch's choice, {case}, {precision}", value, expected, **bounds)
    for kernel_name in ("MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION"):
        kernel = SDPBackend.__members__.get(kernel_name)
        if kernel is None:
            continue  # older versions of torch have no cuDNN backend
        try:
            with sdpa_kernel(kernel):
                value = loss_and_gradients(model, batch, precision=precision)
        except RuntimeError as error:
            # The error may have come in the backward pass, after some gradients.
            model.zero_grad(set_to_none=True)
            # The messages on CUDA and on the CPU when a kernel does not support the inputs.
            if "No available kernel" in str(error) or "No viable backend" in str(error):
                context.report.note(f"{kernel_name} does not support {case}, {precision}")
            else:
                # A failed condition instead of an exception, so that the other kernels are tried.
                reason = " ".join(str(error).split())[:200]
                context.report.require(
                    f"{kernel_name}, {case}, {precision}: {reason}", condition=False
                )
            continue
        compare_step(
            context.report, f"{kernel_name}, {case}, {precision}", value, expected, **bounds
        )


def compiled(context: Context, name: str) -> None:
    """Compare compiled with eager layers, in fp32 and a 16-bit type, on text and packed rows."""
    config, report = context.model_config(name), context.report
    rows, length, packed_sizes = (
        (2, 32, [[9, 5, 14]]) if context.is_small else (4, 256, [[90, 50, 100], [120, 3, 7]])
    )
    if context.is_small:
        config = replace(config, num_hidden_layers=1)
    eager, model = (build_model(config, context.device) for _ in range(2))
    compile_options: dict[str, Any] = {}
    if context.is_small:
        compile_options["backend"] = "eager"
        report.note(
            "on a CPU the layers are traced and not compiled: its compiler emits C++, that of a "
            "GPU emits Triton kernels"
        )
    model.model.compile(**compile_options)
    batches = {
        "text": text_batch(random_ids(config, rows, length)),
        "packed": packed_batch(config, packed_sizes, length),
        # Another batch size makes torch.compile specialize again, or use dynamic shapes.
        "text, half the rows": text_batch(random_ids(config, rows // 2, length)),
    }
    # On a CPU one kind tests the code of this check: each one is traced, which takes a second.
    if context.is_small:
        batches = {"packed": batches["packed"]}
    low_precision: Precision = "bf16" if context.is_small else best_precision(context.device)[0]
    for kind, batch in batches.items():
        expected = loss_and_gradients(eager, batch)
        compare_step(
            report, f"{kind}, fp32", loss_and_gradients(model, batch), expected, **FP32_BOUNDS
        )
        value = loss_and_gradients(model, batch, precision=low_precision)
        compare_step(
            report,
            f"{kind}, {low_precision} against eager fp32",
            value,
            expected,
            **low_precision_bounds(low_precision),
        )


def lora(context: Context) -> None:
    """Compare an adapter's loss, gradients and prefill with the CPU, and repeat its dropout."""
    config, report = context.model_config("43m"), context.report
    rows, length = (2, 32) if context.is_small else (4, 128)
    batch = text_batch(random_ids(config, rows, length))
    reference, model = (
        _model_with_adapter(config, device, dropout=0.0) for device in (CPU, context.device)
    )
    # The reference computes all logits at once, the model the default chunks of them.
    expected = loss_and_gradients(reference, batch, loss_path="full")
    value = loss_and_gradients(model, batch)
    compare_step(report, "adapter, fp32", value, expected, **FP32_BOUNDS)
    _, gradients = value
    report.require(
        "only the adapter has gradients", gradients.keys() == adapter_tensors(model).keys()
    )
    for precision in context.low_precisions():
        value = loss_and_gradients(model, batch, precision=precision)
        compare_step(
            report, f"adapter, {precision}", value, expected, **low_precision_bounds(precision)
        )
    prompts = random_ids(config, 2, 12).tolist()
    hidden = start_batch(model.eval(), prompts, max_new_tokens=1)[1]
    expected_hidden = start_batch(reference.eval(), prompts, max_new_tokens=1)[1]
    report.compare(
        "adapter, hidden states of a prefill", relative_error(hidden, expected_hidden), FP32_OUTPUTS
    )
    model_with_dropout = _model_with_adapter(config, context.device, dropout=0.3)

    def gradients_with_dropout(first_seed: int) -> Gradients:
        # A seed per row, as in training.
        seed_dropout(model_with_dropout, list(range(first_seed, first_seed + rows)))
        return loss_and_gradients(model_with_dropout, batch)[1]

    gradients = gradients_with_dropout(first_seed=0)
    same_seeds_error, _ = gradient_errors(gradients_with_dropout(first_seed=0), gradients)
    other_seeds_error, _ = gradient_errors(gradients_with_dropout(first_seed=rows), gradients)
    # Not bit by bit: a kernel may sum in another order each time.
    report.compare("dropout, the same seeds again", same_seeds_error, 1e-5)
    report.require("dropout, other seeds drop something else", other_seeds_error > 1e-3)


def _model_with_adapter(config: LlamaConfig, device: torch.device, *, dropout: float) -> Llama:
    """Return a model with an adapter of random weights: a new one has B = 0 and no effect."""
    model = build_model(config, device)
    options = LoraOptions(dropout=dropout, targets=("q_proj", "v_proj", "down_proj"))
    # The path and the digest of the base, which only saving an adapter needs.
    attach_adapter(model, Adapter(options, Path("none"), "none"), seed=2)
    model.train()
    # Drawn on the CPU, so that every device gets the same weights.
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in adapter_tensors(model).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
    return model
