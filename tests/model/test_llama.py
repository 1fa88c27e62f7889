"""The model against transformers' `LlamaForCausalLM`, and packed rows against single ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model.attention.segments import Segment, Segments
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import Adapter, LoraOptions, adapter_tensors, attach_adapter, seed_dropout
from model.recomputation import Checkpointing

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
SHAPES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "grouped": {"num_key_value_heads": 2},
    "one-key-value-head-tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "narrow-deep": {
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "wide-heads": {"head_dim": 32, "num_key_value_heads": 2},
    "linear-scaling": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3-scaling": {"rope_scaling": LLAMA3, "rope_theta": 500_000.0},
    "yarn-scaling": {"rope_scaling": YARN},
}


def small_config(**changes: Any) -> LlamaConfig:
    """Return a small shape with single fields changed."""
    shape = {
        "vocab_size": 199,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
    }
    return LlamaConfig(**{**shape, **changes})


def build_transformers_model(model: Llama) -> Any:
    """Return transformers' model of the same shape with the same weights."""
    from transformers import AutoModelForCausalLM
    from transformers import LlamaConfig as TheirConfig

    theirs = AutoModelForCausalLM.from_config(TheirConfig(**model.config.to_hf()))
    assert type(theirs).__name__ == "LlamaForCausalLM"
    theirs.load_state_dict(model.state_dict())
    return theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_gradients_match_transformers(name: str) -> None:
    """Prevents an architecture that differs from Llama: exports would compute something else."""
    ours = Llama(small_config(**SHAPES[name])).init_weights(3)
    # Larger weights than at initialization, where attention is nearly uniform and hides errors.
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(3.0)
    theirs = build_transformers_model(ours)
    ids = torch.randint(199, (3, 100), generator=torch.Generator().manual_seed(0))
    targets = ids.roll(-1, 1)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=2e-4)
    ours(ids, targets, scale=1 / targets.numel()).backward()
    F.cross_entropy(theirs(ids).logits.flatten(0, 1), targets.flatten()).backward()
    expected = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad,
            expected[key].grad,
            rtol=2e-3,
            atol=2e-5,
            msg=lambda m, k=key: f"{k}: {m}",
        )


def test_plain_formulas_match_custom_autograd_functions() -> None:
    """Prevents a model that differs between training and inference, or between CPU and GPU."""
    model = Llama(small_config(num_key_value_heads=2)).init_weights(1)
    ids = torch.randint(199, (2, 50))
    with torch.no_grad():
        plain = model(ids)
    torch.testing.assert_close(model(ids), plain, rtol=1e-5, atol=1e-5)


def test_loss_mask_excludes_unscored_positions() -> None:
    """Prevents a loss on positions without a target, or on the wrong ones."""
    model = Llama(small_config()).init_weights(2)
    ids = torch.randint(199, (2, 30))
    target_positions = torch.tensor([3, 4, 31, 59])
    targets = torch.tensor([7, 8, 9, 10])
    logits = model(ids).flatten(0, 1)[target_positions]
    expected = F.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(model(ids, targets, target_positions=target_positions), expected)


