"""An adapter is PEFT's, number for number and file for file; its base is frozen, and is the one it was trained on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import UserError
from common.options import validate_options
from model import autograd_ops
from model.checkpoint import locate, weights
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import (
    Adapter,
    LoraOptions,
    PerRowDropout,
    adapter_tensors,
    attach_adapter,
    seed_dropout,
)
from model.loss import LossPath, available_loss_paths, linear_cross_entropy
from model.tokenizer.base import Tokenizer

CPU = torch.device("cpu")
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
}
EVERYTHING = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_base(folder: Path, tokenizer: Tokenizer, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint folder of random weights, large enough that attention is not uniform."""
    folder.mkdir(parents=True)
    config = LlamaConfig(
        **{
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 32,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
            **changes,
        }
    )
    model = Llama(config).init_weights(seed)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(3.0)
    weights.save_checkpoint(model, tokenizer, folder)
    return folder


def adapted(base: Path, **options: Any) -> Llama:
    """A model with an adapter that does something: at its beginning B is zero."""
    model, _ = weights.load_checkpoint(base, CPU)
    attach_adapter(
        model, Adapter(LoraOptions(**options), base, locate.weights_sha256(base)), seed=1
    )
    randomise(adapter_tensors(model))
    return model


def randomise(tensors: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)


