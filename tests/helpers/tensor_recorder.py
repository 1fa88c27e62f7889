"""Record the operations that PyTorch runs."""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class TensorRecorder(TorchDispatchMode):
    """Record the name and output shapes of every operation inside the context, except for views.

    A view shares the memory of its input, and the tests count memory that is written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[tuple[str, torch.Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and not func.is_view:
                self.outputs.append((str(func), tensor.shape))
        return result

    def operations_returning(self, shape: torch.Size) -> list[str]:
        """Return the names of the operations that wrote a tensor of this shape."""
        return [name for name, output_shape in self.outputs if output_shape == shape]

    @property
    def largest_output(self) -> int:
        """The number of elements of the largest output."""
        return max(prod(shape) for _, shape in self.outputs)
