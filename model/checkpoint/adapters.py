"""Read and write LoRA adapters in PEFT's format, and merge them into a model.

    adapter_config.json         rank, alpha, targets: PEFT's `LoraConfig`
    adapter_model.safetensors   the two matrices of every target, under PEFT's names
    base.json                   not PEFT's: the folder of the base model, the sha256 of its weights,
                                and how they were quantized in training, if they were

A folder that PEFT wrote has no base.json; its base is `base_model_name_or_path`, unverified.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import UserError
from common.files import read_json, write_json
from model.checkpoint.locate import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, BASE_FILE
from model.llama import Llama
from model.lora import adapter_tensors
from model.lora_options import Quantization

PEFT_PREFIX = "base_model.model."
_TENSOR_NAME_REGEX = re.compile(
    re.escape(PEFT_PREFIX) + r"(?P<module>.+)\.(?P<part>lora_A|lora_B|base_layer)\.weight"
)
# PEFT options with which the adapted weight is not W + alpha / rank · B A.
_UNSUPPORTED_OPTIONS = ("use_dora", "use_qalora", "alpha_pattern", "alora_invocation_tokens")
# PEFT initializations that change the weights of the base.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq")
_SUPPORTED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Below the largest fp32 number, 3.4e38; JSON can hold larger ones.
_NUMBER_LIMIT = 1e38


def save_adapter(model: Llama, folder: Path) -> None:
    """Write the adapter of a model that trains one, and the path of its base, into a folder.

    The folder must exist.
    """
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
    # Both paths: the relative one still works after the runs were moved together.
    base_info = {
        "path": str(base),
        "relative": os.path.relpath(base, folder.resolve()),
        "sha256": adapter.base_sha256,
    }
    if adapter.quantize is not None:
        base_info["quantize"] = adapter.quantize
    write_json(folder / BASE_FILE, base_info)


def load_adapter(model: Llama, folder: Path) -> None:
    """Load the adapter of a folder into a model to which an adapter is attached.

    Raises UserError if their ranks or targets differ, or if the file is damaged.
    """
    file_tensors = _read_tensors(folder)
    model_tensors = adapter_tensors(model)
    expected_shapes = {PEFT_PREFIX + name: tensor.shape for name, tensor in model_tensors.items()}
    if {name: tensor.shape for name, tensor in file_tensors.items()} != expected_shapes:
        raise UserError(
            f"{folder / ADAPTER_WEIGHTS_FILE} does not fit: its rank or its targets differ"
        )
    with torch.no_grad():
        for name, tensor in model_tensors.items():
            tensor.copy_(file_tensors[PEFT_PREFIX + name])


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter in memory, to be merged into the weights of a model."""

    file: Path
    config: dict[str, Any]
    """The contents of `adapter_config.json`."""
    matrices: dict[str, dict[str, Tensor]]
    """The matrices of each module, by `lora_A` and `lora_B`."""

    @torch.no_grad()
    def merge(self, module: str, weight: Tensor) -> None:
        """Add alpha / rank · B A of a module to its weight, in place, if the module has them.

        Raises UserError if they do not fit.
        """
        if module in self.matrices:
            label = f"{self.file}: {module}"
            _merge_matrices(weight, dict(self.matrices[module]), self.config, label)


def read_adapter(model: Llama, folder: Path) -> StoredAdapter:
    """Return the adapter in a folder, for a model to which none is attached.

    The folder may be written by this project or by PEFT. Raises UserError if it is not plain LoRA,
    is damaged, or has matrices for other modules than the model's.
    """
    adapter_config = read_json(folder / ADAPTER_CONFIG_FILE)
    _check_lora_config(adapter_config, folder / ADAPTER_CONFIG_FILE)
    file = folder / ADAPTER_WEIGHTS_FILE
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if model.config.tie_word_embeddings:
        # Merging into a tied head would change the embedding, too.
        linears.remove("lm_head")
    matrices_by_module: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _read_tensors(folder).items():
        match = _TENSOR_NAME_REGEX.fullmatch(key)
        if match is None or match["module"] not in linears:
            raise UserError(f"{file}: {key} is not a LoRA matrix of a projection of this model")
        matrices_by_module.setdefault(match["module"], {})[match["part"]] = tensor
    return StoredAdapter(file, adapter_config, matrices_by_module)


def merge_adapter(model: Llama, folder: Path) -> None:
    """Add alpha / rank · B A of the adapter in a folder to the weights of a model, in place.

    See `read_adapter`.
    """
    adapter = read_adapter(model, folder)
    for name in adapter.matrices:
        adapter.merge(name, model.get_parameter(f"{name}.weight"))


def base_quantization(folder: Path) -> Quantization | None:
    """Return how the base of the adapter in a folder was quantized in training, if it was."""
    values = read_json(folder / BASE_FILE) if (folder / BASE_FILE).is_file() else {}
    quantization = values.get("quantize")
    if quantization not in (None, *get_args(Quantization)):
        raise UserError(
            f"{folder / BASE_FILE}: quantize is {str(quantization)[:40]!r}; this version knows "
            f"{', '.join(get_args(Quantization))}"
        )
    return quantization


def _merge_matrices(
    weight: Tensor, matrices: dict[str, Tensor], adapter_config: dict[str, Any], label: str
) -> None:
    """Add alpha / rank · B A to `weight` in place; `label` begins error messages.

    `matrices` are by `lora_A` and `lora_B`. Raises UserError if they do not fit.
    """
    # PEFT stores the LM head itself beside an adapted LM head.
    base_weight = matrices.pop("base_layer", weight)
    shapes = {part: tuple(tensor.shape) for part, tensor in matrices.items()}
    # A is [rank, in]; 0 if it is missing or has no dimensions.
    rank = next(iter(shapes.get("lora_A", ())), 0)
    expected_shapes = {"lora_A": (rank, weight.shape[1]), "lora_B": (weight.shape[0], rank)}
    if not rank or base_weight.shape != weight.shape or shapes != expected_shapes:
        raise UserError(f"{label}: its matrices do not fit each other or a {tuple(weight.shape)}")
    # Rank-stabilized LoRA (Kalajdzievski 2023) divides by sqrt(rank).
    divisor = rank**0.5 if adapter_config.get("use_rslora") else rank
    lora_a = matrices["lora_A"].to(weight.device, weight.dtype)
    lora_b = matrices["lora_B"].to(weight.device, weight.dtype)
    weight.copy_(base_weight).addmm_(lora_b, lora_a, alpha=adapter_config["lora_alpha"] / divisor)
    if not weight.isfinite().all():
        raise UserError(f"{label}: the merged weight overflows: the adapter is damaged")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter's file by PEFT's names.

    Raises UserError if the file cannot be read, or holds another number format or values that are
    not finite.
    """
    file = folder / ADAPTER_WEIGHTS_FILE
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    for key, tensor in tensors.items():
        if tensor.dtype not in _SUPPORTED_DTYPES:
            name = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{file}: {key} is {name}, not fp32, fp16, bf16 or fp64")
        if not tensor.isfinite().all():
            raise UserError(f"{file}: {key} holds values that are not finite: the file is damaged")
    return tensors


def _check_lora_config(values: Any, path: Path) -> None:
    """Raise UserError with a line for every entry of `adapter_config.json` that is not plain LoRA.

    `values` is the content of the file `path`.
    """
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
        or not abs(alpha) < _NUMBER_LIMIT  # NaN is not below any number
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
