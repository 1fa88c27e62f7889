"""Weights on disk, and where in a run they lie.

A checkpoint is a folder with `model.safetensors` and `config.json` in Hugging Face's names, the tokenizer, and a
manifest of checksums; a run keeps them under `checkpoints/step-00001000/`. Whatever takes a checkpoint takes a run (its
newest checkpoint that verifies), one of its steps, or any folder with those files. In place of the weights there may be
an adapter (`model/adapter_files.py`): then the weights are its base's with the adapter merged into them.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from common.errors import UserError
from common.files import MANIFEST, manifest_problem, read_json, sha256_file, write_atomic, write_json
from model import adapter_files
from model.adapter_files import ADAPTER, ADAPTER_CONFIG
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer import FILE as TOKENIZER_FILE
from model.tokenizer import Tokenizer

WEIGHTS, CONFIG, CHECKPOINTS = "model.safetensors", "config.json", "checkpoints"
# What config.json says besides what transformers knows: tokens of the rows that the model was trained on.
TRAINED_LENGTH = "trained_length"


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def steps(run: Path) -> list[int]:
    """The steps of which a run has checkpoints, oldest first, verified or not."""
    folders = (run / CHECKPOINTS).glob("step-*")
    return sorted(int(f.name.removeprefix("step-")) for f in folders if f.name.removeprefix("step-").isdigit())


def newest(run: Path) -> int | None:
    """The newest step whose checkpoint verifies; a damaged one is named on stderr and passed over."""
    for step in reversed(steps(run)):
        problem = manifest_problem(step_folder(run, step))
        if problem is None:
            return step
        print(f"warning: {problem}; using the checkpoint before it", file=sys.stderr)
    return None


def find(path: Path) -> Path:
    """The folder with the weights that `path`, a run, one of its steps or an exported folder, stands for."""
    if (path / "run.json").is_file():
        step = newest(path)
        if step is None:
            raise UserError(f"{path} has no checkpoint that can be used yet: train it first, or name another run")
        return step_folder(path, step)
    if not all((path / name).is_file() for name in (WEIGHTS, CONFIG)) and not is_adapter(path):
        raise UserError(f"{path} is no checkpoint: expected a run, a step folder, a folder with {CONFIG} and {WEIGHTS}, or "
                        f"an adapter's with {ADAPTER_CONFIG} and {ADAPTER}")
    if (path / MANIFEST).is_file() and (problem := manifest_problem(path)):
        raise UserError(f"{problem}: use another checkpoint")
    return path


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint folder holds an adapter instead of weights."""
    return not (folder / WEIGHTS).is_file() and all((folder / name).is_file() for name in (ADAPTER, ADAPTER_CONFIG))


def digest(folder: Path) -> str:
    """The sha256 of the weights, or of the adapter, in a checkpoint folder; its manifest's, where there is one."""
    name = ADAPTER if is_adapter(folder) else WEIGHTS
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    known = manifest.get("files", {}).get(name)
    return str(known["sha256"]) if known else sha256_file(folder / name)


def base_of(folder: Path) -> Path:
    """The checkpoint folder that a folder's adapter belongs to. UserError if it is gone, or holds other weights now."""
    places, sha256 = adapter_files.base_places(folder)
    there = [place for place in places if place.exists()]
    for place in there:
        base = find(place)
        if sha256 is None or digest(base) == sha256:
            return base
    why = f"are weights with another sha256 than {str(sha256)[:12]}…" if there else "is nothing"
    raise UserError(f"{folder} is an adapter, and its base was expected at {(there or places)[0]}, where there {why}: put "
                    "the base back there")


def save(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights, shape and tokenizer into an existing folder."""
    save_weights(model, folder)
    save_tokenizer(tokenizer, folder)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer into an existing folder."""
    write_atomic(folder / TOKENIZER_FILE, tokenizer.serialized)


def save_weights(model: Llama, folder: Path) -> None:
    """Write shape and weights into an existing folder; of a model that trains an adapter, the adapter instead of them."""
    if model.adapter is not None:
        adapter_files.save(model, folder)
    else:
        state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        if model.config.tie_word_embeddings:
            del state["lm_head.weight"]
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, {**model.config.to_hf(), TRAINED_LENGTH: model.context})


def load(path: Path, device: torch.device) -> tuple[Llama, Tokenizer]:
    """The model, in evaluation mode, and the tokenizer of a checkpoint. UserError if they do not fit together."""
    folder = find(path)
    if is_adapter(folder):
        return _load_merged(folder, device)
    values = read_json(folder / CONFIG)
    config = LlamaConfig.from_hf(values, str(folder / CONFIG))
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocabulary_size > config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {tokenizer.vocabulary_size} pieces, the model {config.vocab_size}")
    _check_weights(folder, config)
    with device:
        model = Llama(config)
    _shorten(model, values)
    load_weights(model, folder)
    return model.eval(), tokenizer


def _load_merged(folder: Path, device: torch.device) -> tuple[Llama, Tokenizer]:
    model, tokenizer = load(base_of(folder), device)
    adapter_files.merge(model, folder)
    if (folder / CONFIG).is_file():
        _shorten(model, read_json(folder / CONFIG))
    return model, tokenizer


def _shorten(model: Llama, values: dict[str, Any]) -> None:
    """Set a model's context to the length that its `config.json` says it was trained on."""
    trained = values.get(TRAINED_LENGTH)
    if isinstance(trained, int) and 0 < trained < model.context:
        model.context = trained


def _check_weights(folder: Path, config: LlamaConfig) -> None:
    """UserError before anything is built, where the shape is more than the machine has or than the weights file holds."""
    config.check_memory(str(folder / CONFIG))
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            held = len(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}") from None
    expected = 9 * config.num_hidden_layers + 3 - config.tie_word_embeddings
    if held < expected:
        raise UserError(f"{folder / WEIGHTS} does not fit its {CONFIG}: it holds {held:,} tensors, and a Llama of "
                        f"{config.num_hidden_layers:,} layers has {expected:,}")


def load_weights(model: Llama, folder: Path) -> None:
    """Fill a model, or the adapter that it trains, from a checkpoint folder. UserError if names or shapes differ."""
    if model.adapter is not None:
        adapter_files.load(model, folder)
        return
    try:
        state = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}") from None
    if model.config.tie_word_embeddings and "model.embed_tokens.weight" in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.lm_head.weight = model.model.embed_tokens.weight
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {' '.join(str(error).split())[:300]}") from None
