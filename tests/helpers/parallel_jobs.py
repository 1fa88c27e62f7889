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
from model.checkpoint.locate import step_folder, steps
from train import distributed, pretrain, sft
from train.startup import read_options
from train.trainer import Trainer
from train.options import PretrainOptions, SftOptions


def train(kind: str, *words: str) -> None:
    """A run, from a command line."""
    # To measure the machine takes longer than these runs.
    with mock.patch("sys.argv", ["", *words]), mock.patch("train.throughput.matmul_flops", return_value=1e9):
        if kind == "pretrain":
            pretrain.pretrain(read_options(PretrainOptions, "pretrain", ""))
        else:
            sft.fine_tune(read_options(SftOptions, "sft", ""))


def signalled(number: int, step: int, *words: str) -> None:
    """A run in which a signal comes to the last process, and to no other, in the middle of a step."""
    original = Trainer._gradients

    def gradients(self: Trainer, *arguments: Any) -> Any:
        if self.state.step == step and distributed.rank() == distributed.size() - 1:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    with mock.patch.object(Trainer, "_gradients", gradients):
        train("pretrain", *words)


def refused(*words: str) -> None:
    """Fine-tuning that every process must refuse before it waits for another; the line is printed once."""
    try:
        train("sft", *words)
    except UserError as error:
        print(f"refused: {error}")


def cut(source: str, target: str, step: int) -> None:
    """A run as it was when it had a checkpoint of `step` and no later one."""
    if distributed.first():
        shutil.copytree(source, target, symlinks=True)
        for later in steps(Path(target)):
            if later > step:
                shutil.rmtree(step_folder(Path(target), later))
    distributed.wait()


def muon() -> None:
    """A matrix in parts must be moved as a whole one is, to the bit; more rows than columns, fewer, and not divisible."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (distributed.size(),))
    draw = torch.Generator().manual_seed(0)
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    for shape in ((6, 4), (4, 7), (5, 5)):
        whole = nn.Parameter(torch.randn(shape, generator=draw))
        part = nn.Parameter(distribute_tensor(whole.detach().clone(), mesh, [Shard(0)]))
        plain, gathering = torch.optim.Muon([whole], **options), distributed.GatheringMuon([part], **options)
        for _ in range(3):
            whole.grad = torch.randn(shape, generator=draw)
            part.grad = distribute_tensor(whole.grad.clone(), mesh, [Shard(0)])
            plain.step()
            gathering.step()
        assert torch.equal(distributed.whole(part.detach()), whole), shape
        kept = gathering.state[part]["momentum_buffer"]
        assert kept.to_local().untyped_storage().nbytes() < whole.untyped_storage().nbytes()
        assert torch.equal(distributed.whole(kept), plain.state[whole]["momentum_buffer"])


def begin(count: str, file: str) -> None:
    """torchrun with `count` processes that do the jobs of the file."""
    from torch.distributed import run

    run.main(["--standalone", "--nproc-per-node", count, "--start-method", "fork", "--run-path", __file__, file])


def do(file: str) -> None:
    """Do the jobs of the file, one after another, as one of torchrun's processes."""
    with distributed.together():
        for name, *arguments in json.loads(Path(file).read_text()):
            {"train": train, "refused": refused, "cut": cut, "muon": muon, "signalled": signalled}[name](*arguments)


def main() -> None:
    """torchrun itself, or one of its processes, which are told the file alone."""
    (do if len(sys.argv) == 2 else begin)(*sys.argv[1:])


if __name__ == "__main__":
    try:
        run_main(main)
    except Exception:
        # As a Python of its own would end; torchrun keeps what a fork raises to itself.
        traceback.print_exc()
        sys.exit(1)
