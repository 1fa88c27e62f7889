"""The arranged model is the plain one: hidden states, ids and what they are remembered for."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from model.config import LlamaConfig
from model.decode.batch_generate import generate_batch
from model.decode.fast.inference_model import InferenceModel, inference_model_for
from model.decode.fast.lm_head import Int8ArgmaxFilter, LMHead
from model.decode.generate import Sampling, generate
from model.decode.kv_cache import KVCache
from model.llama import Llama
from model.quantize import is_plain_linear, quantize_int8

CPU = torch.device("cpu")
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"num_key_value_heads": 4},
    "grouped": {"num_key_value_heads": 2},
    "tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "wide heads": {"num_key_value_heads": 2, "head_dim": 24},
    "scaled": {
        "num_key_value_heads": 4,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
}


def random_model(seed: int = 3, **shape: Any) -> Llama:
    """Random weights, norms included, large enough that logits differ."""
    config = LlamaConfig(
        **{
            "vocab_size": 400,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 96,
            **shape,
        }
    )
    model = Llama(config).init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(
                4.0
                if parameter.dim() > 1
                else torch.rand(parameter.shape, generator=generator) + 0.5
            )
    return model.eval()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(3, 400, (length,), generator=generator).tolist()
        for length in (5, 23, 1, 40, 12)
    ]


def plain_greedy(model: Llama, prompt: list[int], new: int) -> list[int]:
    """The whole text through the training forward for every id: no cache, no padding, no arranged weights."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            if ids[-1] == model.config.eos_token_id:
                return ids[len(prompt) : -1]
    return ids[len(prompt) :]


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_ids_match_training_forward(shape: str) -> None:
    """Queries taken for keys, a rotation the wrong way, a norm left out, a head of another group, padding looked at."""
    model = random_model(**SHAPES[shape])
    expected = [plain_greedy(model, prompt, 20) for prompt in prompts()]
    assert len({tuple(each) for each in expected}) > 3
    assert [
        each.ids for each in generate_batch(model, prompts(), max_new_tokens=20, batch_size=5)
    ] == expected
    assert [
        list(generate(model, prompt, Sampling(0.0), max_new_tokens=20)) for prompt in prompts()
    ] == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_states_match_training_forward(shape: str, dtype: torch.dtype) -> None:
    """A difference too small to change most ids: an epsilon, a scale of the scores, a mask that leaks a little."""
    model = random_model(**SHAPES[shape]).to(dtype)
    text = torch.tensor([prompts()[3]])
    cache = KVCache(model.config, 1, 64, CPU, dtype)
    with torch.no_grad():
        expected = model.model(text, None, None, None)[0]
        decoder = InferenceModel(model)
        found = [decoder.forward(text[:, :30], cache)]
        for index in range(30, 40):
            cache.length = index
            found.append(decoder.forward(text[:, index : index + 1], cache))
    # bf16 keeps 8 bits, and every step of a layer rounds.
    tolerance = 2e-5 if dtype == torch.float32 else 0.15
    torch.testing.assert_close(torch.cat(found), expected[29:], rtol=tolerance, atol=tolerance)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads PyTorch uses, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("rows", [1, 2])
def test_blocked_matmul_matches_full_matmul(
    threads: Callable[[int], None], count: int, rows: int
) -> None:
    """Blocks of a matrix put together in another order, or lost where threads do not divide its width."""
    threads(count)
    model = random_model(**SHAPES["wide heads"])
    text = torch.tensor([prompts()[3][:10]] * rows)
    text[-1, 1:] -= 1
    cache = KVCache(model.config, rows, 10, CPU, torch.float32)
    decoder = InferenceModel(model)
    for index in range(10):
        cache.length = index
        found = decoder.forward(text[:, index : index + 1], cache)
    with torch.no_grad():
        torch.testing.assert_close(
            found, model.model(text, None, None, None)[:, -1], rtol=2e-5, atol=2e-5
        )


def test_int8_decode_step_matches_layerwise_forward() -> None:
    """A norm's weight or scale left out of int8 products, of which no training forward tells."""
    model = quantize_int8(random_model(**SHAPES["grouped"]))
    text = torch.tensor([prompts()[3]])
    cache, decoder = KVCache(model.config, 1, 40, CPU, torch.float32), InferenceModel(model)
    whole = decoder.forward(text, cache)
    for index in range(40):
        cache.length = index
        found = decoder.forward(text[:, index : index + 1], cache)
    # Activations are rounded to bf16, here and there at other places.
    torch.testing.assert_close(found, whole, rtol=0.05, atol=0.05)


def test_hidden_states_are_not_overwritten_by_later_steps() -> None:
    """Memory that the next step writes to, given away as a result."""
    model = random_model()
    decoder, cache = InferenceModel(model), KVCache(model.config, 1, 4, CPU, torch.float32)
    first = decoder.forward(torch.tensor([[5]]), cache)
    kept = first.clone()
    other = decoder.forward(torch.tensor([[6]]), cache)
    assert torch.equal(first, kept) and not torch.equal(first, other)


