"""A model in conversation: everything of a chat but its screen and keyboard."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chat.errors import ChatError, translate_errors
from chat.load_model import LoadedModel
from chat.prompt import Conversation, Exchange, FittedPrompt
from model.decode.detokenize import stream_text
from model.decode.generate import (
    FinishReason,
    PrefixCache,
    Sampling,
    generate,
    max_prompt_tokens,
)


@dataclass
class Session:
    """The conversations of one sitting, the last of them going on, with one model."""

    loaded_model: LoadedModel
    sampling: Sampling
    max_new_tokens: int
    seed: int
    conversations: list[Conversation] = field(default_factory=lambda: [Conversation()])
    transcript_paths: set[Path] = field(
        default_factory=set
    )  # the transcripts that this sitting wrote
    finish_reason: FinishReason | None = (
        None  # why the last answer ended; None while it goes on or where it was stopped
    )

    def __post_init__(self) -> None:
        self._prefix_cache = PrefixCache(self.loaded_model.model, self.loaded_model.context_length)
        self._num_questions = 0

    @property
    def conversation(self) -> Conversation:
        """The one that goes on."""
        return self.conversations[-1]

    @property
    def prompt_budget(self) -> int:
        """The ids that a prompt may have."""
        return max_prompt_tokens(self.loaded_model.context_length, self.max_new_tokens)

    def start_conversation(self, reference: str, source: str = "") -> None:
        """A new conversation; those before it stay for the transcript."""
        if not self.conversation.exchanges:
            self.conversations.pop()
        self.conversations.append(Conversation(reference, source))

    def build_prompt(self, question: str) -> FittedPrompt:
        """What the answer to `question` continues. ChatError if the question is too long."""
        with translate_errors("这个问题读不进去"):
            return self.conversation.build_prompt(
                self.loaded_model.tokenizer,
                self.loaded_model.template,
                question,
                self.prompt_budget,
            )

    def stream_answer(self, prompt: FittedPrompt) -> Iterator[str]:
        """The answer as it comes; the caller may stop listening at any piece. No two answers share a seed."""
        self.finish_reason = None
        seed = self.seed + self._num_questions
        self._num_questions += 1

        def ids() -> Generator[int, None, None]:
            self.finish_reason = yield from generate(
                self.loaded_model.model,
                prompt.ids,
                self.sampling,
                max_new_tokens=self.max_new_tokens,
                seed=seed,
                prefix_cache=self._prefix_cache,
            )

        try:
            with translate_errors("回答不下去"):
                yield from stream_text(self.loaded_model.tokenizer, ids())
        except FloatingPointError:
            raise ChatError("计算溢出，回答不下去：请换 --precision fp32 再试") from None

    def add_exchange(self, question: str, answer: str, *, is_interrupted: bool) -> None:
        """Remember an exchange."""
        self.conversation.exchanges.append(Exchange(question, answer, is_interrupted))
