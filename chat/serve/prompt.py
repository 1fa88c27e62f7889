"""The ids that an answer continues, cut to the room there is."""

from dataclasses import dataclass

from chat.serve.errors import ProtocolError
from chat.serve.protocol import RequestConversation
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class FittedPrompt:
    """The ids before an answer, and how many of the oldest turns had no room among them."""

    ids: list[int]
    num_dropped_turns: int


def fit_prompt(
    tokenizer: Tokenizer, template: Template, conversation: RequestConversation, prompt_budget: int
) -> FittedPrompt:
    """The prompt with the most of the newest turns that `prompt_budget` ids hold. ProtocolError if they hold not even the question.

    Grown from the question backwards: of a conversation of any length, little more is encoded than what fits.
    """

    def ids(turns: int) -> list[int]:
        return template.encode_prompt(
            tokenizer,
            conversation.turns[len(conversation.turns) - turns :],
            conversation.question,
            conversation.reference,
        )

    prompt_ids, num_kept_turns = ids(0), 0
    if len(prompt_ids) > prompt_budget:
        raise ProtocolError(
            400,
            f"the reference and the question are {len(prompt_ids)} tokens; this model has room for {prompt_budget}: shorten them",
            param="messages",
            code="context_length_exceeded",
        )
    while (
        num_kept_turns < len(conversation.turns)
        and len(longer := ids(num_kept_turns + 1)) <= prompt_budget
    ):
        prompt_ids, num_kept_turns = longer, num_kept_turns + 1
    return FittedPrompt(prompt_ids, len(conversation.turns) - num_kept_turns)