def test_num_correct_matches_argmax_of_logits() -> None:
    """Prevents a training accuracy over other positions than the loss."""
    model = Llama(small_config()).init_weights(2)
    ids = torch.randint(199, (2, 30), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(10, 60, 2)
    targets = model(ids).argmax(-1).flatten()[positions]
    targets[:5] = (targets[:5] + 1) % 199
    num_correct = torch.zeros((), dtype=torch.int64)
    loss = model(ids, targets, target_positions=positions, num_correct=num_correct)
    assert num_correct == 20
    assert torch.equal(loss, model(ids, targets, target_positions=positions))


@pytest.mark.slow
@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_packed_conversations_train_as_if_alone(num_kv_heads: int) -> None:
    """Prevents packed conversations that attend to each other, or whose positions do not restart.

    Checked on logits, loss and gradients. Rows differ, as in a batch, and end in padding.
    """
    model = Llama(small_config(num_key_value_heads=num_kv_heads)).init_weights(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    generator = torch.Generator().manual_seed(0)
    lengths = [[17, 40, 3], [30, 1, 20]]
    ids = torch.randint(199, (2, 64), generator=generator)
    targets = torch.randint(199, (2, 64), generator=generator)
    positions = torch.zeros(2, 64, dtype=torch.int64)
    is_used = torch.zeros(2, 64, dtype=torch.bool)
    items = []
    loss_alone = torch.zeros(())
    logits_alone = []
    for row, sizes in enumerate(lengths):
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        for start, size in zip(starts, sizes, strict=True):
            columns = slice(start, start + size)
            positions[row, columns] = torch.arange(size)
            is_used[row, columns] = True
            items.append(Segment(row, start, start + size))
            logits_alone.append(model(ids[row : row + 1, columns]).squeeze(0))
            loss_alone = loss_alone + model(ids[row : row + 1, columns], targets[row, columns])
    gradients_alone = torch.autograd.grad(loss_alone, list(model.parameters()))
    mask = Segments(tuple(items), 2, 64)
    target_positions = is_used.flatten().nonzero().squeeze(1)
    packed_targets = targets.flatten()[target_positions]
    packing: dict[str, Any] = {"positions": positions, "mask": mask}
    logits = model(ids, **packing).flatten(0, 1)[target_positions]
    torch.testing.assert_close(logits, torch.cat(logits_alone), rtol=1e-4, atol=1e-4)
    loss = model(ids, packed_targets, target_positions=target_positions, **packing)
    torch.testing.assert_close(loss, loss_alone, rtol=1e-5, atol=0)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for gradient, expected in zip(gradients, gradients_alone, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)
    # Another mask, or other distances, do change the loss.
    for change in ({"mask": None}, {"positions": 2 * positions}):
        options = {**packing, **change}
        other = model(ids, packed_targets, target_positions=target_positions, **options)
        assert abs(other - loss) > 1e-2


def test_same_seed_gives_same_weights() -> None:
    """Prevents runs that cannot be repeated, and seeds without effect."""
    one, two, other = (
        Llama(small_config()).init_weights(seed).lm_head.weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize("has_adapter", [False, True])
def test_gradient_checkpointing_changes_no_gradient(has_adapter: bool) -> None:
    """Catch layers that are computed again with another mask, other positions or other dropout."""
    ids = torch.randint(199, (2, 40), generator=torch.Generator().manual_seed(0))
    # Two texts in a row: the second does not see the first, and its positions begin at 0.
    text = torch.arange(40) // 25
    items = [Segment(row, *bounds) for row in (0, 1) for bounds in ((0, 25), (25, 40))]
    mask = Segments(tuple(items), 2, 40)
    positions = torch.arange(40) - 25 * text
    gradients, num_forward = [], []
    for is_on in (False, True):
        model = Llama(small_config()).init_weights(0)
        if has_adapter:
            options = LoraOptions(dropout=0.4, targets=("q_proj", "down_proj"))
            attach_adapter(model, Adapter(options, Path(), ""), seed=1)
            for tensor in adapter_tensors(model).values():
                torch.nn.init.normal_(tensor, std=0.1, generator=torch.Generator().manual_seed(2))
        model.model.set_checkpointing(Checkpointing() if is_on else None)
        calls: list[int] = []
        model.model.layers[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        seed_dropout(model, [5, 6])
        model.train()(ids, ids.roll(-1, 1), positions=positions, mask=mask).backward()
        gradients.append([tensor.grad for tensor in model.parameters() if tensor.requires_grad])
        num_forward.append(len(calls))
        model.eval()(ids)
        assert len(calls) == num_forward[-1] + 1
    assert num_forward == [1, 2]
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)
