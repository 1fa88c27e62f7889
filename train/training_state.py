"""A checkpoint of a training run: everything the next step depends on, whole or not there at all."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from common.errors import UserError
from common.files import atomic_folder, read_json, write_json
from model.checkpoint import locate, weights
from model.checkpoint.locate import list_steps, step_folder
from model.llama import Llama
from train import distributed

OPTIMIZER_FILE, STATE_FILE = "optimizer.safetensors", "state.json"
Optimizers = dict[str, torch.optim.Optimizer]


def save(
    run: Path,
    step: int,
    max_steps: int,
    model: Llama,
    optimizers: Optimizers,
    save_extras: Callable[[Path], None],
    state: dict[str, Any],
) -> None:
    """Write `checkpoints/step-…`: weights, optimiser state, what `save_extras(folder)` writes, `state`; a manifest last; rename.

    `max_steps` is the number of the run's last step. All processes must call it: the first one writes, the others hand in
    their parts.
    """
    model, tensors = distributed.gather_model(model), _gather_optimizer_state(model, optimizers)
    if distributed.is_main_process():
        facts = {"format": "babyllama-checkpoint-1", "step": step, "steps": max_steps}
        with atomic_folder(step_folder(run, step), facts) as folder:
            weights.save_weights(model, folder)
            save_extras(folder)
            save_file(tensors, folder / OPTIMIZER_FILE)
            write_json(folder / STATE_FILE, {"step": step, **state})
    distributed.barrier()


def restore(folder: Path, model: Llama, optimizers: Optimizers) -> dict[str, Any]:
    """Fill the optimisers of a model from a checkpoint and return its `state`."""
    try:
        saved = load_file(folder / OPTIMIZER_FILE)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / OPTIMIZER_FILE} cannot be read: {error}") from None
    parameters = dict(model.named_parameters())
    for key, tensor in saved.items():
        name, parameter, field = [*key.split("/"), "", ""][:3]
        weight = parameters.get(parameter)
        if (
            name not in optimizers
            or weight is None
            or tensor.shape not in (weight.shape, torch.Size([]))
        ):
            raise UserError(
                f"{folder / OPTIMIZER_FILE} holds {key}, which this run's optimiser does not have"
            )
        # A copy of its own: memory mapped from the file would change with it.
        optimizers[name].state[weight][field] = distributed.shard_like(tensor, weight)
    return read_json(folder / STATE_FILE)


def _gather_optimizer_state(model: nn.Module, optimizers: Optimizers) -> dict[str, torch.Tensor]:
    """The state of all optimisers, in the first process."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}
    for name, optimizer in optimizers.items():
        for parameter, state in optimizer.state.items():
            for field, value in state.items():
                if isinstance(value, torch.Tensor):
                    whole = distributed.full_tensor(value.detach())
                    if distributed.is_main_process():
                        tensors[f"{name}/{names[parameter]}/{field}"] = whole.cpu().contiguous()
    return tensors


def rotate_checkpoints(run: Path, keep_last: int, best_step: int | None) -> None:
    """Delete all checkpoints but the newest `keep_last` and the best, which the link `checkpoints/best` leads to."""
    if best_step in list_steps(run):
        link = run / locate.CHECKPOINTS_DIR / "best"
        temporary = link.with_name(".best.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(step_folder(run, int(best_step)).name)
        if link.is_dir() and not link.is_symlink():
            # A run that was copied without its links has a second copy of the checkpoint there.
            shutil.rmtree(link)
        temporary.replace(link)
    for step in list_steps(run)[:-keep_last]:
        if step != best_step:
            # Renamed first: a deletion cut short must not leave half a checkpoint under a checkpoint's name.
            doomed = step_folder(run, step)
            hidden = doomed.with_name(f".{doomed.name}.old")
            doomed.rename(hidden)
            shutil.rmtree(hidden)
