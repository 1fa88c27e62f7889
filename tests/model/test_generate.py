"""Continuing a text: what is chosen, when it ends, and how it streams."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from model.config import LlamaConfig
from model.decode.fast.inference_model import InferenceModel
from model.decode.generate import (
    FinishReason,
    PrefixCache,
    Sampling,
    generate,
    max_prompt_tokens,
    sample_token,
)
from model.llama import Llama

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def model() -> Llama:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = Llama(config).init_weights(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.eval()


def test_greedy_ids_match_transformers(model: Llama) -> None:
    """A cache or position error that changes what is generated."""
    from transformers import AutoModelForCausalLM
    from transformers import LlamaConfig as TheirConfig

    theirs: Any = AutoModelForCausalLM.from_config(TheirConfig(**model.config.to_hf()))
    theirs.load_state_dict(model.state_dict())
    prompt = [1, 17, 230, 5, 99]
    expected = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=0
    )[0, 5:].tolist()
    expected = expected[: expected.index(2)] if 2 in expected else expected
    assert len(expected) > 5
    assert list(generate(model, prompt, GREEDY, max_new_tokens=40)) == expected


def ended(
    model: Llama, prompt: list[int], sampling: Sampling = GREEDY, **options: Any
) -> tuple[list[int], FinishReason]:
    """The ids and why they ended."""
    ids: list[int] = []
    steps = generate(model, prompt, sampling, **options)
    while True:
        try:
            ids.append(next(steps))
        except StopIteration as stop:
            return ids, stop.value


@pytest.fixture
def endless(model: Llama) -> Iterator[Llama]:
    """The model, never so sure of `<eos>` that it ends by itself."""
    with torch.no_grad():
        kept = model.lm_head.weight[2].clone()
        model.lm_head.weight[2] = 0.0
        yield model
        model.lm_head.weight[2] = kept


def test_generation_stops_at_context_length(endless: Llama) -> None:
    """Writing past the cache's end, promising more tokens than there are positions, or not saying that it was so."""
    ids, end = ended(endless, [1] * 60, max_new_tokens=100)
    assert len(ids) == 4 and end == "context"
    ids, end = ended(endless, [1] * 60, max_new_tokens=4)
    assert len(ids) == 4 and end == "length"
    assert ended(endless, [1] * 64, max_new_tokens=4) == ([], "context")


def test_prompt_budget_reserves_answer_tokens() -> None:
    """A prompt that fills the context, after which nothing can be said; most of it kept free for an answer of any length."""
    assert max_prompt_tokens(256, 1000) == 192 and max_prompt_tokens(256, 10) == 246


def test_generation_stops_at_eos_without_yielding_it(model: Llama) -> None:
    """A model that does not stop."""
    with torch.no_grad():
        head = model.lm_head.weight.clone()
        model.lm_head.weight.zero_()
        try:
            hidden = model.model(torch.tensor([[1, 7]]), None, None, None)[0, -1]
            model.lm_head.weight[2] = hidden  # eos is the likeliest after this prompt
            assert ended(model, [1, 7], max_new_tokens=10) == ([], "eos")
        finally:
            model.lm_head.weight.copy_(head)


def test_non_finite_logits_raise(model: Llama) -> None:
    """An overflow in fp16 that is decoded as if it were an answer."""
    with torch.no_grad():
        kept = model.model.norm.weight.clone()
        model.model.norm.weight.fill_(torch.inf)
        try:
            with pytest.raises(FloatingPointError, match="position 3"):
                next(generate(model, [1, 7, 8], GREEDY, max_new_tokens=10))
        finally:
            model.model.norm.weight.copy_(kept)


def test_sampling_is_reproducible_per_seed(model: Llama) -> None:
    """Samples in the log that nobody can make again."""
    one, two, other = (
        list(generate(model, [1], Sampling(), max_new_tokens=20, seed=s)) for s in (1, 1, 2)
    )
    assert one == two != other


def draw(
    logits: torch.Tensor, sampling: Sampling, seen: list[int] | None = None, count: int = 400
) -> set[int]:
    mask = torch.zeros(len(logits), dtype=torch.bool)
    mask[seen or []] = True
    generator = torch.Generator().manual_seed(0)
    return {sample_token(logits.clone(), mask, sampling, generator) for _ in range(count)}


def test_top_k_and_top_p_limit_sampled_ids() -> None:
    """Unlikely ids drawn although they were cut off, or likely ones lost."""
    logits = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()
    assert draw(logits, Sampling(1.0, top_k=2, top_p=1.0)) == {0, 1}
    assert draw(logits, Sampling(1.0, top_p=0.65)) == {0, 1}
    assert draw(logits, Sampling(1.0, top_p=0.01)) == draw(logits, Sampling(1.0, top_p=0.0)) == {0}
    assert draw(logits, Sampling(1.0, top_p=1.0)) == {0, 1, 2, 3, 4}


