"""Greedy answers to questions, kept as partial results."""

from collections.abc import Sequence
from dataclasses import asdict

from evaluate.kinds.base import ModelAnswer
from evaluate.kinds.conversations import Question, answer_questions
from evaluate.load_model import LoadedCheckpoint
from evaluate.partial_results import PartialResults


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

    def answer_chunk(chunk: Sequence[Question]) -> list[dict[str, object] | None]:
        answers = answer_questions(
            loaded.model,
            loaded.tokenizer,
            loaded.template,
            chunk,
            max_new_tokens=max_new_tokens,
            batch=batch,
        )
        return [asdict(answer) if answer is not None else None for answer in answers]

    # Several batches in a chunk, so that questions of about the same length are decoded together.
    rows = results.compute(name, questions, answer_chunk, chunk_size=8 * batch)
    return [ModelAnswer(**row) if row is not None else None for row in rows]
