"""What test_parallel.py has several processes do: `python -m tests.helpers.parallel_jobs COUNT FILE`, a JSON list of jobs.

This process becomes torchrun, and its processes are forks of it: one that starts anew imports for longer than all jobs take
together. A job is [name, argument…].
"""

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
from train import distributed, fine_tuning, pretraining
from train.command import parse_train_options
from train.options import PretrainOptions, SftOptions
from train.trainer import Trainer


def run_training(kind: str, *arguments: str) -> None:
    """A run, from a command line."""
    # To measure the machine takes longer than these runs.
    with (
        mock.patch("sys.argv", ["", *arguments]),
        mock.patch("train.throughput.matmul_flops", return_value=1e9),
    ):
        if kind == "pretrain":
            pretraining.pretrain(parse_train_options(PretrainOptions, "pretrain", ""))
        else:
            fine_tuning.fine_tune(parse_train_options(SftOptions, "sft", ""))


def train_until_signal(signal_number: int, step: int, *command_arguments: str) -> None:
    """A run in which a signal comes to the last process, and to no other, in the middle of a step."""
    compute_gradients = Trainer.compute_gradients

    def gradients(self: Trainer, *arguments: Any) -> Any:
        if self.state.step == step and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal_number)
        return compute_gradients(self, *arguments)

    with mock.patch.object(Trainer, "compute_gradients", gradients):
        run_training("pretrain", *command_arguments)


def print_refusal(*arguments: str) -> None:
    """Fine-tuning that every process must refuse before it waits for another; the line is printed once."""
    try:
        run_training("sft", *arguments)
    except UserError as error:
        print(f"refused: {error}")


def truncate_run(source: str, target: str, step: int) -> None:
    """A run as it was when it had a checkpoint of `step` and no later one."""
    if distributed.is_main_process():
        shutil.copytree(source, target, symlinks=True)
        for later in list_steps(Path(target)):
            if later > step:
                shutil.rmtree(step_folder(Path(target), later))
    distributed.barrier()


def check_sharded_muon() -> None:
    """A matrix in parts must be moved as a whole one is, to the bit; more rows than columns, fewer, and not divisible."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (distributed.world_size(),))
    generator = torch.Generator().manual_seed(0)
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    for shape in ((6, 4), (4, 7), (5, 5)):
        full_parameter = nn.Parameter(torch.randn(shape, generator=generator))
        sharded_parameter = nn.Parameter(
            distribute_tensor(full_parameter.detach().clone(), mesh, [Shard(0)])
        )
        full_optimizer, sharded_optimizer = (
            torch.optim.Muon([full_parameter], **options),
            distributed.ShardedMuon([sharded_parameter], **options),
        )
        for _ in range(3):
            full_parameter.grad = torch.randn(shape, generator=generator)
            sharded_parameter.grad = distribute_tensor(
                full_parameter.grad.clone(), mesh, [Shard(0)]
            )
            full_optimizer.step()
            sharded_optimizer.step()
        assert torch.equal(distributed.full_tensor(sharded_parameter.detach()), full_parameter), (
            shape
        )
        momentum = sharded_optimizer.state[sharded_parameter]["momentum_buffer"]
        assert (
            momentum.to_local().untyped_storage().nbytes()
            < full_parameter.untyped_storage().nbytes()
        )
        assert torch.equal(
            distributed.full_tensor(momentum),
            full_optimizer.state[full_parameter]["momentum_buffer"],
        )


def launch_torchrun(num_processes: str, jobs_file: str) -> None:
    """torchrun with `num_processes` processes that do the jobs of the file."""
    from torch.distributed import run

    run.main(
        [
            "--standalone",
            "--nproc-per-node",
            num_processes,
            "--start-method",
            "fork",
            "--run-path",
            __file__,
            jobs_file,
        ]
    )


def run_jobs(jobs_file: str) -> None:
    """Do the jobs of the file, one after another, as one of torchrun's processes."""
    with distributed.distributed_session():
        for name, *arguments in json.loads(Path(jobs_file).read_text()):
            {
                "train": run_training,
                "refused": print_refusal,
                "cut": truncate_run,
                "muon": check_sharded_muon,
                "signalled": train_until_signal,
            }[name](*arguments)


def main() -> None:
    """torchrun itself, or one of its processes, which are told the file alone."""
    (run_jobs if len(sys.argv) == 2 else launch_torchrun)(*sys.argv[1:])


if __name__ == "__main__":
    try:
        run_main(main)
    except Exception:
        # As a Python of its own would end; torchrun keeps what a fork raises to itself.
        traceback.print_exc()
        sys.exit(1)
