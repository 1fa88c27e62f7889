"""The model that a run started from, beside the one that it trains."""

import contextlib
from collections.abc import Callable, Iterator

from model.llama import Llama
from model.lora import without_adapter


class ReferenceModel:
    """The model as it was before the first step.

    With an adapter it is the trained model without the adapter. Otherwise a second model is kept in
    memory, from the first use on.
    """

    def __init__(self, *, uses_adapter: bool) -> None:
        """Load nothing yet; `load` has to be set."""
        self._uses_adapter = uses_adapter
        self._model: Llama | None = None
        self.load: Callable[[], Llama] | None = None

    @contextlib.contextmanager
    def borrow(self, model: Llama) -> Iterator[Llama]:
        """Yield the reference of `model`, which is in training and not used meanwhile.

        Raises UserError if its base is gone.
        """
        if self._uses_adapter:
            with without_adapter(model):
                yield model
            return
        if self._model is None:
            assert self.load is not None
            self._model = self.load().eval().requires_grad_(False)
        yield self._model
