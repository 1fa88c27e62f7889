"""Draw a model's answers to questions, and keep them as partial results."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from evaluate.kinds.conversations import Question, encode_question
from evaluate.load_model import LoadedCheckpoint
from evaluate.model_answer import ModelAnswer
from evaluate.partial_results import partial_results
from evaluate.preferences.options import PreferencesOptions
from model.decode.generate import max_prompt_tokens
from model.decode.sample_batch import derive_seed, sample_batch
from model.decode.sampling import Sampling


def sample_answers(
    loaded: LoadedCheckpoint, questions: Sequence[Question], options: PreferencesOptions
) -> list[list[ModelAnswer] | None]:
    """Return the samples for each question; None if the prompt leaves no room for an answer.

    A sample follows from model, options, question and its number; neither the other questions nor
    the size of a batch change it. Samples of an interrupted call with the same `options.out` are
    not drawn again.
    """
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    depends_on = {
        "model": loaded.identity,
        "sampling": asdict(sampling),
        "samples": options.samples,
        "max_new_tokens": options.max_new_tokens,
        "seed": options.seed,
    }
    results = partial_results(options.out, depends_on)
    max_tokens = max_prompt_tokens(loaded.model.trained_context, options.max_new_tokens)

    def sample_chunk(chunk: Sequence[Question]) -> list[list[dict[str, Any]] | None]:
        prompts = [encode_question(loaded.template, loaded.tokenizer, each) for each in chunk]
        fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= max_tokens]
        answers = sample_batch(
            loaded.model,
            [prompts[index] for index in fitting],
            [_seeds(options, chunk[index]) for index in fitting],
            sampling,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch,
        )
        rows: list[list[dict[str, Any]] | None] = [None] * len(chunk)
        for index, samples in zip(fitting, answers, strict=True):
            rows[index] = [
                asdict(
                    ModelAnswer(
                        loaded.tokenizer.decode(answer.ids),
                        len(answer.ids),
                        has_eos=answer.reached_stop_id,
                    )
                )
                for answer in samples
            ]
        return rows

    # Several batches in a chunk, so that prompts of about the same length are answered together.
    chunk_size = max(1, 8 * options.batch // options.samples)
    rows = results.compute("sampling", questions, sample_chunk, chunk_size=chunk_size)
    return [[ModelAnswer(**answer) for answer in row] if row is not None else None for row in rows]


def _seeds(options: PreferencesOptions, question: Question) -> list[int]:
    """Return the seeds of the samples for a question."""
    text = repr(question)
    return [derive_seed(options.seed, text, number) for number in range(options.samples)]
