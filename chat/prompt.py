"""A conversation: its reference, what was said, and the ids that the next answer continues."""

from dataclasses import dataclass, field

from chat.errors import ChatError
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Exchange:
    """A question and its answer; `cut` where the user stopped the answer."""

    question: str
    answer: str
    cut: bool = False


@dataclass(frozen=True)
class Prompt:
    """The ids before an answer, and what had no room among them."""

    ids: list[int]
    dropped: int  # oldest exchanges that were forgotten for this prompt
    reference: int  # characters of the reference that are in the prompt


@dataclass
class Conversation:
    """Exchanges about one reference, or about none. `source` says where the reference comes from."""

    reference: str = ""
    source: str = ""
    exchanges: list[Exchange] = field(default_factory=list)
    forgotten: int = 0  # oldest exchanges that are no longer in the prompt

    def prompt(self, tokenizer: Tokenizer, template: Template, question: str, room: int) -> Prompt:
        """The prompt for `question` in at most `room` ids.

        The oldest exchanges go first, for good; then the end of the reference. ChatError if the question alone is too
        long.
        """
        before = self.forgotten

        def ids(reference: str) -> list[int]:
            turns = [(each.question, each.answer) for each in self.exchanges[self.forgotten :]]
            return template.prompt(tokenizer, turns, question, reference)

        found = ids(self.reference)
        while len(found) > room and self.forgotten < len(self.exchanges):
            self.forgotten += 1
            found = ids(self.reference)
        kept, over = len(self.reference), len(self.reference)
        if len(found) > room:
            # The longest beginning of the reference that fits, by halving: `kept` characters do, `over` do not.
            kept = 0
            while over - kept > 1:
                middle = (kept + over) // 2
                kept, over = (middle, over) if len(ids(self.reference[:middle])) <= room else (kept, middle)
            found = ids(self.reference[:kept])
        if len(found) > room:
            raise ChatError(f"问题太长：有 {len(found)} 个词元，只放得下 {room} 个，请说得短一些")
        return Prompt(found, self.forgotten - before, kept)
