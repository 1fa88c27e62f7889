"""Number formats of a model's weights and activations."""

from typing import Literal, cast

import torch

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def resolve_precision(device: torch.device, requested: str) -> Precision:
    """Return the requested precision, or for "auto" the best one on this device.

    That is bf16 on GPUs that compute in it (Ampere and later), fp16 on older ones, and fp32 on a
    CPU.
    """
    if requested != "auto":
        return cast(Precision, requested)
    if device.type != "cuda":
        return "fp32"
    # Ampere is compute capability 8.0.
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
