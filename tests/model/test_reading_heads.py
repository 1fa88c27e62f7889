"""Initialization with heads that find and copy: what they attend to before any training."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from model.config import LlamaConfig, config_from_preset
from model.llama import Llama, apply_rotary
from model.reading_heads import Subspaces, init_reading_heads, reading_head_masks
from model.tokenizer import Tokenizer, load_tokenizer
from tests.helpers.training import truncate_tokenizer
from train.options import ModelOptions

PASSAGE = "短文：小明早上八点去学校，妈妈在厨房烤面包。爷爷到公园散步；"
QUESTION = "谁到公园"


@pytest.fixture(scope="module")
def tokenizer(root: Path) -> Tokenizer:
    return load_tokenizer(root / "assets" / "tokenizer")


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Llama:
    config = config_from_preset("babyllama-3m", tokenizer.vocab_size)
    return init_reading_heads(Llama(config).init_weights(0), tokenizer, 0).eval()


@torch.no_grad()
def attention(model: Llama, ids: list[int], layer: int, head: int) -> Tensor:
    """Return the attention probabilities [T, T] of a head."""
    inputs: list[Tensor] = []
    block = model.model.layers[layer]
    hook = block.input_layernorm.register_forward_hook(
        lambda module, args, output: inputs.append(output)
    )
    model(torch.tensor([ids]))
    hook.remove()
    size = block.self_attn.head_dim
    cos, sin = model.model.rotary(torch.arange(len(ids)), torch.float32)

    def project(weight: Tensor) -> Tensor:
        part = inputs[0] @ weight[head * size : (head + 1) * size].T
        return apply_rotary(part[:, :, None], cos, sin)[0, :, 0]

    q, k = project(block.self_attn.q_proj.weight), project(block.self_attn.k_proj.weight)
    future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    return (q @ k.T / size**0.5).masked_fill(future, -torch.inf).softmax(-1)


def test_first_layer_attends_to_the_two_previous_tokens(model: Llama, tokenizer: Tokenizer) -> None:
    """Prevents heads that cannot tell what stands before a token."""
    ids = [tokenizer.bos_id, *tokenizer.encode(PASSAGE)]
    for distance in (1, 2):
        weights = attention(model, ids, 0, distance - 1).diagonal(-distance)
        assert weights.min() > 0.95


def test_clause_start_is_found(model: Llama, tokenizer: Tokenizer) -> None:
    """Prevents answers that begin in the middle of a clause."""
    ids = [tokenizer.bos_id, *tokenizer.encode(PASSAGE)]
    text = [tokenizer.decode([token]) for token in ids]
    weights = attention(model, ids, 1, 1)
    starts = {"小": "明早上八点去学校", "妈": "在厨房烤面包", "爷": "到公园散步"}
    for start, characters in starts.items():
        for character in characters:
            assert weights[text.index(character), text.index(start)] > 0.5, character


def test_answer_is_a_clause_of_its_own(model: Llama, tokenizer: Tokenizer) -> None:
    """Prevents a copy that is taken for a part of the template in front of it."""
    prompt, answer = PASSAGE + "\n\n人类：谁到公园？\n\n助手：", "爷爷到公园散步"
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt + answer)]
    start = len(ids) - len(answer)
    assert attention(model, ids, 1, 1)[start:, start].min() > 0.7


@pytest.mark.parametrize(
    ("question", "first"), [("在厨房", "妈"), ("去学校", "小"), ("到公园", "爷")]
)
def test_answer_begins_with_the_clause_of_the_question(
    model: Llama, tokenizer: Tokenizer, question: str, first: str
) -> None:
    """Prevents a proposal of any clause, or of none."""
    prompt = f"{PASSAGE}\n\n人类：谁{question}？\n\n助手："
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.bos_id, *tokenizer.encode(prompt)]]))[0, -1]
    scores = {start: logits[tokenizer.encode(start)[0]].item() for start in "小妈爷"}
    assert max(scores, key=scores.__getitem__) == first, scores
    # Also among all characters, of which the passage has more.
    assert scores[first] > logits[1000:].topk(20).values[-1]


def test_question_finds_the_same_words_in_the_passage(model: Llama, tokenizer: Tokenizer) -> None:
    """Prevents a lookup that depends on how far the passage is away."""
    ids = [tokenizer.bos_id, *tokenizer.encode(PASSAGE + QUESTION)]
    text = [tokenizer.decode([token]) for token in ids]
    weights = attention(model, ids, 2, 0)
    for character, behind in (("到", "公"), ("公", "园"), ("园", "散")):
        position = len(text) - 1 - text[::-1].index(character)
        assert weights[position, text.index(behind)] > 0.8, character


def test_copy_stays_in_the_clause_that_it_began(model: Llama, tokenizer: Tokenizer) -> None:
    """Prevents answers that go on with another clause behind a token that both have."""
    clauses = ["爷爷到公园散步", "妈妈到公园跑步", "小明到公园钓鱼"]
    passage = "短文：" + "，".join(clauses) + "。\n"
    for clause in clauses:
        ids = [tokenizer.bos_id, *tokenizer.encode(passage + "答：" + clause)]
        weights = attention(model, ids, 3, 1)
        start = 1 + passage.index(clause)
        for index in range(1, len(clause) - 1):
            position = len(ids) - len(clause) + index
            assert weights[position, start + index + 1] > 0.8, (clause, index)


def test_repetition_is_predicted_without_training(model: Llama, tokenizer: Tokenizer) -> None:
    """Prevents weights whose heads attend to the right tokens and predict nothing."""
    rng = random.Random(0)
    characters = rng.sample(range(1000, tokenizer.vocab_size), 40)
    ids = torch.tensor([[tokenizer.bos_id, *characters, *characters]])
    plain = Llama(model.config).init_weights(0).eval()
    shares = []
    for each in (model, plain):
        with torch.no_grad():
            logits = each(ids)[0]
        # Before training the most likely token is the current one, whose embedding is the head's.
        predicted = logits.scatter(1, ids.T, -torch.inf).argmax(-1)
        shares.append((predicted[41:-1] == ids[0, 42:]).float().mean().item())
    assert shares[0] > 0.6 and shares[1] < 0.1


def test_small_shapes_are_refused_and_changed_shapes_are_left_alone(tokenizer: Tokenizer) -> None:
    """Prevents a traceback for a tiny model, and a circuit in shapes it was not measured for."""
    for change in ({"num_hidden_layers": 3}, {"hidden_size": 320}, {"rope_theta": 1e4}):
        with pytest.raises(UserError, match="reading_heads needs the hidden_size"):
            config_from_preset("babyllama-3m", 300, **change)
    cases = [
        (ModelOptions(), True),
        (ModelOptions(max_position_embeddings=512, tie_word_embeddings=False), True),
        (ModelOptions(reading_heads=False), False),
        (ModelOptions(hidden_size=320), False),
        (ModelOptions(preset="babyllama-43m"), False),
    ]
    for options, expected in cases:
        overrides = options.preset_overrides()
        config = config_from_preset(options.preset, tokenizer.vocab_size, **overrides)
        assert config.reading_heads is expected, options
        if expected:
            init_reading_heads(Llama(config).init_weights(0), tokenizer, 0)


def test_wide_networks_do_not_write_into_the_circuit(model: Llama, tokenizer: Tokenizer) -> None:
    """Prevents a model that cannot copy, because its feed-forward networks drown the heads.

    Whatever they learn, the tokens before and the first one of the clause stay where heads write
    them.
    """
    config = config_from_preset("babyllama-3m", tokenizer.vocab_size, intermediate_size=512)
    wide = init_reading_heads(Llama(config).init_weights(0), tokenizer, 0).eval()
    masks = reading_head_masks(wide)
    with torch.no_grad():
        for name, weight in wide.named_parameters():
            if ".layers." in name and weight.dim() == 2:
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
                weight.copy_(torch.where(masks.get(weight, torch.tensor(False)), weight, noise))
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(PASSAGE)]])
    own = slice(Subspaces.of(config).embedded.stop, None)
    states: list[Tensor] = []
    for block in wide.model.layers[:3]:
        block.mlp.register_forward_hook(lambda module, args, out: states.append(out[..., own]))
    wide(ids)
    assert len(states) == 3 and all(state.count_nonzero() == 0 for state in states)
    # Two heads beside those of the circuit.
    for layer, head in ((1, 0), (2, 1)):
        weight = wide.model.layers[layer].self_attn.o_proj.weight
        assert weight[own, head * 80 : (head + 1) * 80].count_nonzero() == 0
        assert weight[own, (1 - head) * 80 : (2 - head) * 80].count_nonzero() > 0
    # The preset's own network is narrow enough, and learns language in these dimensions.
    assert model.model.layers[0].mlp.down_proj.weight not in reading_head_masks(model)


def test_tokenizer_without_the_marks_is_refused(model: Llama, tokenizer: Tokenizer) -> None:
    """Prevents a circuit that takes the last byte of a character for a clause end."""
    with pytest.raises(UserError, match="as one token"):
        init_reading_heads(model, truncate_tokenizer(tokenizer), 0)


def test_only_models_with_reading_heads_say_so_in_their_config() -> None:
    """Prevents fine-tuning that unlearns to read, and other models whose runs do not resume."""
    config = config_from_preset("babyllama-3m", 300)
    assert LlamaConfig.from_hf(config.to_hf()) == config
    other = config_from_preset("babyllama-43m", 300)
    assert "reading_heads" not in other.to_hf() and LlamaConfig.from_hf(other.to_hf()) == other
