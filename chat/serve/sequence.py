"""One answer in the making: what was asked for, how its next id is chosen, what of its text may be shown."""

import codecs
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from model.decode.generate import Sampling, choose
from model.decode.logits_processors import blocked_by_ngrams
from model.tokenizer.base import Tokenizer

# Why an answer ended: the model said so, a stop string came, it reached its limit or the end of the context, its time
# was up, nobody listens any more.
End = Literal["eos", "stop", "length", "context", "timeout", "gone"]


@dataclass(frozen=True)
class Said:
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class Over:
    """The answer is whole; it has so many `tokens`."""

    end: End
    tokens: int


@dataclass(frozen=True)
class Failed:
    """There is no answer, or no more of it: an HTTP status and a sentence that says why."""

    status: int
    message: str


Event = Said | Over | Failed


@dataclass(eq=False)
class Job:
    """A prompt to be answered. `tell` gets each `Event` on the engine's thread; the last is `Over` or `Failed`."""

    prompt: list[int]
    most: int  # ids of the answer
    sampling: Sampling
    seed: int
    deadline: float  # on the clock of time.monotonic
    tell: Callable[[Event], None]
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stops: Sequence[str] = ()
    gone: bool = False  # set by the one who asked when nobody listens any more


class Text:
    """The text of ids as they come, up to the first of the stop strings."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # may be the beginning of a stop string
        self.stopped = False

    def add(self, index: int) -> str:
        """What can be shown after this id, often nothing."""
        self._held += self._decoder.decode(self._tokenizer.decode_bytes([index]))
        return self._release(last=False)

    def close(self) -> str:
        """The rest: no id follows."""
        self._held += self._decoder.decode(b"", final=True)
        return self._release(last=True)

    def _release(self, *, last: bool) -> str:
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = 0 if last else max((_overlap(self._held, stop) for stop in self._stops), default=0)
        split = len(self._held) - keep
        shown, self._held = self._held[:split], self._held[split:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(eq=False)
class Row:
    """A job in a batch. With equal seeds it says what `model.generate.generate` says."""

    job: Job
    tokenizer: Tokenizer
    vocabulary: int
    context: int
    stops: Collection[int]  # ids that end an answer
    said: list[int] = field(default_factory=list)
    end: End | None = None

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.job.seed)
        self._counts = torch.zeros(self.vocabulary)
        self._text = Text(self.tokenizer, self.job.stops)

    @property
    def left(self) -> int:
        """How many more ids there may be."""
        job = self.job
        return min(job.most, self.context - len(job.prompt)) - len(self.said)

    @property
    def likeliest(self) -> bool:
        """Whether its next id is simply the one with the highest logit."""
        job = self.job
        return job.sampling.likeliest and job.frequency_penalty == 0 and job.presence_penalty == 0

    def choose(self, logits: Tensor) -> int:
        """The next id by logits[V] (fp32, on the CPU)."""
        job, seen = self.job, self._counts > 0
        if job.frequency_penalty or job.presence_penalty:
            # As the protocol's reference defines them, on what the answer has said.
            logits = logits - job.frequency_penalty * self._counts - job.presence_penalty * seen
        if blocked := blocked_by_ngrams([self.said], job.sampling.no_repeat_ngram)[0]:
            logits = logits.index_fill(0, torch.tensor(blocked), -torch.inf)
        return choose(logits, seen, job.sampling, self._generator)

    def take(self, chosen: int) -> None:
        """Tell the text of the next id, and see whether that was all."""
        if chosen in self.stops:
            self.finish("eos")
            return
        self.said.append(chosen)
        self._counts[chosen] += 1
        self._tell(self._text.add(chosen))
        if self._text.stopped:
            self.finish("stop")
        elif self.left <= 0:
            self.finish("length" if len(self.said) >= self.job.most else "context")

    def finish(self, end: End) -> None:
        """Tell what was held back, and that this was all."""
        if not self._text.stopped:
            self._tell(self._text.close())
        self.end = "stop" if self._text.stopped else end
        self.job.tell(Over(self.end, len(self.said)))

    def _tell(self, text: str) -> None:
        if text:
            self.job.tell(Said(text))
