"""Several processes (ranks) that train one model together, with DDP or FSDP2.

torchrun starts the processes, which communicate with NCCL on GPUs and gloo on CPUs. The contract:

* The rows of a step are divided among the ranks in contiguous slices, so that a step reads the same
  rows whatever the number of ranks.
* Gradients are those of the mean loss over all targets of the whole step.
* The main process, rank 0, prints, measures, evaluates and writes. A checkpoint holds whole tensors
  and does not depend on the number of ranks.

With one process the functions return their arguments, and torch.distributed is not initialized.
"""

import contextlib
import functools
import inspect
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.errors import UserError
from model.llama import Llama
from train.options import ParallelStrategy

T = TypeVar("T")

# A rank that does not answer within a step for so long is given up; a dead one is noticed at once.
STEP_TIMEOUT = timedelta(minutes=10)
# The other ranks wait while the main process prepares data, tunes or evaluates, perhaps for hours.
LONG_TIMEOUT = timedelta(days=1)
# Characters of an error of gloo or NCCL in a message.
MAX_REASON_LENGTH = 120


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Return whether this is rank 0, which prints and writes."""
    return rank() == 0


@contextlib.contextmanager
def distributed_session() -> Iterator[None]:
    """Join the processes that torchrun started; without torchrun, do nothing.

    Inside, only the main process prints. When ranks fail, the first one that fails raises the
    reason; if it was killed, another one does. The rest exit with code 2 and print nothing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    store, process_rank, count = next(dist.rendezvous("env://"))
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        store=dist.PrefixStore("babyllama", store),
        rank=process_rank,
        world_size=count,
        timeout=STEP_TIMEOUT,
    )
    previous_handler = signal.signal(signal.SIGTERM, _handle_sigterm)
    try:
        with _suppress_output() if process_rank else contextlib.nullcontext():
            yield
    except (Exception, KeyboardInterrupt) as error:
        # torchrun terminates all ranks once one of them has failed; this one is ending already.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        is_lost = _is_connection_error(error)
        is_silent = is_lost or isinstance(error, UserError | KeyboardInterrupt)
        if not _claim_first_failure(store) and is_silent:
            sys.exit(2)
        if is_lost:
            raise UserError(
                f"{_format_connection_error(error)}, so all of them end; the same command resumes "
                "from the last whole checkpoint"
            ) from None
        raise
    signal.signal(signal.SIGTERM, previous_handler)
    dist.destroy_process_group()


class _TerminationSignal(Exception):
    """Raised when torchrun ends this process, because another one failed or it was told to end."""


def _handle_sigterm(number: int, frame: FrameType | None) -> None:
    raise _TerminationSignal


@contextlib.contextmanager
def _suppress_output() -> Iterator[None]:
    with (
        open(os.devnull, "w") as devnull,
        contextlib.redirect_stdout(devnull),
        contextlib.redirect_stderr(devnull),
    ):
        yield


def _claim_first_failure(store: dist.Store) -> bool:
    """Return True in the first rank that calls this. torchrun hosts the store, not a rank."""
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:
        return True  # torchrun has ended too


def _is_connection_error(error: BaseException) -> bool:
    """Return whether other ranks cannot be reached; gloo raises a plain RuntimeError for that."""
    return isinstance(error, dist.DistError | _TerminationSignal) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def _format_connection_error(error: BaseException) -> str:
    if isinstance(error, _TerminationSignal):
        return "torchrun was told to end this run, or another process of it has ended"
    # The first sentence, without the source location that gloo puts before it.
    text = re.sub(r"^\[[^]]*\] *", "", " ".join(str(error).split()))
    reason = text.split(". ")[0][:MAX_REASON_LENGTH]
    return f"another process of this run has ended or does not answer any more ({reason})"


def local_device(device: torch.device) -> torch.device:
    """Return the device of this process: of several GPUs the one with its local rank."""
    if device.type != "cuda" or world_size() == 1:
        return device
    local_rank = int(os.environ["LOCAL_RANK"])
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise UserError(
            "more processes than GPUs on one machine: start torchrun with --nproc-per-node "
            f"{num_gpus}"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def check_rows_divisible(rows: int, length: int) -> None:
    """Raise UserError if the rows of a step cannot be divided evenly among the ranks."""
    if rows % world_size():
        nearest = max(1, round(rows / world_size())) * world_size() * length
        counts = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
        raise UserError(
            f"--batch_tokens {rows * length} is {rows} rows of {length}, which {world_size()} "
            f"processes cannot share evenly: use {counts} processes, or --batch_tokens {nearest} "
            "in a new run"
        )


@functools.cache
def _long_timeout_group() -> dist.ProcessGroup | None:
    """Return the gloo group for waits of hours; its first call is a collective."""
    return dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)


def barrier() -> None:
    """Wait until all ranks are here."""
    if world_size() > 1:
        dist.barrier(group=_long_timeout_group())


