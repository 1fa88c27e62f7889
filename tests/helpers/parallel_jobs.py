"""Jobs for several processes: `python -m tests.helpers.parallel_jobs COUNT FILE`.

FILE is a JSON list of jobs, each `[name, argument, …]`. This process becomes torchrun, and the
training processes are forks of it: new interpreters would import for longer than all jobs take.
"""

import importlib
import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from common.errors import UserError, run_main
from common.run_layout import list_steps, step_folder
from train import distributed, dpo_run, pretrain_run, sft_run
from train.cli import parse_train_options
from train.optimizer import Muon
from train.options import DpoOptions, PretrainOptions, SftOptions
from train.trainer import Trainer


def run_training(command: str, *arguments: str) -> int:
    """Train as `python -m train.COMMAND ARGUMENTS` does; return its exit code."""
    with (
        mock.patch("sys.argv", ["", *arguments]),
        # The measurement takes longer than these runs.
        mock.patch("train.monitoring.throughput.matmul_flops", return_value=1e9),
    ):
        if command == "pretrain":
            return pretrain_run.pretrain(parse_train_options(PretrainOptions, "pretrain", ""))
        if command == "dpo":
            return dpo_run.learn_preferences(parse_train_options(DpoOptions, "dpo", ""))
        return sft_run.fine_tune(parse_train_options(SftOptions, "sft", ""))


def train_to_the_end(command: str, *arguments: str) -> None:
    """Train, and check that every rank takes the run for complete."""
    assert run_training(command, *arguments) == 0, distributed.rank()


def train_until_signal(signal_number: int, step: int, *arguments: str) -> None:
    """Pretrain, and send a signal to the last rank alone in the middle of a step."""
    compute_gradients = Trainer.compute_gradients

    def compute_gradients_with_signal(trainer: Trainer, *arguments: Any) -> Any:
        is_last_rank = distributed.rank() == distributed.world_size() - 1
        if is_last_rank and trainer.state.step == step:
            os.kill(os.getpid(), signal_number)
        return compute_gradients(trainer, *arguments)

    with mock.patch.object(Trainer, "compute_gradients", compute_gradients_with_signal):
        run_training("pretrain", *arguments)


def print_refusal(*arguments: str) -> None:
    """Fine-tune with options that every rank must refuse before it waits for the other ranks."""
    try:
        run_training("sft", *arguments)
    except UserError as error:
        print(f"refused: {error}")


def truncate_run(source: str, target: str, step: int) -> None:
    """Copy a run without its checkpoints after `step`; resuming cuts the logs back by itself."""
    if distributed.is_main_process():
        shutil.copytree(source, target, symlinks=True)
        for later_step in list_steps(Path(target)):
            if later_step > step:
                shutil.rmtree(step_folder(Path(target), later_step))
    distributed.barrier()


def check_sharded_muon() -> None:
    """Check that Muon updates shards as torch's Muon does, bit for bit, and shards its state.

    The matrices are tall, wide, and of a size that the ranks cannot divide evenly.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (distributed.world_size(),))
    generator = torch.Generator().manual_seed(0)
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    # torch's Muon has no other dtype.
    mock.patch("train.optimizer.choose_dtype", return_value=torch.bfloat16).start()
    for shape in ((6, 4), (4, 7), (5, 5)):
        full = nn.Parameter(torch.randn(shape, generator=generator))
        sharded = nn.Parameter(distribute_tensor(full.detach().clone(), mesh, [Shard(0)]))
        full_optimizer = torch.optim.Muon([full], **options)
        sharded_optimizer = Muon([{"params": [sharded], **options}])
        for _ in range(3):
            full.grad = torch.randn(shape, generator=generator)
            sharded.grad = distribute_tensor(full.grad.clone(), mesh, [Shard(0)])
            full_optimizer.step()
            sharded_optimizer.step()
        assert torch.equal(distributed.full_tensor(sharded.detach()), full), shape
        momentum = sharded_optimizer.state[sharded]["momentum_buffer"]
        full_momentum = full_optimizer.state[full]["momentum_buffer"]
        assert torch.equal(distributed.full_tensor(momentum), full_momentum)
        # The storage, not the view: a slice of a full matrix would save no memory.
        local_bytes = momentum.to_local().untyped_storage().nbytes()
        assert local_bytes < full.untyped_storage().nbytes()


JOBS = {
    "train": run_training,
    "complete": train_to_the_end,
    "refuse": print_refusal,
    "truncate": truncate_run,
    "muon": check_sharded_muon,
    "signal": train_until_signal,
}


def launch_torchrun(num_processes: str, jobs_file: str) -> None:
    """Become torchrun with `num_processes` processes that do the jobs of the file.

    torchrun runs this file again in each process, with the jobs file as its only argument.
    """
    from torch.distributed import run

    options = ["--standalone", "--nproc-per-node", num_processes, "--start-method", "fork"]
    run.main([*options, "--run-path", __file__, jobs_file])


def run_jobs(jobs_file: str) -> None:
    """Do the jobs of the file one after another, as one of torchrun's processes.

    A lone job `command`, `["command", MODULE, …]`, is `python -m MODULE …` with its own session.
    """
    jobs = json.loads(Path(jobs_file).read_text())
    if jobs[0][0] == "command":
        sys.argv = jobs[0][1:]
        importlib.import_module(sys.argv[0]).main()
        return
    with distributed.distributed_session():
        for name, *arguments in jobs:
            JOBS[name](*arguments)


def main() -> None:
    """Launch torchrun for COUNT and FILE, or run the jobs of FILE as one of its processes."""
    arguments = sys.argv[1:]
    if len(arguments) == 1:
        run_jobs(*arguments)
    else:
        launch_torchrun(*arguments)


if __name__ == "__main__":
    try:
        run_main(main)
    except Exception:
        # torchrun would swallow what a forked process raises.
        traceback.print_exc()
        sys.exit(1)
