"""The state of one chat session: the model, its settings and the conversations."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chat.errors import ChatError
from chat.load_model import LoadedModel
from chat.passage_lookup import FoundPassage, PassageLookup
from chat.prompt import FittedPrompt, PromptTooLongError, fit_prompt
from data.copied_parts import copied_share
from model.decode.detokenize import stream_text
from model.decode.generate import FinishReason, generate, max_prompt_tokens
from model.decode.prefix_cache import PrefixCache
from model.decode.sampling import Sampling


@dataclass(frozen=True)
class Exchange:
    """A question and its answer; `is_interrupted` if the user stopped the answer.

    `copied_share` is how much of the answer is copied from the reference; None without one.
    """

    question: str
    answer: str
    is_interrupted: bool = False
    copied_share: float | None = None


@dataclass
class Conversation:
    """Exchanges about one reference text, which may be empty."""

    reference: str = ""
    source: str = ""  # where the reference comes from, for the user to read
    title: str = ""  # of the reference, where it is known
    passage: FoundPassage | None = None  # what the reference is, if it was looked up
    exchanges: list[Exchange] = field(default_factory=list)
    num_forgotten: int = 0  # oldest exchanges that no prompt contains any more
    visible_reference: str = ""  # the part of the reference that the last prompt contained

    @property
    def visible_turns(self) -> list[tuple[str, str]]:
        """The (question, answer) pairs that a prompt may contain."""
        visible_exchanges = self.exchanges[self.num_forgotten :]
        return [(exchange.question, exchange.answer) for exchange in visible_exchanges]


@dataclass
class Session:
    """A model and the conversations held with it; the last one is the current one."""

    loaded_model: LoadedModel
    sampling: Sampling
    max_new_tokens: int
    seed: int
    conversations: list[Conversation] = field(default_factory=lambda: [Conversation()])
    # Transcripts written by this session, the only existing files that it may overwrite.
    transcript_paths: set[Path] = field(default_factory=set)
    num_examples_shown: int = 0
    index: Path | None = None  # folder of `lookup`
    lookup: PassageLookup | None = None
    # Whether each question gets the passage that is found for it.
    is_automatic: bool = False
    # Whether the copied parts of each answer are shown after it.
    shows_copied_parts: bool = False
    # Why the last answer ended; None while it is generated, and if the user stopped it.
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self._prefix_cache = PrefixCache(self.loaded_model.model, self.loaded_model.context_length)
        self._num_answers = 0

    @property
    def conversation(self) -> Conversation:
        """The current conversation."""
        return self.conversations[-1]

    def open_index(self, folder: Path) -> None:
        """Open an index, or open it again after passages were added. Raises ChatError."""
        self.lookup = PassageLookup.open(folder)
        self.index = folder

    def start_conversation(self, conversation: Conversation) -> None:
        """Start a new conversation; earlier ones stay for the transcript."""
        # A conversation without exchanges has nothing to be saved.
        if not self.conversation.exchanges:
            self.conversations.pop()
        self.conversations.append(conversation)

    def look_up(self, question: str) -> FoundPassage | None:
        """Return the passage that is found for `question`, after making it the reference.

        The reference stands at the front of a prompt, so another one than before starts a new
        conversation: the model sees no turns about other passages.
        """
        assert self.lookup is not None, "there is no index"
        found = self.lookup.find(question, self.conversation.passage)
        if found is None:
            if self.conversation.reference:
                self.start_conversation(Conversation())
        elif found.is_kept:
            self.conversation.passage = found
        else:
            hit = found.hit
            source = f"资料库 {hit.source}，得分 {hit.score:.1f}"
            self.start_conversation(Conversation(found.reference, source, hit.title, found))
        return found

    def build_prompt(self, question: str) -> FittedPrompt:
        """Return the prompt for `question`. Raises ChatError if the question is too long.

        Exchanges that do not fit are forgotten for good, so that the conversation does not jump
        back to old turns after a short question.
        """
        conversation = self.conversation
        try:
            prompt = fit_prompt(
                self.loaded_model.tokenizer,
                self.loaded_model.template,
                conversation.visible_turns,
                question,
                conversation.reference,
                max_prompt_tokens(self.loaded_model.context_length, self.max_new_tokens),
                truncate_reference=True,
            )
        except PromptTooLongError as error:
            raise ChatError(
                f"问题太长：共 {error.num_tokens} 个词元，最多 {error.prompt_budget} 个，请缩短"
            ) from None
        conversation.num_forgotten += prompt.num_dropped_turns
        conversation.visible_reference = conversation.reference[: prompt.num_reference_characters]
        return prompt

    def stream_answer(self, prompt: FittedPrompt) -> Iterator[str]:
        """Yield the answer's text as it is generated; the caller may stop after any piece.

        Answer n of a session is sampled with `seed` + n - 1. Raises ChatError if the logits
        overflow.
        """
        self.finish_reason = None
        seed = self.seed + self._num_answers
        self._num_answers += 1

        def generate_ids() -> Generator[int, None, None]:
            # `generate` returns the finish reason after its last id.
            self.finish_reason = yield from generate(
                self.loaded_model.model,
                prompt.ids,
                self.sampling,
                max_new_tokens=self.max_new_tokens,
                seed=seed,
                prefix_cache=self._prefix_cache,
            )

        try:
            yield from stream_text(self.loaded_model.tokenizer, generate_ids())
        except FloatingPointError:
            raise ChatError("计算溢出，无法继续回答：请改用 --precision fp32") from None

    def add_exchange(self, question: str, answer: str, *, is_interrupted: bool) -> None:
        """Append an exchange to the current conversation."""
        reference = self.conversation.visible_reference
        share = copied_share(answer, reference) if reference else None
        self.conversation.exchanges.append(Exchange(question, answer, is_interrupted, share))
