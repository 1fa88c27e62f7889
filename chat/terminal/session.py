"""A model in conversation: everything of a chat but its screen and keyboard."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chat.prompt import Conversation, Exchange, Prompt
from chat.errors import ChatError, in_chinese
from chat.load_model import Weights
from model.decode.generate import End, PrefixCache, Sampling, generate, prompt_room, stream_text


@dataclass
class Session:
    """The conversations of one sitting, the last of them going on, with one model."""

    weights: Weights
    sampling: Sampling
    max_new_tokens: int
    seed: int
    conversations: list[Conversation] = field(default_factory=lambda: [Conversation()])
    saved: set[Path] = field(default_factory=set)  # the transcripts that this sitting wrote
    end: End | None = None  # why the last answer ended; None while it goes on or where it was stopped

    def __post_init__(self) -> None:
        self._prefix = PrefixCache(self.weights.model, self.weights.context)
        self._asked = 0

    @property
    def conversation(self) -> Conversation:
        """The one that goes on."""
        return self.conversations[-1]

    @property
    def room(self) -> int:
        """The ids that a prompt may have."""
        return prompt_room(self.weights.context, self.max_new_tokens)

    def begin(self, reference: str, source: str = "") -> None:
        """A new conversation; those before it stay for the transcript."""
        if not self.conversation.exchanges:
            self.conversations.pop()
        self.conversations.append(Conversation(reference, source))

    def prompt(self, question: str) -> Prompt:
        """What the answer to `question` continues. ChatError if the question is too long."""
        with in_chinese("这个问题读不进去"):
            return self.conversation.prompt(self.weights.tokenizer, self.weights.template, question, self.room)

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """The answer as it comes; the caller may stop listening at any piece. No two answers share a seed."""
        self.end = None
        seed = self.seed + self._asked
        self._asked += 1

        def ids() -> Generator[int, None, None]:
            self.end = yield from generate(
                self.weights.model, prompt.ids, self.sampling, max_new_tokens=self.max_new_tokens, seed=seed,
                prefix=self._prefix)

        try:
            with in_chinese("回答不下去"):
                yield from stream_text(self.weights.tokenizer, ids())
        except FloatingPointError:
            raise ChatError("计算溢出，回答不下去：请换 --precision fp32 再试") from None

    def keep(self, question: str, answer: str, *, cut: bool) -> None:
        """Remember an exchange."""
        self.conversation.exchanges.append(Exchange(question, answer, cut))
