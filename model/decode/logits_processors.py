"""What keeps a text from repeating itself: lower logits for what was said, none for what would say it again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RepetitionPenalties:
    """How repetition is kept down while decoding: as they are, not at all.

    Both count an answer's own ids and never its prompt's: what an article or a reference says may be said again.
    """

    repetition_penalty: float = 1.0
    """Ids of the answer become less likely by this factor; 1: none."""
    no_repeat_ngram: int = 0
    """So many ids in a row are never said twice; 0: no limit."""

    def apply(self, logits: Tensor, generated: Tensor) -> Tensor:
        """logits[R, V], or log-probabilities, of what follows the answers said[R, t] so far."""
        if self.repetition_penalty != 1.0:
            generated_mask = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, generated, True)
            logits = apply_repetition_penalty(logits, generated_mask, self.repetition_penalty)
        banned_ids = (
            banned_ngram_tokens(generated.tolist(), self.no_repeat_ngram)
            if self.no_repeat_ngram
            else []
        )
        if banned_positions := [
            (row, index) for row, ids in enumerate(banned_ids) for index in ids
        ]:
            logits = logits.clone()
            logits[tuple(torch.tensor(banned_positions, device=logits.device).T)] = -torch.inf
        return logits


def apply_repetition_penalty(logits: Tensor, generated_mask: Tensor, penalty: float) -> Tensor:
    """logits[B, V] with those that `generated_mask`[B, V] marks made less likely by `penalty` > 1 (Keskar et al. 2019, CTRL).

    Positive logits are divided and negative ones multiplied, so that either sign goes down. 1 changes nothing.
    """
    if penalty == 1.0:
        return logits
    return torch.where(
        generated_mask, torch.where(logits > 0, logits / penalty, logits * penalty), logits
    )


def banned_ngram_tokens(history: Sequence[Sequence[int]], n: int) -> list[list[int]]:
    """For each row the ids that would complete an n-gram the row already holds (Paulus et al. 2017); none for n = 0."""
    return [_ngram_completions(row, n) if 0 < n <= len(row) else [] for row in history]


def _ngram_completions(row: Sequence[int], n: int) -> list[int]:
    last = row[len(row) - n + 1 :]
    return [
        row[start + n - 1]
        for start in range(len(row) - n + 1)
        if row[start : start + n - 1] == last
    ]
