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
from model.checkpoint.locate import step_folder, steps
from model.llama import Llama
from train import distributed

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
Optimizers = dict[str, torch.optim.Optimizer]


def save(
    run: Path, step: int, horizon: int, model: Llama, optimizers: Optimizers, keep: Callable[[Path], None],
    state: dict[str, Any],
) -> None:
    """Write `checkpoints/step-…`: weights, optimiser state, what `keep(folder)` writes, `state`; a manifest last; rename.

    `horizon` is the number of the run's last step. All processes must call it: the first one writes, the others hand in
    their parts.
    """
    model, tensors = distributed.whole_model(model), _optimizer_tensors(model, optimizers)
    if distributed.first():
        facts = {"format": "babyllama-checkpoint-1", "step": step, "steps": horizon}
        with atomic_folder(step_folder(run, step), facts) as folder:
            weights.save_weights(model, folder)
            keep(folder)
            save_file(tensors, folder / OPTIMIZER)
            write_json(folder / STATE, {"step": step, **state})
    distributed.wait()


def restore(folder: Path, model: Llama, optimizers: Optimizers) -> dict[str, Any]:
    """Fill the optimisers of a model from a checkpoint and return its `state`."""
    try:
        saved = load_file(folder / OPTIMIZER)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / OPTIMIZER} cannot be read: {error}") from None
    parameters = dict(model.named_parameters())
    for key, tensor in saved.items():
        name, parameter, field = [*key.split("/"), "", ""][:3]
        weight = parameters.get(parameter)
        if name not in optimizers or weight is None or tensor.shape not in (weight.shape, torch.Size([])):
            raise UserError(f"{folder / OPTIMIZER} holds {key}, which this run's optimiser does not have")
        # A copy of its own: memory mapped from the file would change with it.
        optimizers[name].state[weight][field] = distributed.part(tensor, weight)
    return read_json(folder / STATE)


def _optimizer_tensors(model: nn.Module, optimizers: Optimizers) -> dict[str, torch.Tensor]:
    """The state of all optimisers, in the first process."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for name, optimizer in optimizers.items():
        for parameter, state in optimizer.state.items():
            for field, value in state.items():
                if isinstance(value, torch.Tensor):
                    whole = distributed.whole(value.detach())
                    if distributed.first():
                        found[f"{name}/{names[parameter]}/{field}"] = whole.cpu().contiguous()
    return found


def rotate(run: Path, keep: int, best: int | None) -> None:
    """Delete all checkpoints but the newest `keep` and the best, which the link `checkpoints/best` leads to."""
    if best in steps(run):
        link = run / locate.CHECKPOINTS / "best"
        temporary = link.with_name(".best.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(step_folder(run, int(best)).name)
        if link.is_dir() and not link.is_symlink():
            # A run that was copied without its links has a second copy of the checkpoint there.
            shutil.rmtree(link)
        temporary.replace(link)
    for step in steps(run)[:-keep]:
        if step != best:
            # Renamed first: a deletion cut short must not leave half a checkpoint under a checkpoint's name.
            doomed = step_folder(run, step)
            hidden = doomed.with_name(f".{doomed.name}.old")
            doomed.rename(hidden)
            shutil.rmtree(hidden)
