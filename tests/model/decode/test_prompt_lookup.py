"""Drafts from earlier ids of a sequence, and answers that do not depend on them."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.decode.fast.model import FastModel
from model.decode.generate import FinishReason, generate
from model.decode.inference_model import CachedLlama
from model.decode.prefix_cache import PrefixCache
from model.decode.prompt_lookup import MAX_DRAFT_TOKENS, PromptLookup
from model.decode.sampling import Sampling
from model.llama import Llama
from model.quantize import quantize_int8
from tests.helpers.random_llama import SHAPES, greedy_without_cache, random_llama

GREEDY = Sampling(temperature=0.0)
SAMPLINGS = {
    "greedy": GREEDY,
    "penalized": Sampling(temperature=0.0, repetition_penalty=1.3, no_repeat_ngram=4),
    "drawn": Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.1, no_repeat_ngram=8),
}


def test_drafts_follow_the_first_match_of_most_ids() -> None:
    """Prevents drafts from a place that fits worse, and drafts where most would be wrong."""
    prompt = [5, 1, 2, 7, 8, 6, 1, 2, 9, 9, 4, 3]
    lookup = PromptLookup(prompt)
    assert lookup.draft(9) == [], "3 is the last id only"
    for token_id, expected in (
        (8, [6, 1, 2]),  # 8 is in the prompt once
        (9, []),  # 9 is there twice
        (1, []),
        (2, [7, 8, 6]),  # 1 2, the first one
        (9, [9, 4, 3, 8, 9, 1, 2]),  # 1 2 9, as far as a long draft goes
    ):
        lookup.append(token_id)
        assert lookup.draft(9) == expected
    assert lookup.draft(2) == [9, 4] and lookup.draft(0) == []
    # The answer repeats itself: two ids are no match, three are, for a short draft.
    lookup = PromptLookup([1])
    for token_id in (5, 6, 7, 8, 9, 5, 6):
        lookup.append(token_id)
    assert lookup.draft(9) == []
    lookup.append(7)
    assert lookup.draft(9) == [8, 9, 5]
    assert PromptLookup([]).draft(3) == []
    # The first id is one of two alike, as any other may be.
    lookup = PromptLookup([5, 9, 6, 5, 7])
    for token_id in (8, 5):
        lookup.append(token_id)
    assert lookup.draft(9) == []


def test_short_matches_end_after_two_wrong_drafts() -> None:
    """Prevents a draft at every second id of an answer that copies nothing."""
    lookup = PromptLookup(list(range(100, 160)))
    for copied_id in (110, 120):
        lookup.append(copied_id)
        assert lookup.draft(5) == [copied_id + 1, copied_id + 2, copied_id + 3]
        lookup.append(7)
    lookup.append(140)
    assert lookup.draft(5) == []
    lookup.append(141)
    assert lookup.draft(5) == []
    lookup.append(142)
    assert lookup.draft(5) == [143, 144, 145, 146, 147]
    # A right draft makes up for the wrong ones.
    lookup.append(143)
    lookup.append(110)
    assert lookup.draft(5) == [111, 112, 113]


def answer_and_reason(
    model: Llama, prompt: list[int], sampling: Sampling, **options: Any
) -> tuple[list[int], FinishReason]:
    """Return the ids of an answer and why it ended."""
    ids: list[int] = []
    steps = generate(model, prompt, sampling, **options)
    while True:
        try:
            ids.append(next(steps))
        except StopIteration as stop:
            return ids, stop.value


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of positions of each pass after a prompt."""
    recorded: list[int] = []
    original = PrefixCache.extend

    def extend(self: PrefixCache, ids: list[int]) -> torch.Tensor:
        recorded.append(len(ids))
        return original(self, ids)

    monkeypatch.setattr(PrefixCache, "extend", extend)
    return recorded


