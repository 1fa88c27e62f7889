"""The scheduler: decode many answers together, while new ones start and others end.

Waiting prompts are prefilled in rows of the running batch as soon as places are free (continuous
batching, Yu et al. 2022, Orca), so that a new answer does not wait for the longest running one, and
a long answer does not hold up the places of those that have ended. Evaluation, sampling and the
server all decode with it; beam search has its own loop (`model.decode.beam_search`).

An answer gets the ids that it would get alone, except for the rounding of sums in another order.
"""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from model.decode.batched_inference import InferenceBatch, host_sync_interval
from model.decode.lm_head import LMHead
from model.decode.logits_processors import LogitsProcessor, process_logits, sample_token
from model.decode.sampling import Sampling
from model.llama import Llama

# While more answers wait than places are free, a prefill waits until this share of the places is:
# short prompts are processed faster together. Not with `answers_at_once`: its readers wait.
_PREFILL_SHARE = 1 / 8


class ScheduledAnswer:
    """An answer that waits or is being generated: its prompt, its settings, and its ids so far."""

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        limit: int,
        stop_ids: Collection[int],
        sampling: Sampling,
        processors: Sequence[LogitsProcessor] = (),
        seed: int = 0,
    ) -> None:
        """`limit` is the most ids that the answer may have; with the prompt they fit the context.

        Answers to one prompt that are given the same object as `prompt` share its prefill.
        """
        self.prompt, self.limit, self.stop_ids = prompt, limit, stop_ids
        self.sampling, self.processors = sampling, processors
        self.ids: list[int] = []
        self.stop_id: int | None = None
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def is_finished(self) -> bool:
        """Return whether a stop id or the limit has ended the answer."""
        return self.stop_id is not None or len(self.ids) >= self.limit

    @property
    def takes_argmax(self) -> bool:
        """Return whether the next id is the argmax of the unprocessed logits."""
        return self.sampling.is_greedy and not self.processors

    def choose(self, logits: Tensor) -> int:
        """Return the next id, taken or drawn from logits[V] (fp32, on the CPU)."""
        if self.processors:
            generated = torch.tensor([self.ids], dtype=torch.int64)
            # Processors take a batch; this is one of a single row.
            logits = process_logits(self.processors, logits[None], generated)[0]
        return sample_token(logits, self.sampling, self._generator)

    def append(self, token_id: int) -> None:
        """Append the next id to the answer; a stop id ends it and is not appended."""
        if token_id in self.stop_ids:
            self.stop_id = token_id
        else:
            self.ids.append(token_id)

    def overflow(self) -> None:
        """React to output of the model that is not finite. Raises FloatingPointError."""
        position = len(self.prompt) + len(self.ids)
        raise FloatingPointError(f"the model's output at position {position} is not finite")


Answer = TypeVar("Answer", bound=ScheduledAnswer)