def ids() -> Tensor:
    return torch.randint(300, 8000, (3, 60), generator=torch.Generator().manual_seed(0))


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_peft_loads_our_adapter_and_merge_is_equivalent(
    shape: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """An adapter that only this program can use; logits that depend on whether it is merged."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, folder = make_base(tmp_path / "base", tokenizer, **SHAPES[shape]), tmp_path / "adapter"
    model = adapted(base, rank=3, alpha=5.0, targets=EVERYTHING)
    folder.mkdir()
    weights.save_weights(model, folder)
    assert not (folder / locate.WEIGHTS_FILE).exists()
    with torch.no_grad():
        ours, merged = model(ids()), weights.load_checkpoint(folder, CPU)[0](ids())
        plain = AutoModelForCausalLM.from_pretrained(base)
        before = plain(ids()).logits
        theirs = PeftModel.from_pretrained(plain, folder)(ids()).logits
    assert (ours - before).abs().max() > 0.1  # else the adapter does nothing, and all is equal
    same(ours, theirs)
    same(merged, theirs)


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ("tied", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}),
        ("grouped", {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "lm_head"]}),
        (
            "grouped",
            {
                "r": 2,
                "lora_alpha": 3,
                "target_modules": "all-linear",
                "use_rslora": True,
                "rank_pattern": {"k_proj": 5},
            },
        ),
        ("grouped", {"r": 2, "target_modules": r".*\.1\.mlp\.(up|gate)_proj"}),
    ],
)
def test_peft_adapter_loads(
    shape: str, settings: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Targets that are a pattern, ranks of their own and scaling by the root of the rank read as if they were not."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = make_base(tmp_path / "base", tokenizer, **SHAPES[shape])
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        before = plain(ids()).logits
    theirs = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    randomise({name: tensor for name, tensor in theirs.named_parameters() if ".lora_" in name})
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs(ids()).logits
        same(weights.load_checkpoint(tmp_path / "adapter", CPU)[0](ids()), expected)
    assert (expected - before).abs().max() > 0.05


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is set"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern is set"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        (
            {"base_model_name_or_path": "someone/llama"},
            "its base someone/llama does not exist",
        ),
        ({"base_model_name_or_path": None}, "does not name its base"),
        (
            {"tensor": "base_model.model.lm_head.lora_A.weight"},
            "lm_head.lora_A.weight is not a LoRA matrix",
        ),
        (
            {"tensor": "base_model.model.model.norm.weight"},
            "model.norm.weight is not a LoRA matrix",
        ),
        (
            {"tensor": "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"},
            "k_proj: its matrices do not fit",
        ),
    ],
)
def test_unsupported_peft_adapter_gives_one_line_error(
    change: dict[str, Any], said: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Another method's numbers added up as if they were LoRA's."""
    from safetensors.torch import load_file, save_file

    base, folder = make_base(tmp_path / "base", tokenizer, **SHAPES["tied"]), tmp_path / "adapter"
    folder.mkdir()
    weights.save_weights(adapted(base), folder)
    (folder / locate.BASE_FILE).unlink()
    if name := change.pop("tensor", None):
        tensors = load_file(folder / locate.ADAPTER_WEIGHTS_FILE)
        save_file({**tensors, name: torch.ones(8, 32)}, folder / locate.ADAPTER_WEIGHTS_FILE)
    config = folder / locate.ADAPTER_CONFIG_FILE
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        weights.load_checkpoint(folder, CPU)
    assert said in str(caught.value)


def test_missing_or_changed_base_gives_one_line_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """An adapter on weights that it was not trained beside, which talks nonsense without a word."""
    base, folder = make_base(tmp_path / "old" / "base", tokenizer), tmp_path / "old" / "adapter"
    folder.mkdir()
    weights.save_weights(adapted(base), folder)
    with torch.no_grad():
        expected = weights.load_checkpoint(folder, CPU)[0](ids())
        shutil.move(tmp_path / "old", tmp_path / "new")
        # Moved together they find each other.
        assert torch.equal(
            weights.load_checkpoint(tmp_path / "new" / "adapter", CPU)[0](ids()), expected
        )
    shutil.rmtree(tmp_path / "new" / "base")
    with pytest.raises(UserError) as caught:
        weights.load_checkpoint(tmp_path / "new" / "adapter", CPU)
    assert f"its base {base.resolve()} does not exist" in str(caught.value)
    make_base(base, tokenizer, seed=1)
    with pytest.raises(UserError) as caught:
        weights.load_checkpoint(tmp_path / "new" / "adapter", CPU)
    assert f"its base {base.resolve()} has weights with another sha256" in str(caught.value)
    shutil.rmtree(base)
    shutil.copytree(make_base(tmp_path / "again", tokenizer), base)
    assert locate.resolve_base(tmp_path / "new" / "adapter") == base


def test_adapter_base_can_be_an_adapter(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The first adapter forgotten, or the second one's base not told from another."""
    base = make_base(tmp_path / "base", tokenizer)
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, below in ((first, base), (second, first)):
        folder.mkdir()
        weights.save_weights(adapted(below), folder)
    with torch.no_grad():
        same(weights.load_checkpoint(second, CPU)[0](ids()), adapted(first)(ids()))
    assert len({locate.weights_sha256(each) for each in (base, first)}) == 2
    shutil.rmtree(base)
    with pytest.raises(
        UserError,
        match=r"first is an adapter, and its base .*base does not exist",
    ):
        weights.load_checkpoint(second, CPU)


def test_lora_starts_at_base_and_updates_only_adapter(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A base that drifts; an adapter that begins with noise, or whose A a seed does not name."""
    base = make_base(tmp_path / "base", tokenizer, **SHAPES["grouped"])
    plain, _ = weights.load_checkpoint(base, CPU)
    model, _ = weights.load_checkpoint(base, CPU)
    attach_adapter(model, Adapter(LoraOptions(), base, ""), seed=3)
    with torch.no_grad():
        assert torch.equal(model(ids()), plain(ids()))
    model(ids(), ids().roll(-1, 1)).backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == set(adapter_tensors(model)) and len(moved) == 2 * 2 * 2
    again, other = (weights.load_checkpoint(base, CPU)[0] for _ in range(2))
    attach_adapter(again, Adapter(LoraOptions(), base, ""), seed=3)
    attach_adapter(other, Adapter(LoraOptions(), base, ""), seed=4)
    one, two, three = (adapter_tensors(each) for each in (model, again, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], three[name]) for name in one if "lora_A" in name)


def test_lora_dropout_is_active_only_in_training(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Scores that change from one evaluation to the next; an option that does nothing."""
    model = adapted(make_base(tmp_path / "base", tokenizer), dropout=0.5)
    with torch.no_grad():
        assert torch.equal(model(ids()), model(ids()))
        model.train()
        assert not torch.equal(model(ids()), model(ids()))


def test_dropout_mask_depends_only_on_the_row(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Losses that depend on the micro-batch or on the number of processes; one pattern for all rows, matrices or steps."""
    model = adapted(
        make_base(tmp_path / "base", tokenizer), dropout=0.5, targets=("q_proj", "v_proj")
    ).train()
    with torch.no_grad():
        seed_dropout(model, [7, 8, 9])
        together = model(ids())
        for row, seed in enumerate((7, 8, 9)):
            seed_dropout(model, [seed])
            same(model(ids()[row : row + 1]), together[row : row + 1])
        for other in ([8, 7, 9], [7, 7, 9]):
            seed_dropout(model, other)
            assert (model(ids()) - together).abs().amax((1, 2)).gt(1e-3).tolist() == [
                other[0] != 7,
                True,
                False,
            ]
    alone, x = PerRowDropout(0.3), torch.ones(2, 500, 40)
    alone.row_generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    first, second = alone(x), alone(x)
    assert sorted(first.unique().tolist()) == pytest.approx([0.0, 1 / 0.7])
    for one, two in ((first[0], first[1]), (first, second)):
        # As often as two that know nothing of each other.
        assert ((one > 0) == (two > 0)).float().mean().item() == pytest.approx(
            0.7**2 + 0.3**2, abs=0.02
        )
    assert first.mean().item() == pytest.approx(1.0, abs=0.02) and torch.equal(alone.eval()(x), x)


@pytest.mark.parametrize("path", available_loss_paths())
def test_frozen_lm_head_computes_no_weight_gradient(path: LossPath) -> None:
    """A third of the head's work, which is most of a small model's, done for a gradient that nobody takes."""
    generator = torch.Generator().manual_seed(0)
    hidden, table = (
        torch.randn(1100, 32, generator=generator),
        torch.randn(700, 32, generator=generator),
    )
    targets = torch.randint(700, (1100,), generator=generator)
    gradients = []
    for trains in (True, False):
        x, weight = hidden.clone().requires_grad_(), table.clone().requires_grad_(trains)
        with Tables(weight.shape) as made:
            linear_cross_entropy(x, weight, targets, path=path).mul(2.0).backward()
        assert bool(made.names) == trains, made.names
        assert (weight.grad is not None) == trains and x.grad is not None
        gradients.append(x.grad)
    assert torch.equal(*gradients)


class Tables(TorchDispatchMode):
    """Remembers the operations that made or filled a tensor of one shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.names = shape, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.shape == self.shape and not func.is_view:
            self.names.append(str(func))
        return result


def test_frozen_norm_propagates_input_gradient() -> None:
    """A gradient for a frozen weight, or another one for what is below it."""
    x = torch.randn(4, 7, 32, requires_grad=True)
    weight = torch.rand(32)
    loss = autograd_ops.RMSNormFunction.apply(x, weight, 1e-5).square().sum()
    with Tables(weight.shape) as made:
        frozen = torch.autograd.grad(loss, x)[0]
    assert not made.names
    trained = torch.autograd.grad(
        autograd_ops.RMSNormFunction.apply(x, weight.requires_grad_(), 1e-5).square().sum(), x
    )[0]
    assert torch.equal(frozen, trained)


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"targets": "q_proj, v_proj"}, []),
        ({"targets": ["up_proj"]}, []),
        ({"targets": "q_proj,qproj"}, ["--targets.1: 'qproj' is not valid"]),
        ({"targets": "q_proj,v_proj,q_proj"}, ["--targets: q_proj is named twice"]),
        ({"targets": []}, ["--targets: is empty"]),
        (
            {"targets": "lm_head", "rank": 0, "alpha": -1, "dropout": 1},
            ["--rank: 0", "--alpha: -1", "--dropout: 1", "--targets.0: 'lm_head'"],
        ),
    ],
)
def test_each_user_error_is_one_line(values: dict[str, Any], lines: list[str]) -> None:
    """A target that is misspelt and therefore not trained."""
    if not lines:
        validate_options(LoraOptions, values)
        return
    with pytest.raises(UserError) as caught:
        validate_options(LoraOptions, values)
    errors = str(caught.value).splitlines()
    assert len(errors) == len(lines)
    for error, start in zip(errors, lines, strict=True):
        assert error.startswith(start)
