"""The average of the last checkpoints of a run, as a run of its own."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError
from common.files import check_manifest, read_checksummed_json
from common.machine import collect_environment
from common.run_layout import RUN_FILE, list_steps, step_folder
from model.chat_template.template import TEMPLATE_FILE, load_template
from model.checkpoint import locate, weights
from model.checkpoint.single_checkpoint import write_single_checkpoint_run
from model.llama import Llama
from model.tokenizer.base import Tokenizer


def find_last_checkpoints(run: Path, last: int) -> list[Path]:
    """Return the folders of the newest `last` checkpoints that a run keeps, in ascending order.

    Raises UserError if `run` is not a run, if it keeps fewer, or if one of them is damaged.
    """
    if not (run / RUN_FILE).is_file():
        suggestion = locate.suggest_run(run)
        advice = f"did you mean {suggestion}?" if suggestion else "name a run, such as runs/sft-csl"
        raise UserError(f"{run} is no run: {advice}")
    steps = list_steps(run)
    if len(steps) < last:
        raise UserError(
            f"--last {last}: {run} keeps {len(steps)} checkpoints: train with --checkpoint.keep "
            f"{last} and a smaller --checkpoint.every, or average fewer"
        )
    folders = [step_folder(run, step) for step in steps[-last:]]
    for folder in folders:
        if problem := check_manifest(folder):
            raise UserError(f"{problem}: it cannot be averaged")
    return folders


@torch.no_grad()
def average_checkpoints(folders: Sequence[Path], device: torch.device) -> tuple[Llama, Tokenizer]:
    """Return a model whose weights are the means of those of checkpoints of one run.

    Adapters are merged first, because the product of two averages is not the average of products.
    Sums are of float64. Averaging the last checkpoints: Izmailov et al. 2018, arXiv:1803.05407;
    of Transformers, Vaswani et al. 2017, section 6.1.
    """
    sums: dict[str, Tensor] = {}
    for folder in folders:
        model, tokenizer = weights.load_checkpoint(folder, device)
        for name, parameter in model.named_parameters():
            if name in sums:
                sums[name] += parameter
            else:
                sums[name] = parameter.double()
    for name, parameter in model.named_parameters():
        parameter.copy_(sums[name] / len(folders))
    return model, tokenizer


def write_average(run: Path, last: int, out: Path) -> list[int]:
    """Write the average of the newest `last` checkpoints of a run as the new run `out`.

    It has the data, the template and the options of the run, and the step of its newest checkpoint;
    it cannot be resumed, because an average has no state of the optimizer. Returns the steps.
    Raises UserError as `find_last_checkpoints` does, and if `out` exists.
    """
    if out.exists():
        raise UserError(f"--run {out} exists already: name a new run")
    folders = find_last_checkpoints(run, last)
    steps = list_steps(run)[-last:]
    record = read_checksummed_json(run / RUN_FILE)
    model, tokenizer = average_checkpoints(folders, torch.device("cpu"))
    run_info = {
        **record,
        "made": collect_environment(torch.device("cpu")),
        "averaged_from": {
            "run": str(run),
            "weights": [locate.weights_sha256(folder) for folder in folders],
        },
        # No training run has this fingerprint, so that training does not go on in this one.
        "fingerprints": {**record["fingerprints"], "averaged_steps": steps},
    }
    has_template = (folders[-1] / TEMPLATE_FILE).is_file()
    write_single_checkpoint_run(
        out,
        run_info,
        steps[-1],
        model,
        tokenizer,
        load_template(folders[-1]) if has_template else None,
        config_of=run,
    )
    return steps
