"""What the server of the checks' processes imports once for all of them. None of it may touch CUDA: forks could not."""

import contextlib
import importlib

MODULES = (
    "torch",
    "bench.gpu.equality",
    "bench.gpu.decoding",
    "bench.gpu.runs",
    "bench.gpu.memory",
    "bench.gpu.speed",
    "torch.utils.tensorboard",
    "torch._dynamo",
    "torch._functorch.aot_autograd",
)

for module in MODULES:
    # Each check imports what it needs once more, and reports what is wrong with it; the server must live.
    with contextlib.suppress(Exception):
        importlib.import_module(module)
