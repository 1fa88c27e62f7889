"""One answer in the making: what was asked for, how its next id is chosen, what of its text may be shown."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from model.decode.detokenize import StreamingDetokenizer
from model.decode.generate import Sampling, sample_token
from model.decode.logits_processors import banned_ngram_tokens
from model.tokenizer.base import Tokenizer

# Why an answer ended: the model said so, a stop string came, it reached its limit or the end of the context, its time
# was up, nobody listens any more.
FinishReason = Literal["eos", "stop", "length", "context", "timeout", "gone"]


@dataclass(frozen=True)
class TextDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class Finish:
    """The answer is whole; it has so many `num_tokens`."""

    finish_reason: FinishReason
    num_tokens: int


@dataclass(frozen=True)
class Failure:
    """There is no answer, or no more of it: an HTTP status and a sentence that says why."""

    status: int
    message: str


AnswerEvent = TextDelta | Finish | Failure


@dataclass(eq=False)
class Job:
    """A prompt to be answered. `emit` gets each `Event` on the engine's thread; the last is `Over` or `Failed`."""

    prompt: list[int]
    max_new_tokens: int  # ids of the answer
    sampling: Sampling
    seed: int
    deadline: float  # on the clock of time.monotonic
    emit: Callable[[AnswerEvent], None]
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop_strings: Sequence[str] = ()
    is_cancelled: bool = False  # set by the one who asked when nobody listens any more


@dataclass(eq=False)
class ActiveSequence:
    """A job in a batch. With equal seeds it says what `model.generate.generate` says."""

    job: Job
    tokenizer: Tokenizer
    vocab_size: int
    context_length: int
    stop_ids: Collection[int]  # ids that end an answer
    answer_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.job.seed)
        self._token_counts = torch.zeros(self.vocab_size)
        self._detokenizer = StreamingDetokenizer(self.tokenizer, self.job.stop_strings)

    @property
    def num_remaining(self) -> int:
        """How many more ids there may be."""
        job = self.job
        return min(job.max_new_tokens, self.context_length - len(job.prompt)) - len(self.answer_ids)

    @property
    def is_greedy(self) -> bool:
        """Whether its next id is simply the one with the highest logit."""
        job = self.job
        return job.sampling.is_greedy and job.frequency_penalty == 0 and job.presence_penalty == 0

    def sample_token(self, logits: Tensor) -> int:
        """The next id by logits[V] (fp32, on the CPU)."""
        job, seen = self.job, self._token_counts > 0
        if job.frequency_penalty or job.presence_penalty:
            # As the protocol's reference defines them, on what the answer has said.
            logits = (
                logits - job.frequency_penalty * self._token_counts - job.presence_penalty * seen
            )
        if blocked := banned_ngram_tokens([self.answer_ids], job.sampling.no_repeat_ngram)[0]:
            logits = logits.index_fill(0, torch.tensor(blocked), -torch.inf)
        return sample_token(logits, seen, job.sampling, self._generator)

    def accept_token(self, token_id: int) -> None:
        """Tell the text of the next id, and see whether that was all."""
        if token_id in self.stop_ids:
            self.finish("eos")
            return
        self.answer_ids.append(token_id)
        self._token_counts[token_id] += 1
        self._emit_text(self._detokenizer.add_token(token_id))
        if self._detokenizer.has_stopped:
            self.finish("stop")
        elif self.num_remaining <= 0:
            self.finish("length" if len(self.answer_ids) >= self.job.max_new_tokens else "context")

    def finish(self, finish_reason: FinishReason) -> None:
        """Tell what was held back, and that this was all."""
        if not self._detokenizer.has_stopped:
            self._emit_text(self._detokenizer.flush())
        self.finish_reason = "stop" if self._detokenizer.has_stopped else finish_reason
        self.job.emit(Finish(self.finish_reason, len(self.answer_ids)))

    def _emit_text(self, text: str) -> None:
        if text:
            self.job.emit(TextDelta(text))
