"""Save and restore training checkpoints: everything that the next step depends on."""

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from common import run_layout
from common.errors import UserError
from common.files import atomic_folder, read_json, write_json
from common.run_layout import list_steps, step_folder
from model.chat_template.template import Template
from model.checkpoint import weights
from model.checkpoint.single_checkpoint import CHECKPOINT_FORMAT
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from train import distributed
from train.optimizer import Optimizer

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
Optimizers = dict[str, Optimizer]


def save(
    run: Path,
    step: int,
    max_steps: int,
    model: Llama,
    optimizers: Optimizers,
    state: dict[str, Any],
    tokenizer: Tokenizer,
    template: Template | None,
) -> None:
    """Write the checkpoint of a step to `checkpoints/step-…` in the folder `run`.

    The folder of the checkpoint appears only when it is complete. `max_steps` is the last step of
    the run; `state` is stored as JSON. All ranks must call this: they gather their shards, and the
    main process writes.
    """
    full_model = distributed.gather_model(model)
    tensors = _gather_optimizer_state(model, optimizers)
    if distributed.is_main_process():
        manifest = {"format": CHECKPOINT_FORMAT, "step": step, "steps": max_steps}
        with atomic_folder(step_folder(run, step), manifest) as folder:
            weights.save_weights(full_model, folder)
            tokenizer.save(folder)
            if template is not None:
                template.save(folder)
            save_file(tensors, folder / OPTIMIZER_FILE)
            write_json(folder / STATE_FILE, {"step": step, **state})
    distributed.barrier()


def restore(folder: Path, model: Llama, optimizers: Optimizers) -> dict[str, Any]:
    """Load the optimizer state of a checkpoint into `optimizers`, and return its `state`.

    The weights of `model` are those of the checkpoint already. Raises UserError if the optimizer
    file cannot be read or holds the state of another optimizer.
    """
    try:
        tensors = load_file(folder / OPTIMIZER_FILE)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / OPTIMIZER_FILE} cannot be read: {error}") from None
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        # Padded with empty strings, so that a key with fewer than three parts is an unknown one.
        optimizer_name, parameter_name, field = [*key.split("/"), "", ""][:3]
        parameter = parameters.get(parameter_name)
        if (
            optimizer_name not in optimizers
            or parameter is None
            or not optimizers[optimizer_name].fits_state(parameter, field, tensor)
        ):
            raise UserError(
                f"{folder / OPTIMIZER_FILE} holds {key}, which this run's optimizer does not have"
            )
        # `shard_like` copies the tensor: the loaded one is a memory map of the file.
        optimizers[optimizer_name].state[parameter][field] = distributed.shard_like(
            tensor, parameter
        )
    return read_json(folder / STATE_FILE)


def _gather_optimizer_state(model: nn.Module, optimizers: Optimizers) -> dict[str, torch.Tensor]:
    """Return the tensors of all optimizers by `optimizer/parameter/field`, on the CPU.

    All ranks must call this; only the main process gets the tensors.
    """
    parameter_names: dict[Any, str] = {
        parameter: name for name, parameter in model.named_parameters()
    }
    tensors = {}
    for optimizer_name, optimizer in optimizers.items():
        for parameter, state in optimizer.state.items():
            for field, value in state.items():
                whole_tensor = distributed.full_tensor(value.detach())
                if distributed.is_main_process():
                    key = f"{optimizer_name}/{parameter_names[parameter]}/{field}"
                    tensors[key] = whole_tensor.cpu().contiguous()
    return tensors


def rotate_checkpoints(run: Path, keep: int | Literal["all"], best_step: int | None) -> None:
    """Delete all checkpoints except the newest `keep` and the best; link `checkpoints/best`.

    `keep` is at least 1, or "all": then none is deleted. `best_step` is the step with the best
    evaluation, None before the first one.
    """
    if best_step is not None and best_step in list_steps(run):
        _link_best(run, best_step)
    old_steps = [] if keep == "all" else list_steps(run)[:-keep]
    for step in old_steps:
        if step != best_step:
            # Renamed first, so that an interrupted deletion does not leave half a checkpoint
            # under the name of a whole one.
            folder = step_folder(run, step)
            renamed = folder.with_name(f".{folder.name}.old")
            folder.rename(renamed)
            shutil.rmtree(renamed)


def _link_best(run: Path, step: int) -> None:
    """Make `checkpoints/best` a symbolic link to the checkpoint of `step`, atomically."""
    link = run / run_layout.CHECKPOINTS_DIR / run_layout.BEST_LINK
    temporary = link.with_name(".best.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(step_folder(run, step).name)
    if link.is_dir() and not link.is_symlink():
        # If the run was copied with links followed, a copy of the checkpoint is here instead.
        shutil.rmtree(link)
    temporary.replace(link)
