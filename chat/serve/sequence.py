"""A generation request, and the sequence that answers it while it is in the batch."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from model.decode.detokenize import StreamingDetokenizer
from model.decode.logits_processors import build_logits_processors
from model.decode.sampling import Sampling
from model.decode.scheduler import ScheduledAnswer
from model.tokenizer.base import Tokenizer

# eos: the model ended the answer; stop: a stop string; length: max_new_tokens; context: the end of
# the context; timeout: the request's deadline; cancelled: the client disconnected.
FinishReason = Literal["eos", "stop", "length", "context", "timeout", "cancelled"]

OVERFLOW_MESSAGE = "the computation overflowed: start the server with --precision fp32"


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


class ActiveSequence(ScheduledAnswer):
    """The answer to a request, and what streams its text.

    With the same seed it gets the same ids as from `model.decode.generate.generate`.
    """

    def __init__(
        self,
        request: GenerationRequest,
        tokenizer: Tokenizer,
        context_length: int,
        stop_ids: Collection[int],
    ) -> None:
        """`stop_ids` end the answer, as the end of the context does."""
        super().__init__(
            request.prompt,
            limit=min(request.max_new_tokens, context_length - len(request.prompt)),
            stop_ids=stop_ids,
            sampling=request.sampling,
            processors=build_logits_processors(
                repetition_penalty=request.sampling.repetition_penalty,
                no_repeat_ngram=request.sampling.no_repeat_ngram,
                frequency_penalty=request.frequency_penalty,
                presence_penalty=request.presence_penalty,
            ),
            seed=request.seed,
        )
        self.request = request
        self.finish_reason: FinishReason | None = None
        self._detokenizer = StreamingDetokenizer(tokenizer, request.stop_strings)

    @property
    def is_finished(self) -> bool:
        """Return whether the last event was emitted."""
        return self.finish_reason is not None

    def append(self, token_id: int) -> None:
        """Append the next id to the answer, and emit the text that it completes.

        Finishes the answer at a stop id, which is not appended, and after an id that completes a
        stop string or reaches `max_new_tokens` or the end of the context.
        """
        if token_id in self.stop_ids:
            self.finish("eos")
            return
        self.ids.append(token_id)
        self._emit_text(self._detokenizer.add_token(token_id))
        if self._detokenizer.has_stopped:
            self.finish("stop")
        elif len(self.ids) >= self.request.max_new_tokens:
            self.finish("length")
        elif len(self.ids) >= self.limit:
            self.finish("context")

    def overflow(self) -> None:
        """Fail the request: the model's output is not finite."""
        self.fail(500, OVERFLOW_MESSAGE)

    def finish(self, finish_reason: FinishReason) -> None:
        """Emit the text that was held back, and the end of the answer.

        The detokenizer holds back half characters and text that may become a stop string.
        """
        if not self._detokenizer.has_stopped:
            self._emit_text(self._detokenizer.flush())
        # Flushing can complete a stop string, too.
        self.finish_reason = "stop" if self._detokenizer.has_stopped else finish_reason
        self.request.emit(Finish(self.finish_reason, len(self.ids)))

    def fail(self, status: int, message: str) -> None:
        """Emit a failure instead of the rest of the answer."""
        # Any reason takes the sequence out of the batch; the client gets the failure alone.
        self.finish_reason = "cancelled"
        self.request.emit(Failure(status, message))

    def _emit_text(self, text: str) -> None:
        if text:
            self.request.emit(TextDelta(text))