@pytest.fixture
def without_drafts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return `answer_and_reason` with decode steps alone."""

    def run(*arguments: Any, **options: Any) -> tuple[list[int], FinishReason]:
        with monkeypatch.context() as patch:
            patch.setattr(PromptLookup, "draft", lambda *_: [])
            return answer_and_reason(*arguments, **options)

    return run


def repeating_prompts(count: int) -> list[list[int]]:
    """Return prompts of few different ids, in which most pairs occur several times."""
    draw = random.Random(5)
    return [[1, *(draw.randrange(3, 9) for _ in range(20))] for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("build", [FastModel, CachedLlama])
@pytest.mark.parametrize("shape", SHAPES)
def test_answers_match_training_forward(
    shape: str, build: Any, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    """Prevents a position that sees a rejected draft, a later id of it, or another rotation."""
    monkeypatch.setattr("model.decode.inference_model._build", build)
    model = random_llama(**SHAPES[shape])
    for prompt in repeating_prompts(2):
        expected = greedy_without_cache(model, prompt, 40)
        assert answer_and_reason(model, prompt, GREEDY, max_new_tokens=40)[0] == expected
    assert max(passes) > 2


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("shape", ["tied", "several stop ids"])
def test_drafts_do_not_change_answers(
    shape: str,
    sampling: str,
    quantized: bool,
    monkeypatch: pytest.MonkeyPatch,
    without_drafts: Callable[..., Any],
) -> None:
    """Prevents ids of a draft that the model would not choose, whatever the draft is.

    The drafts are the right ids, stop ids included, up to an error at a random place.
    """
    model = random_llama(stop_weight=3.0, **SHAPES[shape])
    if quantized:
        quantize_int8(model)
    draw = random.Random(1)
    right: list[int] = []

    def draft(self: PromptLookup, max_tokens: int) -> list[int]:
        start = len(self._ids) - prompt_length
        ids = right[start : start + min(max_tokens, draw.randrange(MAX_DRAFT_TOKENS + 1))]
        if ids and draw.random() < 0.5:
            ids[draw.randrange(len(ids))] = draw.randrange(300)
        return ids

    reasons = set()
    for number, prompt in enumerate(repeating_prompts(8)):
        prompt_length = len(prompt)
        options: dict[str, Any] = {"max_new_tokens": 30 + number, "seed": number}
        expected, reason = without_drafts(model, prompt, SAMPLINGS[sampling], **options)
        right = [*expected, *model.config.stop_ids]
        with monkeypatch.context() as patch:
            patch.setattr(PromptLookup, "draft", draft)
            answer = answer_and_reason(model, prompt, SAMPLINGS[sampling], **options)
        assert answer == (expected, reason)
        reasons.add(reason)
    assert "eos" in reasons


def test_drafts_end_where_the_answer_has_to(
    without_drafts: Callable[..., Any], passes: list[int]
) -> None:
    """Prevents more ids than asked for, and writes beyond the end of the cache."""
    model = random_llama(max_position_embeddings=48, stop_weight=0.0)
    prompt = [1, *[5, 6, 7, 8] * 7]
    for max_new_tokens in (*range(9), 40):
        expected = without_drafts(model, prompt, GREEDY, max_new_tokens=max_new_tokens)
        answer = answer_and_reason(model, prompt, GREEDY, max_new_tokens=max_new_tokens)
        assert answer == expected
        assert len(answer[0]) == min(max_new_tokens, 19)
        assert answer[1] == ("context" if max_new_tokens == 40 else "length")
    assert max(passes) > 1


def counting_llama() -> Llama:
    """Return a model whose next id is the last one plus 1: it copies any prompt that counts."""
    model = random_llama(hidden_size=320, num_attention_heads=4, vocab_size=300)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The residual stream holds the embedding of the last id alone.
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(300, 320))
        model.lm_head.weight.copy_(torch.eye(300, 320).roll(1, 0))
    return model


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLINGS["penalized"]], ids=["greedy", "penalized"])
def test_copied_ids_take_fewer_passes(
    sampling: Sampling, quantized: bool, passes: list[int]
) -> None:
    """Prevents drafts that are found, and never accepted."""
    model = counting_llama()
    if quantized:
        quantize_int8(model)
    prompt = [1, *range(100, 150), 7, 100]
    ids = list(generate(model, prompt, sampling, max_new_tokens=40))
    assert ids == list(range(101, 141))
    # Positions of each pass: one id and a draft, first a short one.
    assert passes == [4, 8, 8, 8, 8, 3]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["greedy", "penalized"])
def test_near_ties_are_chosen_by_decode_steps(
    sampling: str, without_drafts: Callable[..., Any], passes: list[int]
) -> None:
    """Prevents an id that depends on the order in which a pass over many positions sums.

    Every id has a twin with nearly or exactly the same logit.
    """
    num_repeated = 0
    for noise in (0.0, 1e-7):
        model = random_llama(stop_weight=0.0)
        with torch.no_grad():
            weight = model.lm_head.weight
            twins = weight[:150] * (1 + noise * torch.randn(150, 64))
            weight[150:] = twins
        for prompt in repeating_prompts(3):
            before = len(passes)
            options: dict[str, Any] = {"max_new_tokens": 60}
            expected = without_drafts(model, prompt, SAMPLINGS[sampling], **options)
            num_steps = len(passes) - before
            answer = answer_and_reason(model, prompt, SAMPLINGS[sampling], **options)
            assert answer == expected
            # No id is processed more than three times: with a draft, checked, and in a step.
            num_passes = len(passes) - before - num_steps
            assert num_passes <= 3 * 60
            num_repeated += num_passes > num_steps
    assert num_repeated > 1, "no tie was met after a draft"


@pytest.mark.slow
def test_ties_are_chosen_from_the_cache_of_decode_steps(without_drafts: Callable[..., Any]) -> None:
    """Prevents a tie decided by keys and values that a pass over many positions has rounded."""
    model = random_llama(stop_weight=0.0)
    with torch.no_grad():
        weight = model.lm_head.weight
        weight[150:] = weight[:150]
        # Of the ids below 150 the second half has no equal.
        weight[225:] *= 0.5
    num_compared = 0
    for prompt in repeating_prompts(6):
        stepped, drafted = PrefixCache(model, 96), PrefixCache(model, 96)
        options: dict[str, Any] = {"max_new_tokens": 70}
        expected = without_drafts(model, prompt, GREEDY, prefix_cache=stepped, **options)
        answer = answer_and_reason(model, prompt, GREEDY, prefix_cache=drafted, **options)
        assert answer == expected
        last_tie = max(index for index, token_id in enumerate(answer[0]) if token_id < 75)
        positions = slice(len(prompt) + last_tie)
        # Bit by bit.
        storages = [each._cache.storage[..., positions, :] for each in (stepped, drafted)]
        assert torch.equal(*storages)
        num_compared += last_tie
    assert num_compared > 200


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLINGS["drawn"]], ids=["greedy", "drawn"])
def test_overflow_in_a_draft_is_not_that_of_the_answer(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents an answer that ends with an error because of ids that it does not have."""
    model = counting_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[250] = torch.nan
    monkeypatch.setattr(PromptLookup, "draft", lambda self, limit: [self._ids[-1] + 1, 250][:limit])
    assert list(generate(model, [1, 100], sampling, max_new_tokens=20)) == list(range(101, 121))
    # The same id is an error of the answer where the model chooses it.
    with pytest.raises(FloatingPointError, match="position 8"):
        list(generate(model, [1, 244], sampling, max_new_tokens=20))