def all_reduce_sum(*values: Any) -> list[Any]:
    """Return the sums of numbers over all ranks, with the same bits on each: in int64 or fp64."""
    if world_size() == 1:
        return list(values)
    is_float = any(isinstance(value, float) for value in values)
    tensor = torch.tensor(values, dtype=torch.float64 if is_float else torch.int64)
    dist.all_reduce(tensor, group=_long_timeout_group())
    return tensor.tolist()


def any_rank(flag: bool) -> bool:
    """Return the logical OR of `flag` over all ranks, with the short timeout of a step."""
    if world_size() == 1:
        return flag
    tensor = torch.tensor(int(flag))
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor)


def broadcast_object(value: T) -> T:
    """Return the main process's value, anything that JSON can hold, on all ranks."""
    if world_size() == 1:
        return value
    payload = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
    count = torch.tensor(len(payload))
    dist.broadcast(count, 0, group=_long_timeout_group())
    payload = payload if is_main_process() else torch.empty(int(count), dtype=torch.uint8)
    dist.broadcast(payload, 0, group=_long_timeout_group())
    received: T = json.loads(bytes(payload.tolist()))
    return received


def main_process_first(work: Callable[[], T]) -> T:
    """Run `work` on the main process first, then on the others, which reuse its files."""
    if not is_main_process():
        barrier()
        return work()
    result = work()
    barrier()
    return result


def wrap_model(model: Llama, strategy: ParallelStrategy) -> nn.Module:
    """Return the module to call for a loss whose gradients are averaged over the ranks.

    `ddp` replicates the weights. `fsdp` shards weights, gradients and optimizer state in place, and
    gathers a layer while it computes it. With one process the module is the model.
    """
    if world_size() == 1:
        return model
    if strategy == "ddp":
        # The only buffer is the rotary table, equal on all ranks. Torch 2.13 renamed the option.
        parameters = inspect.signature(DistributedDataParallel.__init__).parameters
        sync_buffers = "forward_sync_buffers"
        if sync_buffers not in parameters:
            sync_buffers = "broadcast_buffers"
        options: dict[str, Any] = {sync_buffers: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(model, **options)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.lm_head.weight.device.type, (world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    # Embedding, last norm and head stay gathered from forward to backward: the loss reads the
    # weight of the head outside of its forward method.
    fully_shard(model, mesh=mesh)
    return model


def no_backward_sync(module: nn.Module, enabled: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context in which DDP does not all-reduce gradients, if `enabled`.

    FSDP reduces after every backward pass, because it has no room for whole gradients.
    """
    if enabled and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this rank holds only a shard of the tensor."""
    if world_size() == 1:
        return False
    # The import takes most of a second, which a single process saves.
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a sharded tensor, and any other tensor as it is. A collective."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a copy of a whole tensor on the device of `like`, sharded as `like` is.

    Tensors of another shape than `like`, such as step counts, stay whole.
    """
    tensor = tensor.to(like.device, copy=True)
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    pattern = cast(DTensor, like)
    return distribute_tensor(tensor, pattern.device_mesh, pattern.placements, src_data_rank=None)


def gather_model(model: Llama) -> Llama:
    """Return a model with whole weights on the main process, on the same device. A collective.

    The other ranks get their sharded model back, and so do all without FSDP.
    """
    if not is_sharded(model.lm_head.weight):
        return model
    with torch.device("meta"):
        copy = Llama(model.config)
    state = {}
    for name, tensor in model.state_dict().items():
        gathered = full_tensor(tensor)
        if is_main_process():
            state[name] = gathered
    if not is_main_process():
        return model
    copy.load_state_dict(state, assign=True)
    if model.config.tie_word_embeddings:
        copy.lm_head.weight = copy.model.embed_tokens.weight
    copy.model.rotary.cos_sin = model.model.rotary.cos_sin
    copy.trained_context = model.trained_context
    return copy


class ShardedMuon(torch.optim.Muon):
    """Muon over sharded matrices.

    Newton-Schulz multiplies a matrix by itself many times, and on shards each product would need
    communication. So each matrix is gathered once, with gradient and momentum, updated by torch's
    Muon on every rank alike, and sharded again.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all matrices, one by one, so that only one of them is whole at a time."""
        for group in self.param_groups:
            options = {name: group[name] for name in self.defaults}
            for parameter in group["params"]:
                matrix = nn.Parameter(full_tensor(parameter))
                matrix.grad = full_tensor(parameter.grad)
                muon = torch.optim.Muon([matrix], **options)
                for field, value in self.state[parameter].items():
                    muon.state[matrix][field] = full_tensor(value)
                muon.step()
                parameter.copy_(shard_like(matrix.detach(), parameter))
                for field, value in muon.state[matrix].items():
                    self.state[parameter][field] = shard_like(value, parameter)
