"""A generation request, and the sequence that answers it while it is in the batch."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from model.decode.detokenize import StreamingDetokenizer
from model.decode.logits_processors import (
    build_logits_processors,
    process_logits,
    sample_token,
)
from model.decode.sampling import Sampling
from model.tokenizer.base import Tokenizer

# eos: the model ended the answer; stop: a stop string; length: max_new_tokens; context: the end of
# the context; timeout: the request's deadline; cancelled: the client disconnected.
FinishReason = Literal["eos", "stop", "length", "context", "timeout", "cancelled"]


@dataclass(frozen=True)
class TextDelta:
    """The next piece of the answer's text."""

    text: str


@dataclass(frozen=True)
class Finish:
    """The end of a complete answer of `num_tokens` ids."""

    finish_reason: FinishReason
    num_tokens: int


@dataclass(frozen=True)
class Failure:
    """The end of a request without an answer: an HTTP status and a sentence that says why."""

    status: int
    message: str


AnswerEvent = TextDelta | Finish | Failure


@dataclass(eq=False)
class GenerationRequest:
    """A prompt to be answered, with the settings of its answer.

    The engine's thread calls `emit` with every event. The last one is a Finish or a Failure.
    """

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    seed: int
    deadline: float  # on the clock of time.monotonic
    emit: Callable[[AnswerEvent], None]
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop_strings: Sequence[str] = ()
    is_cancelled: bool = False  # set by the HTTP side when the client has disconnected


@dataclass(eq=False)
class ActiveSequence:
    """The ids generated for a request in the batch, and the state needed to sample the next one.

    With the same seed it generates the same ids as `model.decode.generate.generate`.
    """

    request: GenerationRequest
    tokenizer: Tokenizer
    context_length: int
    stop_ids: Collection[int]  # ids that end an answer
    answer_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        request = self.request
        self._generator = torch.Generator().manual_seed(request.seed)
        self._processors = build_logits_processors(
            repetition_penalty=request.sampling.repetition_penalty,
            no_repeat_ngram=request.sampling.no_repeat_ngram,
            frequency_penalty=request.frequency_penalty,
            presence_penalty=request.presence_penalty,
        )
        self._detokenizer = StreamingDetokenizer(self.tokenizer, request.stop_strings)

    @property
    def num_remaining_tokens(self) -> int:
        """Return how many more ids the answer may have, limited by the request and the context."""
        num_positions = self.context_length - len(self.request.prompt)
        return min(self.request.max_new_tokens, num_positions) - len(self.answer_ids)

    @property
    def is_greedy(self) -> bool:
        """Return whether the next id is the argmax of the unprocessed logits."""
        return self.request.sampling.is_greedy and not self._processors

    def sample_token(self, logits: Tensor) -> int:
        """Return the next id, sampled from logits[V] (fp32, on the CPU)."""
        generated = torch.tensor([self.answer_ids], dtype=torch.int64)
        # Processors take a batch; this is one of a single row.
        logits = process_logits(self._processors, logits[None], generated)[0]
        return sample_token(logits, self.request.sampling, self._generator)

    def append_token(self, token_id: int) -> None:
        """Append the next id to the answer, and emit the text that it completes.

        Finishes the answer at a stop id, which is not appended, and after an id that completes a
        stop string or reaches `max_new_tokens` or the end of the context.
        """
        if token_id in self.stop_ids:
            self.finish("eos")
            return
        self.answer_ids.append(token_id)
        self._emit_text(self._detokenizer.add_token(token_id))
        if self._detokenizer.has_stopped:
            self.finish("stop")
        elif len(self.answer_ids) >= self.request.max_new_tokens:
            self.finish("length")
        elif self.num_remaining_tokens <= 0:
            self.finish("context")

    def finish(self, finish_reason: FinishReason) -> None:
        """Emit the text that was held back, and the end of the answer.

        The detokenizer holds back half characters and text that may become a stop string.
        """
        if not self._detokenizer.has_stopped:
            self._emit_text(self._detokenizer.flush())
        # Flushing can complete a stop string, too.
        self.finish_reason = "stop" if self._detokenizer.has_stopped else finish_reason
        self.request.emit(Finish(self.finish_reason, len(self.answer_ids)))

    def fail(self, status: int, message: str) -> None:
        """Emit a failure instead of the rest of the answer."""
        # Any reason takes the sequence out of the batch; the client gets the failure alone.
        self.finish_reason = "cancelled"
        self.request.emit(Failure(status, message))

    def _emit_text(self, text: str) -> None:
        if text:
            self.request.emit(TextDelta(text))
