"""The model is a Llama: the numbers of transformers' `LlamaForCausalLM` are the reference."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from model import autograd_ops
from model.config import PRESETS, LlamaConfig, config_from_preset
from model.decode.kv_cache import KVCache
from model.llama import Llama

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
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
}


def small(**changes: Any) -> LlamaConfig:
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


def reference(model: Llama) -> Any:
    """transformers' Llama of the same shape with the same weights."""
    from transformers import AutoModelForCausalLM
    from transformers import LlamaConfig as TheirConfig

    theirs = AutoModelForCausalLM.from_config(TheirConfig(**model.config.to_hf()))
    assert type(theirs).__name__ == "LlamaForCausalLM"
    theirs.load_state_dict(model.state_dict())
    return theirs


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_gradients_match_transformers(name: str) -> None:
    """A Llama that only looks like one exports to nothing."""
    ours = Llama(small(**SHAPES[name])).init_weights(3)
    # Small random weights hide errors: at initialisation attention is nearly uniform whatever the positions.
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(3.0)
    theirs = reference(ours)
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


def test_compiled_forward_matches_eager() -> None:
    """The plain formulas, used without gradients and on GPUs, drifting from the hand-written functions."""
    model = Llama(small(num_key_value_heads=2)).init_weights(1)
    ids = torch.randint(199, (2, 50))
    with torch.no_grad():
        plain = model(ids)
    torch.testing.assert_close(model(ids), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", ["norm", "rotate", "swiglu"])
def test_custom_gradients_match_autograd(function: str) -> None:
    """A wrong term in a hand-written backward pass trains, only worse."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    angles = torch.rand(5, 1, 2, dtype=torch.float64, generator=generator)
    cases = {
        "norm": (
            lambda x, w: autograd_ops.RMSNormFunction.apply(x, w, 1e-5),
            (draw(2, 5, 4), draw(4)),
        ),
        "rotate": (
            lambda x: autograd_ops.RotaryFunction.apply(x, angles.cos(), angles.sin()),
            (draw(2, 5, 3, 4),),
        ),
        "swiglu": (lambda g, u: autograd_ops.SwiGLUFunction.apply(g, u), (draw(3, 4), draw(3, 4))),
    }
    call, inputs = cases[function]
    assert torch.autograd.gradcheck(call, inputs)


def test_kv_cache_decode_matches_full_forward() -> None:
    """A position or a key written to the wrong place shows only when text is generated."""
    model = Llama(small(num_key_value_heads=2)).init_weights(5)
    ids = torch.randint(199, (2, 40))
    with torch.no_grad():
        whole = model(ids)
        cache = KVCache(model.config, 2, 40, torch.device("cpu"), torch.float32)
        parts = []
        for start, stop in ((0, 17), (17, 18), (18, 19), (19, 40)):
            mask = None
            if start and stop - start > 1:
                mask = torch.ones(stop - start, stop, dtype=torch.bool).tril(start)[None, None]
            parts.append(model(ids[:, start:stop], cache=cache, mask=mask))
            cache.length = stop
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_misaligned_causal_mask_raises() -> None:
    """Several positions behind a filled cache would silently look into their own future."""
    model = Llama(small()).init_weights(5)
    cache = KVCache(model.config, 1, 10, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), cache=cache)
        cache.length = 3
        with pytest.raises(ValueError, match="need a mask"):
            model(torch.tensor([[4, 5]]), cache=cache)


def test_loss_mask_excludes_unscored_positions() -> None:
    """A loss on positions that have none, or a drop of the wrong ones."""
    model = Llama(small()).init_weights(2)
    ids = torch.randint(199, (2, 30))
    scored = torch.tensor([3, 4, 31, 59])
    targets = torch.tensor([7, 8, 9, 10])
    expected = F.cross_entropy(model(ids).flatten(0, 1)[scored], targets, reduction="sum")
    torch.testing.assert_close(model(ids, targets, target_positions=scored), expected)


def test_num_correct_matches_argmax_of_logits() -> None:
    """A training accuracy over other positions than the loss."""
    model = Llama(small()).init_weights(2)
    ids = torch.randint(199, (2, 30), generator=torch.Generator().manual_seed(0))
    likeliest = model(ids).argmax(-1)
    scored = torch.arange(10, 60, 2)
    targets = likeliest.flatten()[scored].clone()
    targets[:5] = (targets[:5] + 1) % 199
    hits = torch.zeros((), dtype=torch.int64)
    loss = model(ids, targets, target_positions=scored, num_correct=hits)
    assert hits == 20
    torch.testing.assert_close(loss, model(ids, targets, target_positions=scored), rtol=0, atol=0)


@pytest.mark.parametrize("heads", [4, 2])
def test_packed_conversations_do_not_attend_to_each_other(heads: int) -> None:
    """A row of several conversations that trains otherwise than each of them alone: positions that go on counting, a mask
    that lets one look into another, or a gradient that forgets either. Rows differ, as in a batch, and end in filling."""
    model = Llama(small(num_key_value_heads=heads)).init_weights(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    generator = torch.Generator().manual_seed(0)
    lengths = [[17, 40, 3], [30, 1, 20]]
    ids = torch.randint(199, (2, 64), generator=generator)
    targets = torch.randint(199, (2, 64), generator=generator)
    positions, segments = (
        torch.zeros(2, 64, dtype=torch.int64),
        torch.zeros(2, 64, dtype=torch.int64),
    )
    alone, parts = torch.zeros(()), []
    for row, sizes in enumerate(lengths):
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        for segment, (start, size) in enumerate(zip(starts, sizes, strict=True), start=1):
            here = slice(start, start + size)
            positions[row, here], segments[row, here] = torch.arange(size), segment
            parts.append(model(ids[row : row + 1, here]).squeeze(0))
            alone = alone + model(ids[row : row + 1, here], targets[row, here])
    expected = torch.autograd.grad(alone, list(model.parameters()))
    mask = (segments.unsqueeze(2) == segments.unsqueeze(1)).tril().unsqueeze(1)
    scored = segments.flatten().nonzero().squeeze(1)
    packed = {"positions": positions, "mask": mask}
    torch.testing.assert_close(
        model(ids, **packed).flatten(0, 1)[scored], torch.cat(parts), rtol=1e-4, atol=1e-4
    )
    loss = model(ids, targets.flatten()[scored], target_positions=scored, **packed)
    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=0)
    for got, wanted in zip(
        torch.autograd.grad(loss, list(model.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    # Else the comparisons above say nothing: another mask or other distances give another loss.
    for change in ({"mask": None}, {"positions": 2 * positions}):
        other = model(
            ids, targets.flatten()[scored], target_positions=scored, **{**packed, **change}
        )
        assert abs(other - loss) > 1e-2


def test_reference_config_has_documented_parameter_count() -> None:
    """43.5M parameters and 170.6 MFLOP a token are what plans are made with."""
    config = config_from_preset("babyllama-43m", 65_000)
    assert config.num_parameters == sum(p.numel() for p in Llama(config).parameters()) == 43_510_016
    head = 6 * 256 * 65_000
    body = 6 * 12 * (4 * 256**2 + 3 * 256 * 768)
    assert config.flops_per_token(512) == head + body + 6 * 12 * 256 * 512
    assert config.flops_per_token(512, include_head=False) == body + 6 * 12 * 256 * 512


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count_formula_matches_model(name: str) -> None:
    """Memory and speed figures rest on the count."""
    with torch.device("meta"):
        model = Llama(config_from_preset(name, 1000))
    assert model.config.num_parameters == sum(p.numel() for p in model.parameters())


def test_same_seed_gives_same_weights() -> None:
    """A run that cannot be repeated, or seeds that do nothing."""
    one, two, other = (Llama(small()).init_weights(seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 5}, "hidden_size 64 is not a multiple of num_attention_heads 5"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "must be even"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be positive"),
        ({"head_dim": 15}, "head_dim 15 .* must be even"),
        ({"rope_theta": 0.0}, "rope_theta must be positive"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn"),
        (
            {"rope_scaling": {"rope_type": "linear"}},
            "linear: factor must be a number above 0, not missing",
        ),
        (
            {"rope_scaling": {**LLAMA3, "factor": -1}},
            "llama3: factor must be a number above 0, not -1",
        ),
        *(
            ({"rope_scaling": {"rope_type": "linear", "factor": factor}}, "linear: factor must be ")
            for factor in (
                0,
                -1e30,
                1e-30,
                0.5,
                1e30,
                10**400,
                float("nan"),
                float("inf"),
                True,
                "4",
            )
        ),
        (
            {"rope_scaling": {**LLAMA3, "factor": 10_001}},
            "llama3: factor must be from 1 to 10,000, not 10001",
        ),
        (
            {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}},
            "low_freq_factor must be below high_freq_factor",
        ),
    ],
)
def test_invalid_config_error_names_the_field(changes: dict[str, Any], words: str) -> None:
    """A shape error deep inside a matmul."""
    with pytest.raises(UserError, match=words):
        small(**changes)


@pytest.mark.parametrize(
    ("changes", "scaling", "theta"),
    [
        ({}, None, 10000.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 3e5}}, None, 3e5),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
            {"rope_type": "linear", "factor": 4.0},
            10000.0,
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 5e5},
            {"rope_type": "linear", "factor": 4.0},
            5e5,
        ),
        (
            {
                "rope_scaling": LLAMA3,
                "rope_theta": 5e5,
                "tie_word_embeddings": True,
                "head_dim": 32,
            },
            LLAMA3,
            5e5,
        ),
    ],
)
def test_hf_saved_config_loads_as_same_model(
    tmp_path: Path, changes: dict[str, Any], scaling: dict[str, Any] | None, theta: float
) -> None:
    """A base model whose rotary base, scaling or head width is silently replaced by a default."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers import LlamaConfig as TheirConfig

    shape = small(num_key_value_heads=2).to_hf()
    kept = {
        key: shape[key]
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        )
    }
    TheirConfig(**kept, **deepcopy(changes)).save_pretrained(
        tmp_path
    )  # it writes into what it is given
    values = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in values and "rope_theta" not in values  # as transformers 5 writes it
    config = LlamaConfig.from_hf(values)
    assert (config.rope_scaling, config.rope_theta, config.rms_norm_eps) == (scaling, theta, 1e-6)
    ours = Llama(config).init_weights(3)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(199, (2, 100), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    # What this project writes is read back the same, by itself and in the words of transformers 4.
    assert LlamaConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_old_config_format_still_loads() -> None:
    """Files from before grouped queries, or with nulls, read with this project's defaults instead of theirs."""
    values = {
        "model_type": "llama",
        "vocab_size": 199,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "rope_scaling": None,
        "head_dim": None,
    }
    config = LlamaConfig.from_hf(values)
    assert config == small(rms_norm_eps=1e-6, max_position_embeddings=2048)
    assert config.num_key_value_heads == 4


def test_multiple_stop_ids_round_trip_in_hf_format() -> None:
    """A checkpoint that forgets all but one of them, or one of an older version that is called another shape."""
    several = small(eos_token_id=5, more_stop_ids=(7, 2))
    assert (
        several.to_hf()["eos_token_id"] == [5, 7, 2]
        and LlamaConfig.from_hf(several.to_hf()) == several
    )
    assert small().to_hf()["eos_token_id"] == 2 and "more_stop_ids" not in small().to_hf()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "qwen3"}, ["model_type is 'qwen3'; only llama is supported"]),
        (
            {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
            [
                "attention_bias is set; biases are not supported",
                "mlp_bias is set; biases are not supported",
                "hidden_act is 'gelu'; only silu is supported",
            ],
        ),
        (
            {"vocab_size": None, "hidden_size": None},
            ["vocab_size is missing", "hidden_size is missing"],
        ),
        (
            {
                "num_hidden_layers": "3",
                "rms_norm_eps": True,
                "tie_word_embeddings": 1,
                "eos_token_id": [2, "3"],
            },
            [
                "num_hidden_layers: '3' is not valid; expected a whole number",
                "rms_norm_eps: True is not valid; expected a number",
                "tie_word_embeddings: 1 is not valid; expected true or false",
                "eos_token_id: [2, '3'] is not valid; expected a whole number",
            ],
        ),
        ({"eos_token_id": [2, 2**63]}, ["eos_token_id holds invalid ids, or more than 64"]),
        ({"eos_token_id": list(range(65))}, ["eos_token_id holds invalid ids, or more than 64"]),
        (
            {"rope_parameters": 4},
            ["rope_parameters or rope_scaling: 4 is not valid; expected keys and values"],
        ),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            ["rope_scaling 'yarn' is not supported; linear and llama3 are"],
        ),
        (
            {"rope_parameters": {"rope_type": ["linear"]}},
            ["rope_scaling \"['linear']\" is not supported; linear and llama3 are"],
        ),
        (
            {"rope_scaling": {"type": "linear"}},
            ["rope_scaling linear: factor must be a number above 0, not missing"],
        ),
        (
            {"rope_parameters": {"rope_theta": "much"}},
            ["rope_theta: 'much' is not valid; expected a number"],
        ),
        (
            {"num_attention_heads": 5},
            [
                "hidden_size 64 is not a multiple of num_attention_heads 5",
                "num_attention_heads 5 is not a multiple of num_key_value_heads 4",
            ],
        ),
    ],
)
def test_unsupported_config_error_names_the_value(change: dict[str, Any], said: list[str]) -> None:
    """Loading a Qwen or a biased Llama as if it were ours gives silent nonsense; a hole in the file, a traceback."""
    values = {"rope_scaling": None, **small(hidden_size=64).to_hf()}
    assert LlamaConfig.from_hf(values) == small()
    with pytest.raises(UserError) as caught:
        LlamaConfig.from_hf({**values, **change, "head_dim": None}, "x.json")
    assert str(caught.value).splitlines() == [f"x.json: {line}" for line in said]


@pytest.mark.parametrize("values", [[1], "text", None])
def test_non_mapping_config_error_names_the_file(values: Any) -> None:
    """A traceback for a file that is JSON and nothing else."""
    with pytest.raises(UserError, match=r"x\.json: expected keys and values"):
        LlamaConfig.from_hf(values, "x.json")
