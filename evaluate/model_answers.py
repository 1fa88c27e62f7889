"""What a checkpoint answers: summaries of articles, and each turn of conversations after the true turns before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.errors import UserError
from data.batching.summary_prompts import strip_lead_in, summary_prompt
from data.records import Conversation
from model.chat_template.template import Template
from model.decode.batch_generate import generate_batch
from model.decode.generate import max_prompt_tokens
from model.llama import Llama
from model.tokenizer.base import Tokenizer

OnProgress = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What was said, in how many ids, whether it ended by `<eos>`, and whether its article had to be trimmed."""

    text: str
    num_tokens: int
    has_eos: bool
    is_truncated: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """A turn of a conversation: what was asked, what came before it, and the true answer."""

    history: tuple[tuple[str, str], ...]
    question: str
    answer: str
    passage: str


def extract_questions(conversation: Conversation) -> list[Question]:
    """Every turn that asks something, after the true turns before it."""
    turns = [(turn.question, turn.answer) for turn in conversation.turns]
    return [
        Question(tuple(turns[:index]), question, answer, conversation.reference)
        for index, (question, answer) in enumerate(turns)
        if question
    ]


def summarize_articles(
    model: Llama,
    tokenizer: Tokenizer,
    template: Template,
    articles: Sequence[str],
    *,
    max_new_tokens: int = 64,
    beams: int = 1,
    length_penalty: float = 1.0,
    prompt_budget: int | None = None,
    batch: int = 16,
    on_progress: OnProgress | None = None,
) -> list[ModelAnswer]:
    """The model's title for each article, asked for in the one way evaluation asks.

    A prompt has at most `prompt_budget` ids, by default what the context leaves beside the answer; a longer article loses its
    end. Where the template says that answers may begin with a lead-in, a known one is removed. UserError if not even the
    request fits.
    """
    prompt_budget = prompt_budget or max_prompt_tokens(model.trained_context, max_new_tokens)
    prompts = [
        summary_prompt(tokenizer, template, article, max_tokens=prompt_budget)
        for article in articles
    ]
    if longest := max((len(ids) for ids, _ in prompts if len(ids) > prompt_budget), default=0):
        raise UserError(
            f"the request for a title alone takes {longest} tokens, and {prompt_budget} are left for a prompt in rows as "
            "long as the model was trained on: it cannot be asked"
        )
    decoded = generate_batch(
        model,
        [ids for ids, _ in prompts],
        max_new_tokens=max_new_tokens,
        num_beams=beams,
        length_penalty=length_penalty,
        batch_size=batch,
        on_progress=on_progress,
    )
    clean = strip_lead_in if template.lead_ins else str
    return [
        ModelAnswer(clean(tokenizer.decode(each.ids)), len(each.ids), each.reached_stop_id, trimmed)
        for each, (_, trimmed) in zip(decoded, prompts, strict=True)
    ]


def answer_questions(
    model: Llama,
    tokenizer: Tokenizer,
    template: Template,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    batch: int = 16,
    on_progress: OnProgress | None = None,
) -> list[ModelAnswer | None]:
    """The model's greedy answer to each question; None where the prompt leaves no room for one (see `prompt_room`)."""
    prompts = [
        template.encode_prompt(tokenizer, each.history, each.question, each.passage)
        for each in questions
    ]
    room = max_prompt_tokens(model.trained_context, max_new_tokens)
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= room]
    if on_progress:
        on_progress(len(prompts) - len(fitting))
    decoded = generate_batch(
        model,
        [prompts[index] for index in fitting],
        max_new_tokens=max_new_tokens,
        batch_size=batch,
        on_progress=on_progress,
    )
    answers: list[ModelAnswer | None] = [None] * len(prompts)
    for index, each in zip(fitting, decoded, strict=True):
        answers[index] = ModelAnswer(
            tokenizer.decode(each.ids), len(each.ids), each.reached_stop_id
        )
    return answers
