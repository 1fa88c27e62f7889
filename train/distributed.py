"""Several processes (ranks) that train one model together, with DDP or FSDP2.

torchrun starts the processes, which communicate with NCCL on GPUs and gloo on CPUs. The contract:

* The rows of a step are divided among the ranks in contiguous slices, so that a step reads the same
  rows with any number of ranks.
* Gradients are those of the mean loss over all targets of the whole step.
* The main process, rank 0, prints, measures, evaluates and writes. A checkpoint holds whole tensors
  and does not depend on the number of ranks.

A collective is a function that all ranks must call, in the same order. With one process,
torch.distributed is not initialized, and the collectives return their arguments.
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

# Within a step, a rank that does not answer for this long fails the run. A process that has ended
# is noticed at once.
STEP_TIMEOUT = timedelta(minutes=10)
# The other ranks wait while the main process prepares data, tunes or evaluates, perhaps for hours.
LONG_TIMEOUT = timedelta(days=1)
# Number of characters of an error of gloo or NCCL that a message shows.
MAX_REASON_LENGTH = 120


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, from 0; it is 0 with one process."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Return whether this is rank 0, which prints and writes."""
    return rank() == 0


@contextlib.contextmanager
def distributed_session() -> Iterator[None]:
    """Join the processes that torchrun started; without torchrun, do nothing.

    Inside, only the main process prints. If ranks fail, the first one to fail raises its error; if
    a rank was killed, another one raises a UserError instead. The others exit with code 2 and print
    nothing, unless their error is a bug with a traceback.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    # Not `init_process_group("env://")`, because `_claim_first_failure` needs torchrun's store.
    store, process_rank, count = next(dist.rendezvous("env://"))
    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_nccl else "gloo",
        # The prefix separates the keys of the process group from those of torchrun.
        store=dist.PrefixStore("babyllama", store),
        rank=process_rank,
        world_size=count,
        timeout=STEP_TIMEOUT,
    )
    previous_handler = signal.signal(signal.SIGTERM, _handle_sigterm)
    try:
        with _suppress_output() if process_rank else contextlib.nullcontext():
            yield
            # torchrun sends SIGTERM to all ranks once one of them has ended with an exit code other
            # than 0, as those of a stopped run do: no rank may end while another one still works.
            barrier()
    except (Exception, KeyboardInterrupt) as error:
        # torchrun sends SIGTERM to all ranks once one of them has failed; this one ends already.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        is_connection_error = _is_connection_error(error)
        # Several ranks may raise the same UserError, and a lost connection is the consequence of an
        # error elsewhere: one message is enough. Other errors are bugs, and print a traceback.
        is_redundant = is_connection_error or isinstance(error, UserError | KeyboardInterrupt)
        if not _claim_first_failure(store) and is_redundant:
            sys.exit(2)
        if is_connection_error:
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
    """Discard what Python code prints to stdout and stderr."""
    with (
        open(os.devnull, "w") as devnull,
        contextlib.redirect_stdout(devnull),
        contextlib.redirect_stderr(devnull),
    ):
        yield


def _claim_first_failure(store: dist.Store) -> bool:
    """Return whether this rank is the first to call this function.

    The store survives the ranks, because torchrun hosts it.
    """
    try:
        # `add` increments a counter atomically and returns its new value.
        return store.add("failed", 1) == 1
    except RuntimeError:
        # torchrun and its store have ended: no rank can tell, so each of them reports its error.
        return True


def _is_connection_error(error: BaseException) -> bool:
    """Return whether the error means that another rank cannot be reached."""
    # gloo raises a plain RuntimeError if a connection is lost.
    return isinstance(error, dist.DistError | _TerminationSignal) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def _format_connection_error(error: BaseException) -> str:
    """Return what happened, as the beginning of a message."""
    if isinstance(error, _TerminationSignal):
        return "torchrun was told to end this run, or another process of it has ended"
    # The first sentence, without the source location that gloo puts before it.
    message = re.sub(r"^\[[^]]*\] *", "", " ".join(str(error).split()))
    reason = message.split(". ")[0][:MAX_REASON_LENGTH]
    return f"another process of this run has ended or does not answer any more ({reason})"


def local_device(device: torch.device) -> torch.device:
    """Return the device of this process, and with several processes make its GPU the current one.

    The process with local rank i of a machine uses its GPU i. A CPU is returned as it is. Raises
    UserError if the machine has fewer GPUs than processes.
    """
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
    """Raise UserError if the rows of a step cannot be divided evenly among the ranks.

    `length` is the number of tokens of a row.
    """
    if rows % world_size():
        rows_per_rank = max(1, round(rows / world_size()))
        nearest = rows_per_rank * world_size() * length
        counts = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
        raise UserError(
            f"--batch_tokens {rows * length} is {rows} rows of {length}, which {world_size()} "
            f"processes cannot share evenly: use {counts} processes, or --batch_tokens {nearest} "
            "in a new run"
        )


@functools.cache
def _long_timeout_group() -> dist.ProcessGroup | None:
    """Return the gloo group of all ranks with LONG_TIMEOUT. The first call is a collective."""
    return dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)


def barrier() -> None:
    """Wait until all ranks have called this function."""
    if world_size() > 1:
        dist.barrier(group=_long_timeout_group())


def all_reduce_sum(*values: Any) -> list[Any]:
    """Return the sums of numbers over all ranks, with the same bits on each. A collective.

    The sums are computed in fp64 if one of the numbers is a float, otherwise in int64.
    """
    if world_size() == 1:
        return list(values)
    is_float = any(isinstance(value, float) for value in values)
    tensor = torch.tensor(values, dtype=torch.float64 if is_float else torch.int64)
    dist.all_reduce(tensor, group=_long_timeout_group())
    return tensor.tolist()


def any_rank(flag: bool) -> bool:
    """Return whether `flag` is true on any rank. A collective, with the short timeout of a step."""
    if world_size() == 1:
        return flag
    tensor = torch.tensor(int(flag))
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor)


def broadcast_object(value: T) -> T:
    """Return the main process's value on all ranks. A collective.

    The value goes through JSON, because `dist.broadcast_object_list` would pickle it.
    """
    if world_size() == 1:
        return value
    payload = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
    # The other ranks need the length of the payload to allocate a tensor for it.
    length = torch.tensor(len(payload))
    dist.broadcast(length, src=0, group=_long_timeout_group())
    if not is_main_process():
        payload = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(payload, src=0, group=_long_timeout_group())
    received: T = json.loads(bytes(payload.tolist()))
    return received


def main_process_first(work: Callable[[], T]) -> T:
    """Run `work` on the main process first, then on the other ranks, which reuse its files."""
    if not is_main_process():
        barrier()
        return work()
    result = work()
    barrier()
    return result


def wrap_model(model: Llama, strategy: ParallelStrategy) -> nn.Module:
    """Return the module to call for a loss whose gradients are averaged over the ranks.

    `ddp` replicates the weights. `fsdp` shards weights, gradients and optimizer state of the model
    in place, and gathers the weights of a layer only while the layer is computed. With one process
    the module is the model itself.
    """
    if world_size() == 1:
        return model
    if strategy == "ddp":
        # Buffers need not be broadcast before each forward pass: the only one is the rotary table,
        # which is equal on all ranks. PyTorch 2.13 renamed the option.
        parameters = inspect.signature(DistributedDataParallel.__init__).parameters
        sync_buffers = "forward_sync_buffers"
        if sync_buffers not in parameters:
            sync_buffers = "broadcast_buffers"
        options: dict[str, Any] = {sync_buffers: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(model, **options)
    # Imported here because a run without FSDP need not wait for the import.
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

    FSDP reduces the gradients in every backward pass: to accumulate them locally, each rank would
    need memory for those of all weights.
    """
    if enabled and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this rank holds only a shard of the tensor."""
    if world_size() == 1:
        return False
    # Imported here because it takes most of a second, which a single process saves.
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a sharded tensor gathered from all ranks, any other tensor as it is. A collective."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a copy of a whole tensor on the device of `like`, sharded as `like` is.

    Tensors of another shape than `like`, such as step counts, stay whole.
    """
    tensor = tensor.to(like.device, copy=True)
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    sharded = cast(DTensor, like)
    # Without a source rank nothing is sent: each rank has the whole tensor and keeps its shard.
    return distribute_tensor(tensor, sharded.device_mesh, sharded.placements, src_data_rank=None)


def gather_model(model: Llama) -> Llama:
    """Return a copy of the model with whole weights on the main process. A collective.

    The copy is on the device of the model. The other ranks get `model` itself, and without FSDP the
    main process does too.
    """
    if not is_sharded(model.lm_head.weight):
        return model
    # On the meta device, because the gathered tensors replace its weights.
    # The copy has no adapter: fine-tuning refuses LoRA with FSDP.
    with torch.device("meta"):
        whole_model = Llama(model.config)
    state = {}
    for name, tensor in model.state_dict().items():
        # Gathering is a collective, so every rank does it, but only the main process keeps the
        # result.
        gathered = full_tensor(tensor)
        if is_main_process():
            state[name] = gathered
    if not is_main_process():
        return model
    whole_model.load_state_dict(state, assign=True)
    # Assigning the tensors has separated tied weights.
    if model.config.tie_word_embeddings:
        whole_model.lm_head.weight = whole_model.model.embed_tokens.weight
    # The rotary table is a buffer that the state does not contain.
    whole_model.model.rotary.cos_sin = model.model.rotary.cos_sin
    whole_model.trained_context = model.trained_context
    whole_model.unused_ids = model.unused_ids
    return whole_model
