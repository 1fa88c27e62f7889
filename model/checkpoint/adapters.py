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

ADAPTER, ADAPTER_CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"
PREFIX = "base_model.model."
_NAME = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.(?P<part>lora_A|lora_B|base_layer)\.weight")
# What PEFT can do that changes what the matrices mean, beyond Hu et al.'s formula.
_FOREIGN = ("use_dora", "use_qalora", "alpha_pattern", "alora_invocation_tokens")
# Types that the matrices come in.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# About the largest number of fp32; JSON can write more than a float holds.
_HUGE = 1e38
# Initialisations that leave the base with other weights than its files have.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


def save(model: "Llama", folder: Path) -> None:
    """Write a model's adapter, and where its base is, into an existing folder."""
    adapter = model.adapter
    assert adapter is not None
    tensors = {PREFIX + name: tensor.detach().contiguous() for name, tensor in adapter_tensors(model).items()}
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    options, base = adapter.options, adapter.base.resolve()
    write_json(folder / ADAPTER_CONFIG, {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "inference_mode": True,
        "r": options.rank, "lora_alpha": options.alpha, "lora_dropout": options.dropout,
        "target_modules": list(options.targets), "bias": "none", "use_rslora": False, "use_dora": False,
    })
    # Runs that are moved together find each other by the relative path.
    relative = os.path.relpath(base, folder.resolve())
    write_json(folder / BASE, {"path": str(base), "relative": relative, "sha256": adapter.base_sha256})


def load(model: "Llama", folder: Path) -> None:
    """Fill a model's adapter from a folder. UserError if it holds another adapter, or none."""
    saved, own = _read(folder), adapter_tensors(model)
    shapes = {PREFIX + name: tensor.shape for name, tensor in own.items()}
    if {name: tensor.shape for name, tensor in saved.items()} != shapes:
        raise UserError(f"{folder / ADAPTER} does not fit: it holds another rank or other targets")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[PREFIX + name])


@torch.no_grad()
def merge(model: "Llama", folder: Path) -> None:
    """Add the adapter in a folder, ours or PEFT's, to the weights of a model without one: from then on it costs nothing.

    UserError if it is of a kind that adding up does not do justice to, or does not fit the model.
    """
    values = read_json(folder / ADAPTER_CONFIG)
    _check_kind(values, folder / ADAPTER_CONFIG)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if model.config.tie_word_embeddings:
        # Adding to the head would change the embedding too.
        del linears["lm_head"]
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _read(folder).items():
        match = _NAME.fullmatch(key)
        if match is None or match["module"] not in linears:
            raise UserError(f"{folder / ADAPTER}: {key} is no LoRA matrix of a projection that this model has")
        found.setdefault(match["module"], {})[match["part"]] = tensor
    for name, pair in found.items():
        weight = linears[name].weight
        # Beside an adapted head PEFT stores the head itself.
        stored = pair.pop("base_layer", weight)
        shapes = {part: tuple(tensor.shape) for part, tensor in pair.items()}
        rank = next(iter(shapes.get("lora_A", ())), 0)
        fitting = {"lora_A": (rank, weight.shape[1]), "lora_B": (weight.shape[0], rank)}
        if not rank or stored.shape != weight.shape or shapes != fitting:
            raise UserError(f"{folder / ADAPTER}: the matrices of {name} do not fit each other or its {tuple(weight.shape)}")
        scale = values["lora_alpha"] / (rank**0.5 if values.get("use_rslora") else rank)
        down, up = (pair[part].to(weight.device, weight.dtype) for part in fitting)
        weight.copy_(stored).addmm_(up, down, alpha=scale)
        if not weight.isfinite().all():
            raise UserError(f"{folder / ADAPTER}: with it {name} holds numbers beyond what a weight can be: it is damaged")


def base_places(folder: Path) -> tuple[list[Path], str | None]:
    """Where the base of a folder's adapter may be, likeliest first, and the sha256 of its weights if that is known."""
    if (folder / BASE).is_file():
        values = read_json(folder / BASE)
        keys = ("path", "relative", "sha256")
        if not isinstance(values, dict) or not all(isinstance(values.get(key), str) for key in keys):
            raise UserError(f"{folder / BASE} does not say where the adapter's base is: expected {', '.join(keys)}")
        return [Path(values["path"]), folder.resolve() / values["relative"]], values["sha256"]
    values = read_json(folder / ADAPTER_CONFIG)
    named = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if not named or not isinstance(named, str):
        raise UserError(f"{folder / ADAPTER_CONFIG} does not name its base: write its folder under base_model_name_or_path")
    return [Path(named), folder / named], None


def _read(folder: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(folder / ADAPTER)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / ADAPTER} cannot be read: {error}") from None
    for key, tensor in tensors.items():
        if tensor.dtype not in _DTYPES or not tensor.isfinite().all():
            raise UserError(f"{folder / ADAPTER}: {key} holds values that are no finite numbers: the file is damaged")
    return tensors


def _check_kind(values: Any, name: Path) -> None:
    if not isinstance(values, dict):
        raise UserError(f"{name}: expected keys and values, found {type(values).__name__}")
    alpha = values.get("lora_alpha")
    found = [f"{key} is set; only plain LoRA is supported" for key in _FOREIGN if values.get(key)]
    if values.get("peft_type") != "LORA":
        found.append(f"peft_type is {values.get('peft_type')!r}; only LORA is supported")
    elif isinstance(alpha, bool) or not (isinstance(alpha, int | float) and abs(alpha) < _HUGE):
        found.append(f"lora_alpha is {str(alpha)[:40]}; expected a number that a weight can be scaled by")
    if (start := values.get("init_lora_weights")) and str(start).lower().startswith(_CHANGES_BASE):
        found.append(f"init_lora_weights is {start!r}, which changes the base; convert it to a plain LoRA with PEFT first")
    if found:
        raise UserError("\n".join(f"{name}: {problem}" for problem in found))
