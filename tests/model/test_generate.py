"""Continuing a text: what is chosen, when it ends, and how it streams."""

from typing import Any

import pytest
import torch

from model.config import LlamaConfig
from model.generate import Sampling, choose, generate, stream_text
from model.llama import Llama
from model.tokenizer import Tokenizer

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def model() -> Llama:
    config = LlamaConfig(vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=64)
    model = Llama(config).initialise(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.eval()


def test_greedy_ids_are_those_of_transformers(model: Llama) -> None:
    """A cache or position error that changes what is generated."""
    from transformers import AutoModelForCausalLM
    from transformers import LlamaConfig as TheirConfig

    theirs: Any = AutoModelForCausalLM.from_config(TheirConfig(**model.config.to_hf()))
    theirs.load_state_dict(model.state_dict())
    prompt = [1, 17, 230, 5, 99]
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=0)[0, 5:].tolist()
    expected = expected[: expected.index(2)] if 2 in expected else expected
    assert len(expected) > 5
    assert list(generate(model, prompt, GREEDY, max_new_tokens=40)) == expected


def test_generation_ends_with_the_context(model: Llama) -> None:
    """Writing past the cache's end, or promising more tokens than there are positions."""
    with torch.no_grad():
        kept = model.lm_head.weight[2].clone()
        model.lm_head.weight[2] = 0.0
        ids = list(generate(model, [1] * 60, GREEDY, max_new_tokens=100))
        model.lm_head.weight[2] = kept
    assert len(ids) == 4


def test_generation_stops_at_eos_without_yielding_it(model: Llama) -> None:
    """A model that does not stop."""
    with torch.no_grad():
        head = model.lm_head.weight.clone()
        model.lm_head.weight.zero_()
        try:
            hidden = model.model(torch.tensor([[1, 7]]), None, None, None)[0, -1]
            model.lm_head.weight[2] = hidden  # eos is the likeliest after this prompt
            assert list(generate(model, [1, 7], GREEDY, max_new_tokens=10)) == []
        finally:
            model.lm_head.weight.copy_(head)


def test_a_seed_repeats_a_sample_and_another_does_not(model: Llama) -> None:
    """Samples in the log that nobody can make again."""
    one, two, other = (list(generate(model, [1], Sampling(), max_new_tokens=20, seed=s)) for s in (1, 1, 2))
    assert one == two != other


def draw(logits: torch.Tensor, sampling: Sampling, seen: list[int] | None = None, count: int = 400) -> set[int]:
    mask = torch.zeros(len(logits), dtype=torch.bool)
    mask[seen or []] = True
    generator = torch.Generator().manual_seed(0)
    return {choose(logits.clone(), mask, sampling, generator) for _ in range(count)}


def test_top_k_and_top_p_bound_what_is_drawn() -> None:
    """Unlikely ids drawn although they were cut off, or likely ones lost."""
    logits = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()
    assert draw(logits, Sampling(1.0, top_k=2, top_p=1.0)) == {0, 1}
    assert draw(logits, Sampling(1.0, top_p=0.65)) == {0, 1}
    assert draw(logits, Sampling(1.0, top_p=0.01)) == {0}
    assert draw(logits, Sampling(1.0, top_p=1.0)) == {0, 1, 2, 3, 4}


def test_repetition_penalty_lowers_seen_ids_of_either_sign() -> None:
    """Dividing a negative logit raises it: the penalty would then reward repetition."""
    greedy = Sampling(temperature=0.0, repetition_penalty=1.5)
    assert draw(torch.tensor([1.0, 1.2, -5.0]), greedy, [1], 1) == {0}
    assert draw(torch.tensor([-1.2, -1.0, -5.0]), greedy, [1], 1) == {0}


def test_streamed_text_never_splits_a_character(tokenizer: Tokenizer) -> None:
    """Half a character on the screen: rare ones are several byte pieces."""
    text = "小驼说：𠀀𪚥🐫 good\n。"
    ids = tokenizer.encode(text)
    parts = list(stream_text(tokenizer, iter(ids)))
    assert "".join(parts) == text and "\ufffd" not in "".join(parts)
    assert len(parts) > 5
    cut = "".join(stream_text(tokenizer, iter(tokenizer.encode("好𠀀")[:-1])))
    assert cut.startswith("好") and cut.endswith("\ufffd")
