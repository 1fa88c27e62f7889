"""A conversation: its reference, what was said, and the ids that the next answer continues."""

from dataclasses import dataclass, field

from chat.errors import ChatError
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Exchange:
    """A question and its answer; `is_interrupted` where the user stopped the answer."""

    question: str
    answer: str
    is_interrupted: bool = False


@dataclass(frozen=True)
class FittedPrompt:
    """The ids before an answer, and what had no room among them."""

    ids: list[int]
    num_dropped_turns: int  # oldest exchanges that were forgotten for this prompt
    num_reference_characters: int  # characters of the reference that are in the prompt


@dataclass
class Conversation:
    """Exchanges about one reference, or about none. `source` says where the reference comes from."""

    reference: str = ""
    source: str = ""
    exchanges: list[Exchange] = field(default_factory=list)
    num_forgotten: int = 0  # oldest exchanges that are no longer in the prompt

    def build_prompt(
        self, tokenizer: Tokenizer, template: Template, question: str, prompt_budget: int
    ) -> FittedPrompt:
        """The prompt for `question` in at most `prompt_budget` ids.

        The oldest exchanges go first, for good; then the end of the reference. ChatError if the question alone is too
        long.
        """
        num_forgotten_before = self.num_forgotten

        def ids(reference: str) -> list[int]:
            turns = [(each.question, each.answer) for each in self.exchanges[self.num_forgotten :]]
            return template.encode_prompt(tokenizer, turns, question, reference)

        prompt_ids = ids(self.reference)
        while len(prompt_ids) > prompt_budget and self.num_forgotten < len(self.exchanges):
            self.num_forgotten += 1
            prompt_ids = ids(self.reference)
        fitting_length, excess_length = len(self.reference), len(self.reference)
        if len(prompt_ids) > prompt_budget:
            # The longest beginning of the reference that fits, by halving: `kept` characters do, `over` do not.
            fitting_length = 0
            while excess_length - fitting_length > 1:
                middle = (fitting_length + excess_length) // 2
                fitting_length, excess_length = (
                    (middle, excess_length)
                    if len(ids(self.reference[:middle])) <= prompt_budget
                    else (fitting_length, middle)
                )
            prompt_ids = ids(self.reference[:fitting_length])
        if len(prompt_ids) > prompt_budget:
            raise ChatError(
                f"问题太长：有 {len(prompt_ids)} 个词元，只放得下 {prompt_budget} 个，请说得短一些"
            )
        return FittedPrompt(prompt_ids, self.num_forgotten - num_forgotten_before, fitting_length)
