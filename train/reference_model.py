"""The model that a run started from, beside the one that it trains."""

import contextlib
import copy
from collections.abc import Callable, Iterator

from model.llama import Llama
from model.lora import without_adapter


class ReferenceModel:
    """The model as it was before the first step.

    With an adapter it is the trained model without the adapter, otherwise a second one in memory.
    """

    def __init__(self, *, has_adapter: bool) -> None:
        """Have no model yet: `keep` has to be called first."""
        self._has_adapter = has_adapter
        self._model: Llama | None = None

    def keep(self, load_initial_model: Callable[[], Llama]) -> None:
        """Keep a copy of the initial model, which may be the one that is trained from now on.

        With an adapter nothing is loaded: a resumed run would have the base in memory twice.
        """
        if not self._has_adapter:
            self._model = copy.deepcopy(load_initial_model()).eval().requires_grad_(False)

    @contextlib.contextmanager
    def borrow(self, model: Llama) -> Iterator[Llama]:
        """Yield the reference of `model`, which is in training and not used meanwhile."""
        if self._model is not None:
            yield self._model
            return
        assert model.adapter is not None
        with without_adapter(model):
            yield model
