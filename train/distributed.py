"""Several processes that train one model together, as torchrun starts them: DDP or FSDP2, NCCL on GPUs and gloo on CPUs.

The contract. The rows of a step are divided among the processes in contiguous slices, so that a step sees the same rows
whatever their number. Gradients are those of the mean over all positions with a loss of the whole step. The first process
prints, measures, evaluates and writes; a checkpoint holds whole tensors and does not tell how many processes made it.

With one process everything here returns what it was given, and torch.distributed is never set up.
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

# A process that does not answer in the middle of a step for so long is given up. One that is dead is noticed at once.
STEP_TIMEOUT = timedelta(minutes=10)
# The others wait for the first one while it prepares data, measures or evaluates, which may take hours.
LONG_TIMEOUT = timedelta(days=1)


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, counted from zero."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this is the process that speaks and writes."""
    return rank() == 0


@contextlib.contextmanager
def distributed_session() -> Iterator[None]:
    """Join the processes that torchrun started with this one; without torchrun, nothing.

    Inside, only the first process prints. When processes fail, the one that fails first says why; where it had no time to,
    because it was killed, one of the others says that. The rest end without a word, with exit code 2.
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
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending
        lost = _is_connection_error(error)
        if not _claim_first_failure(store) and (
            lost or isinstance(error, UserError | KeyboardInterrupt)
        ):
            sys.exit(2)
        if lost:
            so = "so all of them end; the same command goes on from the last whole checkpoint"
            raise UserError(f"{_format_connection_error(error)}, {so}") from None
        raise
    signal.signal(signal.SIGTERM, previous_handler)
    dist.destroy_process_group()


class _TerminationSignal(Exception):
    """torchrun ends this process, because another one has ended or because it was told to itself."""


def _handle_sigterm(number: int, frame: FrameType | None) -> None:
    raise _TerminationSignal


@contextlib.contextmanager
def _suppress_output() -> Iterator[None]:
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _claim_first_failure(store: dist.Store) -> bool:
    """True in the first process that asks. torchrun keeps the store, so it is there whichever process has gone."""
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:
        return True  # torchrun itself has gone


def _is_connection_error(error: BaseException) -> bool:
    """Whether an error is that others cannot be reached. gloo has no class of its own for it."""
    return isinstance(error, dist.DistError | _TerminationSignal) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def _format_connection_error(error: BaseException) -> str:
    """Why all processes end: the first sentence of an error, without the place in gloo's own code."""
    if isinstance(error, _TerminationSignal):
        return "torchrun was told to end this run, or another process of it has ended"
    said = re.sub(r"^\[[^]]*\] *", "", " ".join(str(error).split())).split(". ")[0][:120]
    return f"another process of this run has ended or does not answer any more ({said})"


def local_device(device: torch.device) -> torch.device:
    """This process's own device: of several GPUs the one with its number on this machine."""
    if device.type != "cuda" or world_size() == 1:
        return device
    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= there:
        raise UserError(
            f"more processes than GPUs on one machine: start torchrun with --nproc-per-node {there}"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def check_rows_divisible(rows: int, length: int) -> None:
    """UserError if the rows of a step cannot be divided evenly."""
    if rows % world_size():
        near = max(1, round(rows / world_size())) * world_size() * length
        fitting = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
        raise UserError(
            f"--batch_tokens {rows * length} is {rows} rows of {length}, which {world_size()} processes cannot share "
            f"evenly: use {fitting} processes, or --batch_tokens {near} in a new run"
        )


@functools.cache
def _long_timeout_group() -> dist.ProcessGroup | None:
    """A group over CPUs for what may take long. All processes come to its first use together, which makes it."""
    return dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)


def barrier() -> None:
    """Go on when all processes have come here."""
    if world_size() > 1:
        dist.barrier(group=_long_timeout_group())


def all_reduce_sum(*values: Any) -> list[Any]:
    """The sums of numbers over all processes: whole numbers exactly, others in fp64, the same bits everywhere."""
    if world_size() == 1:
        return list(values)
    summed = torch.tensor(
        values, dtype=torch.float64 if any(isinstance(v, float) for v in values) else torch.int64
    )
    dist.all_reduce(summed, group=_long_timeout_group())
    return summed.tolist()


def any_rank(flag: bool) -> bool:
    """Whether something is true in any process. For use inside a step: who does not answer is given up as soon as there."""
    if world_size() == 1:
        return flag
    found = torch.tensor(int(flag))
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found)


def broadcast_object(value: T) -> T:
    """The first process's value, anything that JSON can hold, in all of them."""
    if world_size() == 1:
        return value
    payload = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
    count = torch.tensor(len(payload))
    dist.broadcast(count, 0, group=_long_timeout_group())
    payload = payload if is_main_process() else torch.empty(int(count), dtype=torch.uint8)
    dist.broadcast(payload, 0, group=_long_timeout_group())
    said: T = json.loads(bytes(payload.tolist()))
    return said


def main_process_first(work: Callable[[], T]) -> T:
    """What `work` gives, done by the first process alone and then by the others, who find ready what it leaves on disk."""
    if not is_main_process():
        barrier()
        return work()
    done = work()
    barrier()
    return done


def wrap_model(model: Llama, strategy: ParallelStrategy) -> nn.Module:
    """What to call for a loss, so that its gradients are the mean of all processes': the model itself with one process.

    `ddp`: every process has all weights. `fsdp`: each holds a part of every weight, gradient and optimiser state and
    gathers a layer while it computes it; the model is changed in place.
    """
    if world_size() == 1:
        return model
    if strategy == "ddp":
        # The only buffer is the table of angles, the same everywhere. Before 2.13 the option has the other name.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(model, **options)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.lm_head.weight.device.type, (world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    # The embedding, the last norm and the head stay gathered from forward to backward: the loss needs the head's weight.
    fully_shard(model, mesh=mesh)
    return model


def no_backward_sync(module: nn.Module, enabled: bool) -> contextlib.AbstractContextManager[None]:
    """A forward pass that more of the same step follow: DDP exchanges gradients after the last one only. FSDP does so after
    each, because it has no room for whole gradients.
    """
    if enabled and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of a tensor only."""
    if world_size() == 1:
        return False
    from torch.distributed.tensor import DTensor  # most of a second that one process need not wait

    return isinstance(tensor, DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process holds a part; any other as it is. All processes must ask."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor where `like` is; of `like`'s shape, the part of it that `like` is of its own whole."""
    tensor = tensor.to(like.device, copy=True)
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    pattern = cast(DTensor, like)
    return distribute_tensor(tensor, pattern.device_mesh, pattern.placements, src_data_rank=None)


def gather_model(model: Llama) -> Llama:
    """In the first process a model with all weights, on the same device; all processes must ask. Without FSDP the model."""
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
    """Muon over matrices of which each process holds a part.

    It multiplies a matrix by itself many times: on parts, each product would be an exchange between the processes. So each
    matrix is gathered once, with gradient and momentum, moved by torch's own Muon in every process alike, and cut again.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; matrix by matrix, so that only one is whole at a time."""
        for group in self.param_groups:
            for parameter in group["params"]:
                matrix = nn.Parameter(full_tensor(parameter))
                matrix.grad = full_tensor(parameter.grad)
                muon = torch.optim.Muon([matrix], **{name: group[name] for name in self.defaults})
                muon.state[matrix] = {
                    field: full_tensor(value) for field, value in self.state[parameter].items()
                }
                muon.step()
                parameter.copy_(shard_like(matrix.detach(), parameter))
                self.state[parameter] = {
                    field: shard_like(value, parameter)
                    for field, value in muon.state[matrix].items()
                }
