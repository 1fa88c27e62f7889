"""A batch of prompts of different lengths behind one KV cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.decode.kv_cache import Cache
from model.decode.fast.inference_model import decoder_of
from model.llama import Llama

# Rows that are over are dropped once they are this share of the batch: dropping copies what the others hold.
_DROPPED_SHARE = 0.25


def look_every(device: torch.device) -> int:
    """How many steps pass before the host looks who is over: waiting for a GPU at each of them would leave it idle."""
    return 1 if device.type == "cpu" else 8


class BatchReader:
    """Reads ids for several rows at once and says what each row makes of the next one.

    Prompts are padded on the left, so that all rows write the same column of the cache; a row's positions count from its
    own first id and nothing looks at padding: a row gets what it would get alone. `prompts`[R, T] are those of the start,
    padded. Shapes: R rows, T new columns, D hidden size, V vocabulary.
    """

    def __init__(self, model: Llama, prompts: Sequence[Sequence[int]], *, new: int, copies: int = 1) -> None:
        """Make room for `new` ids behind the longest prompt, and for `copies` rows of each prompt (see `select`)."""
        weight = model.model.norm.weight
        self._model, self._decoder, self.device = model, decoder_of(model), weight.device
        self.head = self._decoder.head
        longest = max(map(len, prompts))
        self.cache = Cache(model.config, len(prompts) * copies, longest + new, self.device, weight.dtype)
        self.cache.rows = len(prompts)
        self._columns = torch.arange(longest + new, device=self.device)
        self._padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=self.device)
        self.prompts = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=self.device)
        self._even = len(set(map(len, prompts))) == 1
        self.look_every = look_every(self.device)

    @classmethod
    def join(cls, readers: Sequence["BatchReader"], *, new: int) -> "BatchReader":
        """One reader with the rows of several of one model, in their order, and room for `new` more ids behind them.

        What was read is copied, not read again; columns that are padding in every row are left out.
        """
        held = [int(count) for each in readers for count in each.cache.length - each._padding]
        joined = cls(readers[0]._model, [[0] * count for count in held], new=new)
        joined.cache.length, row = max(held), 0
        for each in readers:
            joined.cache.take(each.cache, row)
            row += each.cache.rows
        return joined

    def read_prompts(self) -> Tensor:
        """Read all prompts; logits[R, V] of what follows them, fp32."""
        return self.read(self.prompts)

    def read(self, ids: Tensor) -> Tensor:
        """Put ids[R, T] behind what the rows hold; logits[R, V] of what follows the last of them, fp32."""
        return self.head.logits(self.hidden(ids))

    def read_prompts_likeliest(self) -> Tensor:
        """Read all prompts; the likeliest id behind each, int64[R]."""
        return self.read_likeliest(self.prompts)

    def read_likeliest(self, ids: Tensor) -> Tensor:
        """Put ids[R, T] behind what the rows hold; the likeliest id behind the last of them, int64[R].

        The argmax of what `read` gives, found without computing all of it where that is faster.
        """
        return self.head.likeliest(self.hidden(ids))

    def hidden(self, ids: Tensor) -> Tensor:
        """Put ids[R, T] behind what the rows hold; hidden[R, D] of the last of them, for `head`."""
        start, stop = self.cache.length, self.cache.length + ids.shape[1]
        positions = None
        if not self._even:
            # A row that reached the end of its context may wait in the batch to be dropped: clamped, nobody reads it.
            last = self._model.config.max_position_embeddings - 1
            positions = (self._columns[start:stop] - self._padding[:, None]).clamp(0, last)
        hidden = self._decoder.read(ids, self.cache, positions, self._mask(start, stop))
        self.cache.length = stop
        return hidden

    def _mask(self, start: int, stop: int) -> Tensor | None:
        """Who may look where, bool[R, 1, T, stop]; None where plain causality says it."""
        if self._even:
            return None
        looked, looking = self._columns[:stop], self._columns[start:stop, None]
        real = (looked >= self._padding[:, None])[:, None, None]
        # Padding looks at itself: a softmax over nothing would be NaN, and spread.
        return real & (looked <= looking) | (looked == looking)

    def select(self, rows: Tensor, start: int = 0) -> None:
        """Go on with these rows (int64[n]: any order, repeats allowed), which share what is before column `start`."""
        self.cache.select(rows, start)
        self._padding = self._padding[rows]
        if not self._even and start == 0:
            self._even = not bool(self._padding.any())


def worth_dropping(alive: int, rows: int) -> bool:
    """Whether so many of the rows are over that going on without them pays."""
    return alive <= (1 - _DROPPED_SHARE) * rows
