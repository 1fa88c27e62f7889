"""Score drawn ids: turn them into texts, and compute their rewards."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.batching.prompts import Prompt
from evaluate.kinds.base import KindEvaluation
from evaluate.model_answer import ModelAnswer
from evaluate.rewards.terms import RewardTerm, score_answers
from model.chat_template.template import Template
from model.decode.batch_generate import DecodedAnswer
from model.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class AnswerScorer:
    """The rewards of answers to prompts, whose sets have the given kinds."""

    tokenizer: Tokenizer
    template: Template
    kinds: Sequence[KindEvaluation]
    terms: Sequence[RewardTerm]

    def read(self, prompt: Prompt, drawn: Sequence[DecodedAnswer]) -> list[ModelAnswer]:
        """Return drawn answers to a prompt as texts, without lead-ins."""
        return [
            ModelAnswer(
                self._strip(prompt, answer.ids), len(answer.ids), has_eos=answer.reached_stop_id
            )
            for answer in drawn
        ]

    def read_reference(self, prompt: Prompt) -> str:
        """Return the true answer to a prompt, without its lead-in."""
        return self._strip(prompt, prompt.answer.tolist())

    def score(self, prompt: Prompt, answers: Sequence[ModelAnswer]) -> np.ndarray:
        """Return the terms of each answer, without their weights, fp64[answers, terms].

        Raises UserError if a function of the user fails.
        """
        question = self.tokenizer.decode(prompt.ids.tolist())
        return score_answers(self.terms, question, answers, self.read_reference(prompt))

    def _strip(self, prompt: Prompt, ids: list[int]) -> str:
        kind = self.kinds[prompt.set_index]
        return kind.strip_answer(self.template, self.tokenizer.decode(ids))
