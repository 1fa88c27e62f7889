"""Imports of the fork server of the checks. None may initialize CUDA: no fork could use it."""

import contextlib
import gc
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

gc.disable()
for module in MODULES:
    # The server must survive; the check that needs the module fails with the error itself.
    with contextlib.suppress(Exception):
        importlib.import_module(module)
# The garbage collector writes to all objects that it visits, and a fork would copy their pages.
gc.freeze()
gc.enable()
