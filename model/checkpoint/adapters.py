"""Read and write LoRA adapters in PEFT's format, and merge them into a model.

    adapter_config.json         rank, alpha, targets: PEFT's `LoraConfig`
    adapter_model.safetensors   the two matrices of every target, under PEFT's names
    base.json                   ours: where the base is, and the sha256 of its weights

A folder that PEFT wrote has no base.json; its base is `base_model_name_or_path`, unverified.
"""

import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import UserError
from common.files import read_json, write_json
from model.checkpoint.locate import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, BASE_FILE
from model.llama import Llama
from model.lora import adapter_tensors

PEFT_PREFIX = "base_model.model."
_TENSOR_NAME_REGEX = re.compile(
    re.escape(PEFT_PREFIX) + r"(?P<module>.+)\.(?P<part>lora_A|lora_B|base_layer)\.weight"
)
# PEFT options with which W + alpha / rank · B A is not the adapted weight.
_UNSUPPORTED_OPTIONS = ("use_dora", "use_qalora", "alpha_pattern", "alora_invocation_tokens")
# PEFT initializations that change the weights of the base.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq")
_SUPPORTED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# About the largest fp32 number; JSON can hold larger ones.
_MAX_NUMBER = 1e38


def save_adapter(model: Llama, folder: Path) -> None:
    """Write a model's adapter, and where its base is, into an existing folder."""
    adapter = model.adapter
    assert adapter is not None
    tensors = {
        PEFT_PREFIX + name: tensor.detach().contiguous()
        for name, tensor in adapter_tensors(model).items()
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
    options = adapter.options
    base = adapter.base.resolve()
    peft_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "inference_mode": True,
        "r": options.rank,
        "lora_alpha": options.alpha,
        "lora_dropout": options.dropout,
        "target_modules": list(options.targets),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }
    write_json(folder / ADAPTER_CONFIG_FILE, peft_config)
    # The relative path still works after the runs were moved together.
    base_info = {
        "path": str(base),
        "relative": os.path.relpath(base, folder.resolve()),
        "sha256": adapter.base_sha256,
    }
    write_json(folder / BASE_FILE, base_info)


def load_adapter(model: Llama, folder: Path) -> None:
    """Load a folder's adapter into the adapter that a model trains.

    Raises UserError if rank or targets differ.
    """
    file_tensors = _read_tensors(folder)
    model_tensors = adapter_tensors(model)
    expected_shapes = {PEFT_PREFIX + name: tensor.shape for name, tensor in model_tensors.items()}
    if {name: tensor.shape for name, tensor in file_tensors.items()} != expected_shapes:
        raise UserError(
            f"{folder / ADAPTER_WEIGHTS_FILE} does not fit: it has another rank or other targets"
        )
    with torch.no_grad():
        for name, tensor in model_tensors.items():
            tensor.copy_(file_tensors[PEFT_PREFIX + name])


@torch.no_grad()
def merge_adapter(model: Llama, folder: Path) -> None:
    """Add the adapter in a folder, ours or PEFT's, to the weights of a model without an adapter.

    Raises UserError if it is not plain LoRA, or does not fit the model.
    """
    adapter_config = read_json(folder / ADAPTER_CONFIG_FILE)
    _check_lora_config(adapter_config, folder / ADAPTER_CONFIG_FILE)
    file = folder / ADAPTER_WEIGHTS_FILE
    linears = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    if model.config.tie_word_embeddings:
        # Merging into a tied head would change the embedding, too.
        del linears["lm_head"]
    matrices_by_module: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _read_tensors(folder).items():
        match = _TENSOR_NAME_REGEX.fullmatch(key)
        if match is None or match["module"] not in linears:
            raise UserError(f"{file}: {key} is not a LoRA matrix of a projection of this model")
        matrices_by_module.setdefault(match["module"], {})[match["part"]] = tensor
    for name, matrices in matrices_by_module.items():
        _merge_matrices(linears[name].weight, matrices, adapter_config, f"{file}: {name}")


def _merge_matrices(
    weight: Tensor, matrices: dict[str, Tensor], adapter_config: dict[str, Any], label: str
) -> None:
    """Add alpha / rank · B A to `weight` in place; `label` begins error messages."""
    # PEFT stores the head itself beside an adapted head.
    base_weight = matrices.pop("base_layer", weight)
    shapes = {part: tuple(tensor.shape) for part, tensor in matrices.items()}
    rank = next(iter(shapes.get("lora_A", ())), 0)
    expected_shapes = {"lora_A": (rank, weight.shape[1]), "lora_B": (weight.shape[0], rank)}
    if not rank or base_weight.shape != weight.shape or shapes != expected_shapes:
        raise UserError(f"{label}: its matrices do not fit each other or a {tuple(weight.shape)}")
    divisor = rank**0.5 if adapter_config.get("use_rslora") else rank
    down = matrices["lora_A"].to(weight.device, weight.dtype)
    up = matrices["lora_B"].to(weight.device, weight.dtype)
    weight.copy_(base_weight).addmm_(up, down, alpha=adapter_config["lora_alpha"] / divisor)
    if not weight.isfinite().all():
        raise UserError(f"{label}: the merged weight overflows: the adapter is damaged")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    file = folder / ADAPTER_WEIGHTS_FILE
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    for key, tensor in tensors.items():
        if tensor.dtype not in _SUPPORTED_DTYPES or not tensor.isfinite().all():
            raise UserError(f"{file}: {key} holds values that are not finite: the file is damaged")
    return tensors


def _check_lora_config(values: Any, path: Path) -> None:
    """Raise UserError with a line for every option that is not plain LoRA."""
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, got {type(values).__name__}")
    problems = [
        f"{key} is set; only plain LoRA is supported"
        for key in _UNSUPPORTED_OPTIONS
        if values.get(key)
    ]
    alpha = values.get("lora_alpha")
    if values.get("peft_type") != "LORA":
        problems.append(f"peft_type is {values.get('peft_type')!r}; only LORA is supported")
    elif (
        isinstance(alpha, bool)
        or not isinstance(alpha, int | float)
        or not abs(alpha) < _MAX_NUMBER  # NaN is not below any number
    ):
        problems.append(f"lora_alpha is {str(alpha)[:40]}; expected a finite number")
    init = values.get("init_lora_weights")
    if init and str(init).lower().startswith(_BASE_CHANGING_INITS):
        problems.append(
            f"init_lora_weights is {init!r}, which changes the base; convert it to a plain LoRA "
            "with PEFT first"
        )
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
