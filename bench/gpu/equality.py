"""Checks of the device against the CPU in fp32: loss, gradients, attention, packing, LoRA ..."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.context import (
    CPU,
    UNITS,
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
from model.decode.batched_inference import InferenceBatch
from model.llama import Llama
from model.lora import Adapter, LoraOptions, adapter_tensors, attach_adapter, seed_dropout
from model.loss import available_loss_paths
from model.precision import DTYPES, Precision

# Bounds of fp32 against fp32: sums of thousands of terms in another order. A bug is far above.
FP32_LOGITS = 1e-4
FP32 = {"loss": 1e-5, "gradients": 3e-4, "worst": 3e-3}
# Bounds of a narrow type against fp32, in units of its rounding error (2 to 4 in bf16 on a CPU).
NARROW_LOSS, NARROW_GRADIENTS, NARROW_WORST = 1.0, 12.0, 48.0


def narrow_bounds(precision: Precision) -> dict[str, float]:
    """Return the bounds for a narrow type against fp32."""
    unit = UNITS[precision]
    return {
        "loss": NARROW_LOSS * unit,
        "gradients": NARROW_GRADIENTS * unit,
        "worst": NARROW_WORST * unit,
    }


def losses(context: Context, name: str) -> None:
    """Compare logits, all loss paths and gradients with the plain formula on the CPU, in fp32."""
    config, report = context.shape(name), context.report
    rows, length = (2, 32) if context.small else (4, 256)
    reference, model = build_model(config, CPU), build_model(config, context.device)
    ids = random_ids(config, rows, length)
    with torch.no_grad():
        logits = reference(ids)
        report.compare("logits", relative_error(model(ids.to(context.device)), logits), FP32_LOGITS)
    # Half of the targets are the argmax, so that the number of correct ids is not zero.
    targets = ids.roll(-1, 1)
    targets[: rows // 2] = logits[: rows // 2].argmax(-1)
    batch = text_batch(ids, targets)
    expected_hits = torch.zeros((), dtype=torch.int64)
    expected = loss_and_gradients(reference, batch, path="full", hits=expected_hits)
    for path in available_loss_paths():
        hits = torch.zeros((), dtype=torch.int64, device=context.device)
        compare_step(
            report,
            f"{path} loss",
            loss_and_gradients(model, batch, path=path, hits=hits),
            expected,
            **FP32,
        )
        # An id with a nearly equal logit may win on the other device.
        report.compare(
            f"{path} loss: share of other hits",
            abs(int(hits) - int(expected_hits)) / ids.numel(),
            0.005,
        )
    scored = torch.arange(0, ids.numel(), 3)
    some = Batch(ids, batch.targets[scored], scored)
    expected = loss_and_gradients(reference, some, path="full")
    for path in available_loss_paths():
        compare_step(
            report,
            f"{path} loss at a third of the positions",
            loss_and_gradients(model, some, path=path),
            expected,
            **FP32,
        )


def narrow(context: Context, name: str) -> None:
    """Compare bf16 and fp16 (with loss scaling) with fp32 on the device, for all loss paths."""
    config, report = context.shape(name), context.report
    rows, length = (2, 32) if context.small else (4, 256)
    model, batch = build_model(config, context.device), text_batch(random_ids(config, rows, length))
    expected = loss_and_gradients(model, batch)
    for precision in context.precisions():
        for path in available_loss_paths(DTYPES[precision]):
            value = loss_and_gradients(model, batch, precision=precision, path=path)
            compare_step(
                report, f"{precision}, {path} loss", value, expected, **narrow_bounds(precision)
            )


def packed(context: Context) -> None:
    """Compare a packed row with its examples alone, and packed rows with the CPU, in all types."""
    config, report = context.shape("43m"), context.report
    rows, length = (
        ([[9, 5, 14], [20]], 32) if context.small else ([[90, 50, 100], [200], [3, 250]], 256)
    )
    reference, model = build_model(config, CPU), build_model(config, context.device)
    batch = packed_batch(config, rows, length)
    expected = loss_and_gradients(reference, batch, path="full")
    compare_step(
        report, "packed, fp32, against the CPU", loss_and_gradients(model, batch), expected, **FP32
    )
    for precision in context.precisions():
        value = loss_and_gradients(model, batch, precision=precision)
        compare_step(report, f"packed, {precision}", value, expected, **narrow_bounds(precision))
    row = rows[0]
    together = loss_and_gradients(model, packed_batch(config, [row], length))
    alone = _alone(model, packed_batch(config, [row], length))
    compare_step(report, "one packed row against its examples alone", together, alone, **FP32)


def _alone(model: Llama, batch: Batch) -> tuple[float, Gradients]:
    """Return mean loss and gradients of a packed row, computed one example at a time."""
    assert batch.segments is not None and batch.loss_indices is not None
    sums: Gradients = {}
    total = 0.0
    for segment in range(1, int(batch.segments.max()) + 1):
        places = (batch.segments[0] == segment).nonzero().flatten()
        inside = torch.isin(batch.loss_indices, places)
        single = Batch(
            batch.ids[:, places], batch.targets[inside], batch.loss_indices[inside] - int(places[0])
        )
        share = len(single.targets) / len(batch.targets)
        loss, gradients = loss_and_gradients(model, single)
        total += share * loss
        for name, gradient in gradients.items():
            sums[name] = sums.get(name, torch.zeros_like(gradient)) + share * gradient
    return total, sums


def attention(context: Context) -> None:
    """Compare all attention kernels with the CPU: causal, packed, grouped heads, in fp32."""
    length = 32 if context.small else 256
    shapes: dict[str, dict[str, Any]] = {
        "heads of 32": {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4},
        "heads of 64, grouped": {
            "hidden_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    }
    # A CPU's fp16 is slow.
    precisions: list[Precision] = ["fp32", *(["bf16"] if context.small else context.precisions())]
    for shape, changes in shapes.items():
        config = LlamaConfig(vocab_size=500, intermediate_size=256, num_hidden_layers=2, **changes)
        reference, model = build_model(config, CPU), build_model(config, context.device)
        batches = {
            "causal": text_batch(random_ids(config, 2, length)),
            "packed": packed_batch(
                config, [[length // 2, length // 3], [length // 4, length // 2]], length
            ),
        }
        for kind, batch in batches.items():
            expected = loss_and_gradients(reference, batch, path="full")
            for precision in precisions:
                _compare_kernels(context, model, batch, expected, precision, f"{shape}, {kind}")


def _compare_kernels(
    context: Context,
    model: Llama,
    batch: Batch,
    expected: tuple[float, Gradients],
    precision: Precision,
    name: str,
) -> None:
    bounds = FP32 if precision == "fp32" else narrow_bounds(precision)
    value = loss_and_gradients(model, batch, precision=precision)
    compare_step(context.report, f"torch's choice, {name}, {precision}", value, expected, **bounds)
    kernels = ("MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION")
    for kernel in (
        SDPBackend.__members__[each] for each in kernels if each in SDPBackend.__members__
    ):
        try:
            with sdpa_kernel(kernel):
                value = loss_and_gradients(model, batch, precision=precision)
        except RuntimeError as error:
            model.zero_grad(set_to_none=True)
            # The messages of CUDA and of the CPU for unsupported inputs of a kernel.
            if "No available kernel" in str(error) or "No viable backend" in str(error):
                context.report.note(f"{kernel.name} does not take {name}, {precision}")
            else:
                # Go on with the other kernels.
                context.report.require(
                    f"{kernel.name}, {name}, {precision}: {' '.join(str(error).split())[:200]}",
                    False,
                )
            continue
        compare_step(
            context.report, f"{kernel.name}, {name}, {precision}", value, expected, **bounds
        )


def compiled(context: Context, name: str) -> None:
    """Compare compiled with eager layers, in fp32 and a narrow type, on text and packed rows."""
    config, report = context.shape(name), context.report
    rows, length, sizes = (
        (2, 32, [[9, 5, 14]]) if context.small else (4, 256, [[90, 50, 100], [120, 3, 7]])
    )
    if context.small:
        config = replace(config, num_hidden_layers=1)
    eager, model = (build_model(config, context.device) for _ in range(2))
    options: dict[str, Any] = {}
    if context.small:
        options["backend"] = "eager"
        report.note(
            "on a CPU the layers are traced and not compiled: its compiler emits C++, that of a "
            "GPU emits Triton kernels"
        )
    model.model.compile(**options)
    batches = {
        "text": text_batch(random_ids(config, rows, length)),
        "packed": packed_batch(config, sizes, length),
    }
    if not context.small:
        batches["text, half the rows"] = text_batch(random_ids(config, rows // 2, length))
    narrow_type: Precision = "bf16" if context.small else best_precision(context.device)[0]
    for kind, batch in batches.items():
        expected = loss_and_gradients(eager, batch)
        compare_step(report, f"{kind}, fp32", loss_and_gradients(model, batch), expected, **FP32)
        value = loss_and_gradients(model, batch, precision=narrow_type)
        compare_step(
            report,
            f"{kind}, {narrow_type} against eager fp32",
            value,
            expected,
            **narrow_bounds(narrow_type),
        )


def lora(context: Context) -> None:
    """Compare an adapter's loss, gradients and decode with the CPU, and its dropout with itself."""
    config, report = context.shape("43m"), context.report
    rows, length = (2, 32) if context.small else (4, 128)
    batch = text_batch(random_ids(config, rows, length))
    reference, model = (_adapted(config, device, dropout=0.0) for device in (CPU, context.device))
    expected = loss_and_gradients(reference, batch, path="full")
    value = loss_and_gradients(model, batch)
    compare_step(report, "adapter, fp32", value, expected, **FP32)
    report.require(
        "only the adapter has gradients", value[1].keys() == adapter_tensors(model).keys()
    )
    for precision in context.precisions():
        value = loss_and_gradients(model, batch, precision=precision)
        compare_step(report, f"adapter, {precision}", value, expected, **narrow_bounds(precision))
    prompts = random_ids(config, 2, 12).tolist()
    logits = InferenceBatch(model.eval(), prompts, max_new_tokens=1).prefill()
    expected_logits = InferenceBatch(reference.eval(), prompts, max_new_tokens=1).prefill()
    report.compare(
        "adapter, logits of a prefill", relative_error(logits, expected_logits), FP32_LOGITS
    )
    dropped = _adapted(config, context.device, dropout=0.3)
    results = []
    for seeds in (range(rows), range(rows), range(rows, 2 * rows)):
        seed_dropout(dropped, list(seeds))
        results.append(loss_and_gradients(dropped, batch))
    report.compare(
        "dropout, the same seeds again", gradient_errors(results[1][1], results[0][1])[0], 1e-5
    )
    report.require(
        "dropout, other seeds drop something else",
        gradient_errors(results[2][1], results[0][1])[0] > 1e-3,
    )


def _adapted(config: LlamaConfig, device: torch.device, *, dropout: float) -> Llama:
    """Return a model with an adapter that already changes its output: at its start B is zero."""
    model = build_model(config, device)
    options = LoraOptions(dropout=dropout, targets=("q_proj", "v_proj", "down_proj"))
    attach_adapter(model, Adapter(options, Path("none"), "none"), seed=2)
    model.train()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in adapter_tensors(model).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
    return model