class Scheduler(Generic[Answer]):
    """Answers that wait, first come first served, and up to `max_rows` that run.

    Memory is that of the largest batch so far, until no answer is running.
    """

    def __init__(self, model: Llama, *, max_rows: int, answers_at_once: bool = False) -> None:
        """Decode with the weights that `model` has when the first of the running answers starts.

        With `answers_at_once` every free place is taken at once and every step of a GPU is waited
        for, as a server needs that streams.
        """
        self.max_rows = max_rows
        self.waiting: deque[Answer] = deque()
        # Row i of the batch belongs to running[i].
        self.running: list[Answer] = []
        self._model = model
        self._batch: InferenceBatch | None = None
        device = model.model.norm.weight.device
        self._sync_interval = 1 if answers_at_once else host_sync_interval(device)
        # A prefill of fewer answers waits, unless no more of them wait.
        self._min_new = 1 if answers_at_once else max(1, int(max_rows * _PREFILL_SHARE))
        # Hidden states[D] of the ends of the prompts that running answers share, by id(prompt).
        self._prompt_ends: dict[int, Tensor] = {}

    @property
    def has_work(self) -> bool:
        """Return whether an answer runs or waits."""
        return bool(self.running or self.waiting)

    def add(self, answer: Answer) -> None:
        """Let an answer wait for a place."""
        self.waiting.append(answer)

    @torch.inference_mode()
    def step(self) -> list[Answer]:
        """Start waiting answers and add ids to all that run; return those that ended.

        It is one id for each that runs; on a GPU several, if nothing depends on them there but the
        next ones. An answer whose limit is 0 never runs. If this raises, the answers that it was
        about are in `running`.
        """
        ended = self._start_waiting()
        if self.running:
            ended += self._decode()
        return ended

    @torch.inference_mode()
    def drop_finished(self) -> list[Answer]:
        """Take the finished answers out of `running`, and return them."""
        finished = [row for row, answer in enumerate(self.running) if answer.is_finished]
        ended = [self.running[row] for row in finished]
        if not finished:
            return ended
        if len(finished) == len(self.running) or self._batch is None:
            self.drop_all()
        else:
            order = self._batch.remove_rows(finished)
            self.running = [self.running[row] for row in order]
            self._forget_prompts()
        return ended

    def drop_all(self) -> None:
        """Take all answers out of `running`, and release the memory of the batch."""
        self.running, self._batch = [], None
        self._prompt_ends.clear()

    def _start_waiting(self) -> list[Answer]:
        """Prefill waiting answers if enough places are free, and give them their first ids.

        Returns those that ended.
        """
        num_new = min(self.max_rows - len(self.running), len(self.waiting))
        if num_new < min(len(self.waiting), self._min_new):
            return []
        candidates = [self.waiting.popleft() for _ in range(num_new)]
        ended = [answer for answer in candidates if answer.is_finished]
        new = [answer for answer in candidates if not answer.is_finished]
        if new:
            first_row = len(self.running)
            self.running += new
            hidden = self._prefill(self._reserve(), first_row)
            self._append_next_ids(self.running[first_row:], hidden)
            ended += self.drop_finished()
        return ended

    def _reserve(self) -> InferenceBatch:
        """Return the batch, with room for all answers of `running` and their limits."""
        num_rows = len(self.running)
        capacity = max(len(answer.prompt) + answer.limit for answer in self.running)
        if self._batch is None:
            self._batch = InferenceBatch(self._model, num_rows=num_rows, capacity=capacity)
        elif num_rows > self._batch.cache.num_rows:
            # Twice as many, so that rows that come one by one are not copied each time.
            num_rows = min(2 * num_rows, self.max_rows)
        self._batch.reserve(num_rows, capacity)
        return self._batch

    def _prefill(self, batch: InferenceBatch, first_row: int) -> Tensor:
        """Process the prompts of the answers from `first_row` on; return hidden[n, D] of the ends.

        A prompt that several answers share is processed once, as long as one of them runs. Changes
        the order of the new answers.
        """
        prompt_rows = {
            id(answer.prompt): row for row, answer in enumerate(self.running[:first_row])
        }
        fresh: list[Answer] = []
        copies: list[Answer] = []
        for answer in self.running[first_row:]:
            if id(answer.prompt) in prompt_rows:
                copies.append(answer)
            else:
                prompt_rows[id(answer.prompt)] = first_row + len(fresh)
                fresh.append(answer)
        self.running[first_row:] = fresh + copies
        if fresh:
            hidden = batch.prefill([answer.prompt for answer in fresh])
            for answer, end in zip(fresh, hidden, strict=True):
                self._prompt_ends[id(answer.prompt)] = end
        if copies:
            sources = [prompt_rows[id(answer.prompt)] for answer in copies]
            batch.append_copies(sources, [len(answer.prompt) for answer in copies])
        return torch.stack([self._prompt_ends[id(answer.prompt)] for answer in fresh + copies])

    def _decode(self) -> list[Answer]:
        """Add ids to all running answers; return those that ended."""
        assert self._batch is not None, "answers run in a batch"
        batch, answers = self._batch, self.running
        ids = torch.tensor([answer.ids[-1] for answer in answers], device=batch.device)
        if self._sync_interval == 1 or not all(answer.takes_argmax for answer in answers):
            self._append_next_ids(answers, batch.decode_step(ids))
            return self.drop_finished()
        # The ids stay on the device for some steps. No answer passes its limit meanwhile, but one
        # may pass its stop id.
        num_left = min(answer.limit - len(answer.ids) for answer in answers)
        steps = []
        for _ in range(min(self._sync_interval, num_left)):
            steps.append(_finite_argmax(batch.head, batch.decode_step(ids)))
            ids = steps[-1].clamp(min=0)
        for answer, next_ids in zip(answers, torch.stack(steps, 1).tolist(), strict=True):
            for next_id in next_ids:
                if not answer.is_finished:
                    _append(answer, next_id)
        return self.drop_finished()

    def _append_next_ids(self, answers: Sequence[Answer], hidden: Tensor) -> None:
        """Append the next id to each answer, given hidden[n, D] of its last position."""
        assert self._batch is not None, "answers run in a batch"
        head = self._batch.head
        # The argmax alone is cheaper than all logits.
        if all(answer.takes_argmax for answer in answers):
            for answer, next_id in zip(answers, _finite_argmax(head, hidden).tolist(), strict=True):
                _append(answer, next_id)
            return
        # One copy and one reduction for all rows: each would make the host wait for a GPU.
        logits = head.logits(hidden).cpu()
        # The maximum of absolute values is NaN or infinite if any number is.
        is_finite = logits.abs().amax(-1).isfinite().tolist()
        for answer, row, is_row_finite in zip(answers, logits, is_finite, strict=True):
            _append(answer, answer.choose(row) if is_row_finite else -1)

    def _forget_prompts(self) -> None:
        """Forget the ends of prompts that no running answer has."""
        prompts = {id(answer.prompt) for answer in self.running}
        self._prompt_ends = {key: end for key, end in self._prompt_ends.items() if key in prompts}


def _finite_argmax(head: LMHead, hidden: Tensor) -> Tensor:
    """Return the most likely ids for hidden[R, D], int64[R], and -1 where it is not finite."""
    # In one tensor, because every copy from a GPU waits for its kernels.
    return torch.where(hidden.isfinite().all(-1), head.argmax(hidden), -1)


def _append(answer: ScheduledAnswer, next_id: int) -> None:
    """Append an id to an answer, or tell it that the model's output is not finite (-1)."""
    if next_id < 0:
        answer.overflow()
    else:
        answer.append(next_id)
