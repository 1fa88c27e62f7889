"""Adapters on disk, in PEFT's format, and where the weights lie that they belong to.

    adapter_config.json         rank, alpha, targets: PEFT's `LoraConfig`
    adapter_model.safetensors   the two matrices of every target, under PEFT's names
    base.json                   ours besides: where the base is, and the sha256 of its weights

A folder that PEFT wrote has no base.json; its base is what `base_model_name_or_path` says, and is not verified.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import UserError
from common.files import read_json, write_json
from model.lora import adapter_tensors

if TYPE_CHECKING:
    from model.llama import Llama

ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE, BASE_FILE = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "base.json",
)
PEFT_PREFIX = "base_model.model."
_TENSOR_NAME_REGEX = re.compile(
    re.escape(PEFT_PREFIX) + r"(?P<module>.+)\.(?P<part>lora_A|lora_B|base_layer)\.weight"
)
# What PEFT can do that changes what the matrices mean, beyond Hu et al.'s formula.
_UNSUPPORTED_OPTIONS = ("use_dora", "use_qalora", "alpha_pattern", "alora_invocation_tokens")
# Types that the matrices come in.
_SUPPORTED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# About the largest number of fp32; JSON can write more than a float holds.
_MAX_NUMBER = 1e38
# Initialisations that leave the base with other weights than its files have.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq")


def save_adapter(model: "Llama", folder: Path) -> None:
    """Write a model's adapter, and where its base is, into an existing folder."""
    adapter = model.adapter
    assert adapter is not None
    tensors = {
        PEFT_PREFIX + name: tensor.detach().contiguous()
        for name, tensor in adapter_tensors(model).items()
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
    options, base = adapter.options, adapter.base.resolve()
    write_json(
        folder / ADAPTER_CONFIG_FILE,
        {
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
        },
    )
    # Runs that are moved together find each other by the relative path.
    relative = os.path.relpath(base, folder.resolve())
    write_json(
        folder / BASE_FILE, {"path": str(base), "relative": relative, "sha256": adapter.base_sha256}
    )


def load_adapter(model: "Llama", folder: Path) -> None:
    """Fill a model's adapter from a folder. UserError if it holds another adapter, or none."""
    file_tensors, model_tensors = _read_tensors(folder), adapter_tensors(model)
    shapes = {PEFT_PREFIX + name: tensor.shape for name, tensor in model_tensors.items()}
    if {name: tensor.shape for name, tensor in file_tensors.items()} != shapes:
        raise UserError(
            f"{folder / ADAPTER_WEIGHTS_FILE} does not fit: it holds another rank or other targets"
        )
    with torch.no_grad():
        for name, tensor in model_tensors.items():
            tensor.copy_(file_tensors[PEFT_PREFIX + name])


@torch.no_grad()
def merge_adapter(model: "Llama", folder: Path) -> None:
    """Add the adapter in a folder, ours or PEFT's, to the weights of a model without one: from then on it costs nothing.

    UserError if it is of a kind that adding up does not do justice to, or does not fit the model.
    """
    adapter_config = read_json(folder / ADAPTER_CONFIG_FILE)
    _check_lora_config(adapter_config, folder / ADAPTER_CONFIG_FILE)
    linears = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    if model.config.tie_word_embeddings:
        # Adding to the head would change the embedding too.
        del linears["lm_head"]
    matrices_by_module: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _read_tensors(folder).items():
        match = _TENSOR_NAME_REGEX.fullmatch(key)
        if match is None or match["module"] not in linears:
            raise UserError(
                f"{folder / ADAPTER_WEIGHTS_FILE}: {key} is no LoRA matrix of a projection that this model has"
            )
        matrices_by_module.setdefault(match["module"], {})[match["part"]] = tensor
    for name, matrices in matrices_by_module.items():
        weight = linears[name].weight
        # Beside an adapted head PEFT stores the head itself.
        base_weight = matrices.pop("base_layer", weight)
        shapes = {part: tuple(tensor.shape) for part, tensor in matrices.items()}
        rank = next(iter(shapes.get("lora_A", ())), 0)
        fitting = {"lora_A": (rank, weight.shape[1]), "lora_B": (weight.shape[0], rank)}
        if not rank or base_weight.shape != weight.shape or shapes != fitting:
            raise UserError(
                f"{folder / ADAPTER_WEIGHTS_FILE}: the matrices of {name} do not fit each other or its {tuple(weight.shape)}"
            )
        scale = adapter_config["lora_alpha"] / (
            rank**0.5 if adapter_config.get("use_rslora") else rank
        )
        down, up = (matrices[part].to(weight.device, weight.dtype) for part in fitting)
        weight.copy_(base_weight).addmm_(up, down, alpha=scale)
        if not weight.isfinite().all():
            raise UserError(
                f"{folder / ADAPTER_WEIGHTS_FILE}: with it {name} holds numbers beyond what a weight can be: it is damaged"
            )


def find_base_candidates(folder: Path) -> tuple[list[Path], str | None]:
    """Where the base of a folder's adapter may be, likeliest first, and the sha256 of its weights if that is known."""
    if (folder / BASE_FILE).is_file():
        values = read_json(folder / BASE_FILE)
        keys = ("path", "relative", "sha256")
        if not isinstance(values, dict) or not all(
            isinstance(values.get(key), str) for key in keys
        ):
            raise UserError(
                f"{folder / BASE_FILE} does not say where the adapter's base is: expected {', '.join(keys)}"
            )
        return [Path(values["path"]), folder.resolve() / values["relative"]], values["sha256"]
    values = read_json(folder / ADAPTER_CONFIG_FILE)
    named = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if not named or not isinstance(named, str):
        raise UserError(
            f"{folder / ADAPTER_CONFIG_FILE} does not name its base: write its folder under base_model_name_or_path"
        )
    return [Path(named), folder / named], None


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / ADAPTER_WEIGHTS_FILE} cannot be read: {error}") from None
    for key, tensor in tensors.items():
        if tensor.dtype not in _SUPPORTED_DTYPES or not tensor.isfinite().all():
            raise UserError(
                f"{folder / ADAPTER_WEIGHTS_FILE}: {key} holds values that are no finite numbers: the file is damaged"
            )
    return tensors


def _check_lora_config(values: Any, path: Path) -> None:
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    alpha = values.get("lora_alpha")
    problems = [
        f"{key} is set; only plain LoRA is supported"
        for key in _UNSUPPORTED_OPTIONS
        if values.get(key)
    ]
    if values.get("peft_type") != "LORA":
        problems.append(f"peft_type is {values.get('peft_type')!r}; only LORA is supported")
    elif isinstance(alpha, bool) or not (
        isinstance(alpha, int | float) and abs(alpha) < _MAX_NUMBER
    ):
        problems.append(
            f"lora_alpha is {str(alpha)[:40]}; expected a number that a weight can be scaled by"
        )
    if (start := values.get("init_lora_weights")) and str(start).lower().startswith(
        _BASE_CHANGING_INITS
    ):
        problems.append(
            f"init_lora_weights is {start!r}, which changes the base; convert it to a plain LoRA with PEFT first"
        )
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
