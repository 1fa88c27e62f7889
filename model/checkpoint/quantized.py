"""Load a checkpoint with 4-bit weights, a tensor at a time: the whole model is never in memory."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from common.errors import InsufficientMemoryError, UserError
from common.files import read_json
from model import nf4
from model.checkpoint import adapters, locate, weights
from model.checkpoint.locate import (
    ADAPTER_CONFIG_FILE,
    CONFIG_FILE,
    adapter_chain,
    weights_files,
)
from model.config import LlamaConfig
from model.llama import Llama, RotaryEmbedding
from model.lora import Adapter, LoraOptions, attach_adapter


def load_quantized(path: Path, device: torch.device, dtype: torch.dtype) -> Llama:
    """Return the model of a checkpoint with frozen NF4 weights in its layers, in evaluation mode.

    Embedding, head and norms have `dtype`. Adapters are merged into the weights before these are
    quantized. Raises UserError if files are missing or damaged, or do not fit together or into the
    memory.
    """
    folder, *adapter_folders = adapter_chain(path)
    config, config_values, tokenizer = weights.read_config_and_tokenizer(folder)
    _check_memory(config, folder, device, dtype)
    weights.check_tensor_count(folder, config)
    with torch.device("meta"):
        model = Llama(config)
    with device:
        model.model.rotary = RotaryEmbedding(config)
    weights.apply_trained_length(model, config_values)
    weights.set_unused_ids(model, tokenizer)
    # All of them are read while the model's own modules say which weights there are.
    chain = [
        (adapters.read_adapter(model, adapter), adapters.base_quantization(adapter))
        for adapter in adapter_folders
    ]
    for adapter in adapter_folders:
        weights.apply_adapter_context(model, adapter)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    for name, file in _locate_tensors(folder, shapes).items():
        weight = _read_tensor(file, name, shapes[name]).to(device)
        module_name = name.removesuffix(".weight")
        for stored, quantization in chain:
            if quantization is not None and nf4.is_quantizable(name):
                weight = nf4.round_to_nf4(weight.float())
            if module_name in stored.matrices:
                weight = weight.to(torch.float32, copy=True)
                stored.merge(module_name, weight)
        parent_name, _, child_name = module_name.rpartition(".")
        if nf4.is_quantizable(name):
            setattr(model.get_submodule(parent_name), child_name, nf4.Nf4Linear(weight))
        else:
            # A copy, because the tensor that was read is a map of its file.
            frozen = nn.Parameter(weight.to(dtype, copy=True), requires_grad=False)
            setattr(model.get_submodule(module_name), "weight", frozen)  # noqa: B010
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def load_with_adapter(folder: Path, device: torch.device, dtype: torch.dtype) -> Llama:
    """Return the model of an adapter that this project trained beside 4-bit weights, as trained.

    The adapter is beside the NF4 weights of its base, not merged, and in fp32; the other weights
    have `dtype`. Raises UserError as `load_quantized` does.
    """
    base = locate.resolve_base(folder)
    model = load_quantized(base, device, dtype)
    values = read_json(folder / ADAPTER_CONFIG_FILE)
    options = LoraOptions(
        rank=values["r"], alpha=values["lora_alpha"], targets=tuple(values["target_modules"])
    )
    quantization = adapters.base_quantization(folder)
    attach_adapter(model, Adapter(options, base, locate.weights_sha256(base), quantization), seed=0)
    weights.load_weights(model, folder)
    weights.apply_adapter_context(model, folder)
    return model.eval()


def _check_memory(
    config: LlamaConfig, folder: Path, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise InsufficientMemoryError if the quantized model does not fit the memory of `device`."""
    num_bytes = nf4.num_bytes(config, dtype.itemsize)
    if device.type == "cpu":
        config.check_memory(str(folder / CONFIG_FILE), num_bytes)
        return
    available = torch.cuda.get_device_properties(device).total_memory
    if num_bytes > available:
        raise InsufficientMemoryError(
            f"{folder / CONFIG_FILE}: in 4 bits the weights need {num_bytes / 1e9:,.0f} GB, and "
            f"the GPU has {available / 1e9:,.0f}: use a smaller model"
        )


def _locate_tensors(folder: Path, shapes: dict[str, torch.Size]) -> dict[str, Path]:
    """Return the file of every tensor of a model, in the order of the files.

    Raises UserError if one is missing, or if the files have another one.
    """
    files: dict[str, Path] = {}
    for file in weights_files(folder):
        with safe_open(file, "pt") as tensors:
            files |= dict.fromkeys(tensors.keys(), file)
    missing, unexpected = sorted(shapes.keys() - files.keys()), sorted(files.keys() - shapes.keys())
    # A tied head may be stored beside the embedding.
    unexpected = [name for name in unexpected if name != "lm_head.weight"]
    if missing or unexpected:
        names = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}, which it does not know"
        raise UserError(f"{weights_files(folder)[0]} does not fit its {CONFIG_FILE}: it {names}")
    return {name: file for name, file in files.items() if name in shapes}


def _read_tensor(file: Path, name: str, shape: torch.Size) -> Tensor:
    """Return one tensor of a file. Raises UserError if it is damaged or has another shape."""
    # Opened for every tensor, because what was read of a file stays in memory until it is closed.
    try:
        with safe_open(file, "pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if tensor.shape != shape:
        raise UserError(
            f"{file} does not fit its {CONFIG_FILE}: {name} is {tuple(tensor.shape)}, expected "
            f"{tuple(shape)}"
        )
    if not tensor.isfinite().all():
        raise UserError(f"{file}: {name} holds values that are not finite: it is damaged")
    return tensor
