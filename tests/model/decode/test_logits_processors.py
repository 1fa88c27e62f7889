"""Logits processors, and drawing an id from logits."""

from typing import Any

import pytest
import torch

from model.decode.logits_processors import (
    FrequencyPenalty,
    NoRepeatNGram,
    RepetitionPenalty,
    build_logits_processors,
    process_logits,
    sample_token,
)
from model.decode.sampling import Sampling


def drawn_ids(logits: torch.Tensor, sampling: Sampling, count: int = 400) -> set[int]:
    """Return the different ids among `count` draws."""
    generator = torch.Generator().manual_seed(0)
    return {sample_token(logits, sampling, generator) for _ in range(count)}


@pytest.mark.slow
def test_top_k_and_top_p_limit_sampled_ids() -> None:
    """Prevents unlikely ids that are drawn although they were cut off, and likely ones lost."""
    logits = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()
    assert drawn_ids(logits, Sampling(top_k=2)) == {0, 1}
    assert drawn_ids(logits, Sampling(top_p=0.65)) == {0, 1}
    assert drawn_ids(logits, Sampling(top_p=0.01)) == {0}
    assert drawn_ids(logits, Sampling(top_p=0.0)) == {0}
    assert drawn_ids(logits, Sampling()) == {0, 1, 2, 3, 4}
    assert drawn_ids(logits, Sampling(temperature=0.0)) == {0}


@pytest.mark.slow
def test_top_p_reaches_beyond_the_presorted_candidates() -> None:
    """Prevents a nucleus that ends at the number of ids that are sorted first."""
    logits = torch.zeros(2000)
    assert len(drawn_ids(logits, Sampling(top_p=0.9), count=1000)) > 600


@pytest.mark.slow
@pytest.mark.parametrize("top_p", [1.0, 0.999])
def test_ids_are_drawn_as_often_as_their_probabilities_say(top_p: float) -> None:
    """Prevents draws with other probabilities, and ids of probability zero."""
    logits = torch.tensor([-torch.inf, 1.0, -torch.inf, 2.0, 0.0, -torch.inf])
    generator, count = torch.Generator().manual_seed(0), 4000
    draws = [sample_token(logits, Sampling(top_p=top_p), generator) for _ in range(count)]
    shares = torch.bincount(torch.tensor(draws), minlength=len(logits)) / count
    # Four standard deviations of a share of one half.
    torch.testing.assert_close(shares, logits.softmax(-1), atol=4 * 0.5 / count**0.5, rtol=0)
    assert not shares[logits == -torch.inf].any()


def test_repetition_penalty_lowers_logits_of_either_sign() -> None:
    """Prevents a reward for repetition: dividing a negative logit raises it."""
    logits = torch.tensor([[2.0, -2.0, 3.0]])
    generated = torch.tensor([[0, 1, 0]])
    assert RepetitionPenalty(2.0)(logits, generated).tolist() == [[1.0, -4.0, 3.0]]
    assert logits.tolist() == [[2.0, -2.0, 3.0]], "the input was written to"


def test_frequency_penalty_counts_occurrences() -> None:
    """Prevents a penalty that ignores how often an id occurs, or that has the wrong sign."""
    logits = torch.tensor([[1.0, 1.0, 1.0]])
    processed = FrequencyPenalty(0.5, 0.25)(logits, torch.tensor([[0, 2, 2]]))
    assert processed.tolist() == [[0.25, 1.0, -0.25]]


@pytest.mark.parametrize(
    ("size", "generated", "banned"),
    [
        (3, [5, 6, 7, 5, 6], {7}),
        (3, [5, 6, 5, 7, 5], set()),
        (3, [5], set()),
        (2, [5, 6, 5, 7, 5], {6, 7}),
        (1, [5, 6], {5, 6}),
        (1, [], set()),
    ],
)
def test_ngram_block_bans_exactly_the_completions(
    size: int, generated: list[int], banned: set[int]
) -> None:
    """Prevents an n-gram that is missed at either end of the answer, or n above its length."""
    rows = torch.tensor([[9] * len(generated), generated], dtype=torch.int64)
    processed = NoRepeatNGram(size)(torch.zeros(2, 10), rows)
    assert set((processed[1] == -torch.inf).nonzero().flatten().tolist()) == banned


def test_options_without_effect_build_no_processors() -> None:
    """Prevents logits that are computed for nothing: with no processors the argmax suffices."""
    assert build_logits_processors() == []
    assert len(build_logits_processors(repetition_penalty=1.1, presence_penalty=-0.5)) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram": 2},
        {"repetition_penalty": 1.3, "no_repeat_ngram": 3},
    ],
    ids=str,
)
def test_processors_match_transformers(options: dict[str, Any]) -> None:
    """Prevents penalties that differ from those of the papers and of every other library."""
    from transformers import (
        LogitsProcessorList,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
    )

    theirs: Any = LogitsProcessorList()
    if "repetition_penalty" in options:
        theirs.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if "no_repeat_ngram" in options:
        theirs.append(NoRepeatNGramLogitsProcessor(options["no_repeat_ngram"]))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 20, generator=generator)
    generated = torch.randint(20, (4, 30), generator=generator)
    ours = process_logits(build_logits_processors(**options), logits, generated)
    assert not torch.equal(ours, logits)
    assert torch.equal(ours, theirs(generated, logits.clone()))
