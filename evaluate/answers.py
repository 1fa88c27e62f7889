"""Greedy answers to questions, kept as partial results."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from evaluate.kinds.conversations import Question, answer_questions
from evaluate.load_model import LoadedCheckpoint
from evaluate.model_answer import ModelAnswer
from evaluate.partial_results import PartialResults

Item = TypeVar("Item")


def answer_resumably(
    results: PartialResults,
    name: str,
    loaded: LoadedCheckpoint,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    batch: int,
) -> list[ModelAnswer | None]:
    """Return the greedy answer to each question; None if the prompt leaves no room for one.

    `name` tells these answers from others in the same `results`, and is shown in the progress bar.
    `batch` answers are decoded together. The results must depend on `loaded.identity` and on
    `max_new_tokens`.
    """
    return generate_resumably(
        results,
        name,
        questions,
        lambda chunk: answer_questions(
            loaded.model,
            loaded.tokenizer,
            loaded.template,
            chunk,
            max_new_tokens=max_new_tokens,
            batch=batch,
        ),
        batch=batch,
    )


def generate_resumably(
    results: PartialResults,
    name: str,
    items: Sequence[Item],
    generate: Callable[[Sequence[Item]], Sequence[ModelAnswer | None]],
    *,
    batch: int,
) -> list[ModelAnswer | None]:
    """Return what `generate` makes of each item: an answer, or None if there is no room for one.

    `name` and `results` are those of `answer_resumably`; `batch` is the number of answers that
    `generate` decodes together.
    """

    def generate_rows(chunk: Sequence[Item]) -> list[dict[str, Any] | None]:
        return [asdict(answer) if answer is not None else None for answer in generate(chunk)]

    # Several batches in a chunk, so that questions of about the same length are decoded together.
    rows = results.compute(name, items, generate_rows, chunk_size=8 * batch)
    return [ModelAnswer(**row) if row is not None else None for row in rows]