class Adapted(torch.nn.Linear):
    """A projection with something added, as adapters do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 0.1 * input.sum(-1, keepdim=True)


def test_decoder_calls_adapted_projections() -> None:
    """The weights of an adapted layer taken for all it does: answers of the model without its adapter."""
    model = random_model()
    before = generate_batch(model, prompts(), max_new_tokens=12)
    for layer in model.model.layers:
        for part, name in (
            (layer.self_attn, "q_proj"),
            (layer.self_attn, "o_proj"),
            (layer.mlp, "down_proj"),
        ):
            adapted = Adapted(*reversed(getattr(part, name).weight.shape), bias=False)
            adapted.load_state_dict(getattr(part, name).state_dict())
            setattr(part, name, adapted)
    after = generate_batch(model, prompts(), max_new_tokens=12)
    assert after != before and [each.ids for each in after] == [
        plain_greedy(model, each, 12) for each in prompts()
    ]


def test_decoder_picks_up_changed_weights() -> None:
    """Answers of a model that has since been trained on: fused optimizers leave no trace in the weights' versions."""
    model = random_model()
    first = inference_model_for(model)
    assert inference_model_for(model) is first, "every batch would arrange the weights anew"
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0] += 1.0  # type: ignore[union-attr, operator]
    second = inference_model_for(model)
    assert second is not first
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.05, fused=True)
    generate_batch(
        model, prompts()[:1], max_new_tokens=2
    )  # a sample in training mode keeps nothing
    model(torch.tensor([[1, 2, 3]]), torch.tensor([2, 3, 4])).backward()
    optimizer.step()
    assert generate_batch(model.eval(), prompts(), max_new_tokens=12)[1].ids == plain_greedy(
        model, prompts()[1], 12
    )
    assert inference_model_for(quantize_int8(model)) is not second


def test_decode_step_memory_is_constant() -> None:
    """A cache that is copied to grow, for every token of an answer."""
    model = random_model()
    decoder, cache = InferenceModel(model), KVCache(model.config, 2, 60, CPU, torch.float32)
    storage = cache.keys.data_ptr(), cache.values.data_ptr()
    for index in range(60):
        decoder.forward(torch.tensor([[5], [9]]), cache)
        cache.length = index + 1
    assert storage == (cache.keys.data_ptr(), cache.values.data_ptr())
    assert bool(cache.keys.any(-1).all()), "a position was not written"


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("spread", [0.02, 3.0])
def test_int8_filtered_argmax_matches_exact_argmax(spread: float, quantized: bool) -> None:
    """The likeliest id screened out by the rounding of int8 or bf16; candidates mixed up between rows."""
    generator = torch.Generator().manual_seed(1)
    model = random_model(vocab_size=20_000)
    with torch.no_grad():
        # Rows of very different lengths, and pairs that differ by less than int8 can tell.
        weight = (
            torch.randn(10_000, 64, generator=generator)
            * torch.rand(10_000, 1, generator=generator)
            * spread
        )
        # One large number a row, which the texts do not look at, makes the steps of the others coarse.
        weight[:, 0] = 30 * spread
        near = weight + torch.randn(10_000, 64, generator=generator) * spread * 1e-4
        model.lm_head.weight.copy_(
            torch.cat([weight, near])[torch.randperm(20_000, generator=generator)]
        )
    if quantized:
        quantize_int8(model)
    screen: Any = Int8ArgmaxFilter(model.lm_head)
    for rows in (1, 3, 16):
        hidden = torch.randn(rows, 64, generator=generator)
        hidden[:, 0] = 0.0
        expected = (hidden.double() @ model.lm_head.weight.double().T).argmax(-1)
        assert torch.equal(screen.likeliest(hidden), expected)
        assert torch.equal(LMHead(model.lm_head).argmax(hidden), expected)


def test_argmax_ties_pick_the_lowest_id() -> None:
    """Another id than the plain argmax takes, where two rows are the same."""
    head = torch.nn.Linear(64, 500, bias=False)
    hidden = torch.randn(2, 64)
    with torch.no_grad():
        head.weight[[7, 300]] = hidden[0]
        head.weight[[9, 20]] = hidden[1] * 2
        assert LMHead(head).argmax(hidden).tolist() == [7, 9]


def test_non_finite_hidden_states_bypass_int8_filter() -> None:
    """An index past the vocabulary where no id could be told from another."""
    head = torch.nn.Linear(64, 500, bias=False)
    with torch.no_grad():
        assert Int8ArgmaxFilter(head).argmax(torch.full((2, 64), torch.nan)) is None
        assert LMHead(head).argmax(torch.full((2, 64), torch.inf)).max() < 500
        head.weight[7] = 1e38
        assert Int8ArgmaxFilter(head).argmax(torch.full((2, 64), 1e3)) is None, (
            "what is finite may overflow in the product"
        )


def test_plain_linear_layers_are_fused() -> None:
    """A class of linear layers that is not known for what it is: every product alone, and no screen."""
    decoder = InferenceModel(random_model())
    assert all(
        is_plain_linear(each)
        for each in (*random_model().model.layers[0].self_attn.children(), random_model().lm_head)
    )
    decoder.head.argmax(torch.randn(1, 64))
    decoder.head.logits(torch.randn(1, 64))
    assert decoder.head._argmax_filter is not None and decoder.head._transposed_weight is not None


@pytest.mark.slow
def test_concurrent_decoding_is_thread_safe() -> None:
    """Two conversations at once with one model, each written into the other's memory: other words, or other shapes."""
    model = random_model()
    prompts = [[1, *range(5, 5 + 3 * n)] for n in range(1, 7)]

    def answers(rows: list[list[int]]) -> list[list[int]]:
        return [
            answer.ids
            for _ in range(6)
            for answer in generate_batch(model, rows, max_new_tokens=40)
        ]

    groups = [prompts[:1], prompts[1:3], prompts[3:]]
    alone = [answers(rows) for rows in groups]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(answers, groups)) == alone
