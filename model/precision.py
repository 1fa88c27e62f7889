"""Number formats of a model's weights and activations."""

import platform
from pathlib import Path
from typing import Literal, cast

import torch

from model.config import LlamaConfig

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# On a CPU that is fast in bf16, the smallest hidden size that is trained in it (docs/training.md).
# It is a constant, not a measurement, so that two runs of one command end in the same bits.
MIN_BF16_HIDDEN_SIZE = 256


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions for products in bf16.

    GPUs have them from Ampere on (compute capability 8.0), x86 CPUs with AVX512_BF16. Those with
    AMX have both.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return torch.cpu._is_avx512_bf16_supported()


def resolve_precision(
    device: torch.device,
    requested: str,
    *,
    trained: LlamaConfig | None = None,
    is_quantized: bool = False,
) -> Precision:
    """Return the requested precision, or for "auto" the best one on this device.

    Where the device multiplies bf16 that is bf16; on a CPU, only for the training of a model that
    is large enough to gain from it there. Elsewhere it is fp16 on a GPU and fp32 on a CPU. Beside
    4-bit weights it is bf16 on CPUs of any kind of model, because memory is short then, and
    otherwise fp32: in fp16 QLoRA training diverges too often. `trained` is the config of a model in
    training, None in inference.
    """
    if requested != "auto":
        return cast(Precision, requested)
    has_bf16 = multiplies_bf16(device)
    if device.type == "cuda":
        return "bf16" if has_bf16 else ("fp32" if is_quantized else "fp16")
    if is_quantized:
        return "bf16" if has_bf16 else "fp32"
    is_large = trained is not None and trained.hidden_size >= MIN_BF16_HIDDEN_SIZE
    return "bf16" if is_large and _is_faster_in_bf16() else "fp32"


def _is_faster_in_bf16() -> bool:
    """Return whether this CPU multiplies bf16 much faster than fp32.

    All with AMX do. With AVX512_BF16 alone, AMD's do (from Zen 4 on), and Intel's (Cooper Lake)
    are as fast in fp32.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and _is_amd()


def _is_amd() -> bool:
    """Return whether the CPU is one of AMD's."""
    cpu_info = Path("/proc/cpuinfo")
    description = cpu_info.read_text() if cpu_info.exists() else platform.processor()
    return "AuthenticAMD" in description
