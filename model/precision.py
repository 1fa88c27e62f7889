"""Number formats of a model's weights and activations."""

from typing import Literal, cast

import torch

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def resolve_precision(
    device: torch.device, requested: str, *, is_quantized: bool = False
) -> Precision:
    """Return the requested precision, or for "auto" the best one on this device.

    That is bf16 on GPUs that compute in it (Ampere and later), fp16 on older ones, and fp32 on a
    CPU. Beside 4-bit weights it is bf16 wherever the device computes in it, CPUs included, because
    memory is short then, and otherwise fp32: in fp16 QLoRA training diverges too often.
    """
    if requested != "auto":
        return cast(Precision, requested)
    if device.type != "cuda":
        has_bf16 = is_quantized and torch.cpu._is_avx512_bf16_supported()
        return "bf16" if has_bf16 else "fp32"
    # Ampere is compute capability 8.0.
    if torch.cuda.get_device_capability(device)[0] >= 8:
        return "bf16"
    return "fp32" if is_quantized else "fp16"