def test_repetition_penalty_lowers_seen_ids_of_either_sign() -> None:
    """Dividing a negative logit raises it: the penalty would then reward repetition."""
    greedy = Sampling(temperature=0.0, repetition_penalty=1.5)
    assert draw(torch.tensor([1.0, 1.2, -5.0]), greedy, [1], 1) == {0}
    assert draw(torch.tensor([-1.2, -1.0, -5.0]), greedy, [1], 1) == {0}


def test_penalties_match_transformers_on_answer_tokens_only(endless: Llama) -> None:
    """A prompt that is punished for what it says: names in the reference could not be copied into the answer."""
    from transformers import (
        LogitsProcessorList,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
    )

    prompt = [1, 17, 230, 5, 99, 17, 230, 5]
    sampling = Sampling(temperature=0.0, repetition_penalty=1.3, no_repeat_ngram=3)
    processors = LogitsProcessorList(
        [NoRepeatNGramLogitsProcessor(3), RepetitionPenaltyLogitsProcessor(1.3)]
    )
    answer: list[int] = []
    with torch.no_grad():
        while len(answer) < 50:
            logits = endless(torch.tensor([prompt + answer]))[:, -1]
            answer.append(
                int(processors(torch.tensor([answer], dtype=torch.long), logits).argmax())
            )
    assert list(generate(endless, prompt, sampling, max_new_tokens=50)) == answer
    assert answer != list(generate(endless, prompt, GREEDY, max_new_tokens=50))


def test_no_repeat_ngram_blocks_repeats(endless: Llama) -> None:
    """A loop that goes on."""
    looped = list(pairwise(generate(endless, [1, 40], GREEDY, max_new_tokens=60)))
    assert len(set(looped)) < len(looped), "without blocking this model repeats itself"
    blocked = Sampling(temperature=0.0, no_repeat_ngram=2)
    pairs = list(pairwise(generate(endless, [1, 40], blocked, max_new_tokens=60)))
    assert len(set(pairs)) == len(pairs)


def test_no_repeat_ngram_ignores_prompt(endless: Llama) -> None:
    """An answer that may not copy its reference."""
    draw = torch.Generator().manual_seed(0)
    prompts = [[1, *torch.randint(3, 300, (40,), generator=draw).tolist()] for _ in range(50)]
    firsts = [next(generate(endless, prompt, GREEDY, max_new_tokens=1)) for prompt in prompts]
    copied = [
        (prompt, first) for prompt, first in zip(prompts, firsts, strict=True) if first in prompt
    ]
    assert len(copied) > 2
    severe = Sampling(temperature=0.0, repetition_penalty=1000.0, no_repeat_ngram=1)
    for prompt, first in copied:
        assert next(generate(endless, prompt, severe, max_new_tokens=1)) == first


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, repetition_penalty=1.1)])
def test_prefix_cache_does_not_change_output(model: Llama, sampling: Sampling) -> None:
    """A prompt that goes on from the last one, parts from it, is a part of it or is all new, read with stale keys."""
    prefix = PrefixCache(model, 64)
    first = [1, 17, 230, 5, 99]
    answer = list(generate(model, first, sampling, max_new_tokens=12, prefix_cache=prefix))
    longer = [*first, *answer, 2, 44, 45, 46]
    prompts = [
        longer,
        [*first, *answer[:3], 2, 50, 51],
        first,
        first[:2],
        [1, 200, 201, 202],
        longer,
    ]
    for seed, prompt in enumerate(prompts):
        fresh = list(generate(model, prompt, sampling, max_new_tokens=20, seed=seed))
        assert (
            list(
                generate(model, prompt, sampling, max_new_tokens=20, seed=seed, prefix_cache=prefix)
            )
            == fresh
        )


def test_prefix_cache_processes_only_new_tokens(
    model: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long conversation that is read from its start for every answer, and after a reading that was broken off."""
    prefix, whole = PrefixCache(model, 64), InferenceModel.forward
    lengths: list[int] = []

    def counting(self: InferenceModel, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        lengths.append(ids.shape[1])
        return whole(self, ids, *rest)

    monkeypatch.setattr(InferenceModel, "forward", counting)
    prefix.logits_after(list(range(1, 31)))
    prefix.logits_after([*range(1, 31), 77, 78])
    prefix.logits_after([*range(1, 21), 79])
    assert lengths == [30, 2, 1]
    monkeypatch.setattr(InferenceModel, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prefix.logits_after([*range(1, 11), 80, 81])
    monkeypatch.setattr(InferenceModel, "forward", counting)
    after = [*range(1, 11), 80, 81]
    torch.testing.assert_close(
        prefix.logits_after(after), PrefixCache(model, 64).logits_after(after)
    )
    assert lengths == [30, 2, 1, 2, 12]


def interrupted(*_: Any) -> torch.Tensor:
    raise KeyboardInterrupt


def test_prefix_cache_capacity_is_context_length(endless: Llama) -> None:
    """A chat that lets a model trained on short rows write on to positions it has never seen."""
    ids, end = ended(endless, [1] * 10, max_new_tokens=50, prefix=PrefixCache(endless, 24))
    assert len(ids) == 14 and end == "context"
