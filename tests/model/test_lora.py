"""Adapters against PEFT's, their frozen base, and the checks of the base on disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.options import validate_options
from model.checkpoint import locate, weights
from model.checkpoint.quantized import load_quantized
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import (
    Adapter,
    LoraLinear,
    LoraOptions,
    PerRowDropout,
    adapter_tensors,
    attach_adapter,
    seed_dropout,
    without_adapter,
)
from model.loss import LossPath, available_loss_paths, linear_cross_entropy
from model.tokenizer.base import Tokenizer
from tests.helpers.tensor_recorder import TensorRecorder

CPU = torch.device("cpu")
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
}
ALL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def save_random_base(folder: Path, tokenizer: Tokenizer, seed: int = 0, **changes: Any) -> Path:
    """Write a checkpoint of random weights, large enough that attention is not uniform."""
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


def load_with_adapter(base: Path, **options: Any) -> Llama:
    """Load a base and attach a random adapter; a new one does nothing, as its B is zero."""
    model, _ = weights.load_checkpoint(base, CPU)
    attach_adapter(
        model, Adapter(LoraOptions(**options), base, locate.weights_sha256(base)), seed=1
    )
    randomize(adapter_tensors(model))
    return model


def randomize(tensors: dict[str, Tensor]) -> None:
    """Fill tensors with random numbers from a fixed seed."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)


def random_ids() -> Tensor:
    """Return ids[3, 60] from a fixed seed."""
    return torch.randint(300, 4000, (3, 60), generator=torch.Generator().manual_seed(0))


def assert_close(one: Tensor, other: Tensor) -> None:
    """Check that tensors are equal except for rounding."""
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_peft_loads_our_adapter_and_merge_is_equivalent(
    shape: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents adapters that only this project can load, and logits that change with merging."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, folder = (
        save_random_base(tmp_path / "base", tokenizer, **SHAPES[shape]),
        tmp_path / "adapter",
    )
    model = load_with_adapter(base, rank=3, alpha=5.0, targets=ALL_TARGETS)
    folder.mkdir()
    weights.save_weights(model, folder)
    assert not (folder / locate.WEIGHTS_FILE).exists()
    # In fp64, because the sums are taken in another order: fp32 rounding reaches the tolerance.
    merged_model, _ = weights.load_checkpoint(folder, CPU)
    plain = AutoModelForCausalLM.from_pretrained(base).double()
    with torch.no_grad():
        ours, merged = model.double()(random_ids()), merged_model.double()(random_ids())
        before = plain(random_ids()).logits
        theirs = PeftModel.from_pretrained(plain, folder).double()(random_ids()).logits
    assert (ours - before).abs().max() > 0.1, "the adapter changes nothing"
    assert_close(ours, theirs)
    assert_close(merged, theirs)


@pytest.mark.slow
def test_peft_loads_adapter_beside_4_bit_base_with_equal_logits(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents a QLoRA adapter that fits the 4-bit weights of this project alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    # Rows of whole blocks: bitsandbytes 0.50.2 reads other ones wrongly on a CPU with AVX-512.
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
    base, folder = save_random_base(tmp_path / "base", tokenizer, **shape), tmp_path / "adapter"
    options = LoraOptions(rank=3, alpha=5.0, targets=ALL_TARGETS)
    model = load_quantized(base, CPU, torch.float32)
    before = model(random_ids())
    adapter = Adapter(options, base, locate.weights_sha256(base), quantize="nf4")
    attach_adapter(model, adapter, seed=1)
    randomize(adapter_tensors(model))
    folder.mkdir()
    weights.save_weights(model, folder)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    plain = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantization, dtype=torch.float32, device_map={"": "cpu"}
    )
    # In evaluation mode bitsandbytes computes in bf16 on some CPUs; there is no dropout.
    theirs = PeftModel.from_pretrained(plain, folder).train()
    with torch.no_grad():
        ours = model(random_ids())
        assert (ours - before).abs().max() > 0.1, "the adapter changes nothing"
        assert_close(ours, theirs(random_ids()).logits)


@pytest.mark.slow
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
    """Prevents target patterns, single ranks and rsLoRA scaling from being ignored."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = save_random_base(tmp_path / "base", tokenizer, **SHAPES[shape])
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        before = plain(random_ids()).logits
    theirs = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    randomize({name: tensor for name, tensor in theirs.named_parameters() if ".lora_" in name})
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs(random_ids()).logits
        assert_close(weights.load_checkpoint(tmp_path / "adapter", CPU)[0](random_ids()), expected)
    assert (expected - before).abs().max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
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
    change: dict[str, Any], message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents tensors of another method that are merged as if they were LoRA's."""
    from safetensors.torch import load_file, save_file

    base, folder = (
        save_random_base(tmp_path / "base", tokenizer, **SHAPES["tied"]),
        tmp_path / "adapter",
    )
    folder.mkdir()
    weights.save_weights(load_with_adapter(base), folder)
    (folder / locate.BASE_FILE).unlink()
    if name := change.pop("tensor", None):
        tensors = load_file(folder / locate.ADAPTER_WEIGHTS_FILE)
        save_file({**tensors, name: torch.ones(8, 32)}, folder / locate.ADAPTER_WEIGHTS_FILE)
    config = folder / locate.ADAPTER_CONFIG_FILE
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        weights.load_checkpoint(folder, CPU)
    assert message in str(error.value)


@pytest.mark.slow
def test_missing_or_changed_base_gives_one_line_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents nonsense answers of an adapter on other weights than those of its base."""
    base, folder = (
        save_random_base(tmp_path / "old" / "base", tokenizer),
        tmp_path / "old" / "adapter",
    )
    folder.mkdir()
    weights.save_weights(load_with_adapter(base), folder)
    with torch.no_grad():
        expected = weights.load_checkpoint(folder, CPU)[0](random_ids())
        shutil.move(tmp_path / "old", tmp_path / "new")
        # The base is found beside the adapter if both were moved together.
        assert torch.equal(
            weights.load_checkpoint(tmp_path / "new" / "adapter", CPU)[0](random_ids()), expected
        )
    shutil.rmtree(tmp_path / "new" / "base")
    with pytest.raises(UserError) as error:
        weights.load_checkpoint(tmp_path / "new" / "adapter", CPU)
    assert f"its base {base.resolve()} does not exist" in str(error.value)
    save_random_base(base, tokenizer, seed=1)
    with pytest.raises(UserError) as error:
        weights.load_checkpoint(tmp_path / "new" / "adapter", CPU)
    assert f"its base {base.resolve()} has weights with another sha256" in str(error.value)
    shutil.rmtree(base)
    shutil.copytree(save_random_base(tmp_path / "again", tokenizer), base)
    assert locate.resolve_base(tmp_path / "new" / "adapter") == base


@pytest.mark.slow
def test_adapter_base_can_be_an_adapter(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents a chain of adapters that loses the first one, or does not check its base."""
    base = save_random_base(tmp_path / "base", tokenizer)
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, below in ((first, base), (second, first)):
        folder.mkdir()
        weights.save_weights(load_with_adapter(below), folder)
    with torch.no_grad():
        assert_close(
            weights.load_checkpoint(second, CPU)[0](random_ids()),
            load_with_adapter(first)(random_ids()),
        )
    assert len({locate.weights_sha256(each) for each in (base, first)}) == 2
    shutil.rmtree(base)
    with pytest.raises(
        UserError,
        match=r"first is an adapter, and its base .*base does not exist",
    ):
        weights.load_checkpoint(second, CPU)


@pytest.mark.slow
def test_lora_starts_at_base_and_updates_only_adapter(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents a base that is trained, an adapter that begins with noise, and an ignored seed."""
    base = save_random_base(tmp_path / "base", tokenizer, **SHAPES["grouped"])
    plain, _ = weights.load_checkpoint(base, CPU)
    model, _ = weights.load_checkpoint(base, CPU)
    attach_adapter(model, Adapter(LoraOptions(), base, ""), seed=3)
    with torch.no_grad():
        assert torch.equal(model(random_ids()), plain(random_ids()))
    model(random_ids(), random_ids().roll(-1, 1)).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == set(adapter_tensors(model)) and len(trained) == 2 * 2 * 2
    again, other = (weights.load_checkpoint(base, CPU)[0] for _ in range(2))
    attach_adapter(again, Adapter(LoraOptions(), base, ""), seed=3)
    attach_adapter(other, Adapter(LoraOptions(), base, ""), seed=4)
    one, two, three = (adapter_tensors(each) for each in (model, again, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], three[name]) for name in one if "lora_A" in name)


@pytest.mark.slow
def test_lora_dropout_is_active_only_in_training(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents evaluations with dropout, and an option without effect."""
    model = load_with_adapter(save_random_base(tmp_path / "base", tokenizer), dropout=0.5)
    with torch.no_grad():
        assert torch.equal(model(random_ids()), model(random_ids()))
        model.train()
        assert not torch.equal(model(random_ids()), model(random_ids()))


@pytest.mark.slow
def test_dropout_mask_depends_only_on_the_row(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents losses that depend on the micro-batch or the number of processes.

    Masks of rows, matrices and steps must differ as well.
    """
    model = load_with_adapter(
        save_random_base(tmp_path / "base", tokenizer), dropout=0.5, targets=("q_proj", "v_proj")
    ).train()
    with torch.no_grad():
        seed_dropout(model, [7, 8, 9])
        together = model(random_ids())
        for row, seed in enumerate((7, 8, 9)):
            seed_dropout(model, [seed])
            assert_close(model(random_ids()[row : row + 1]), together[row : row + 1])
        for other in ([8, 7, 9], [7, 7, 9]):
            seed_dropout(model, other)
            assert (model(random_ids()) - together).abs().amax((1, 2)).gt(1e-3).tolist() == [
                other[0] != 7,
                True,
                False,
            ]
    alone, x = PerRowDropout(0.3), torch.ones(2, 500, 40)
    alone.row_seeds = [1, 2]
    first, again = alone(x), alone(x)
    assert torch.equal(first, again), "gradient checkpointing repeats a pass"
    alone.row_seeds = [3, 4]
    second = alone(x)
    assert sorted(first.unique().tolist()) == pytest.approx([0.0, 1 / 0.7])
    for one, two in ((first[0], first[1]), (first, second)):
        # Independent masks agree with this probability.
        assert ((one > 0) == (two > 0)).float().mean().item() == pytest.approx(
            0.7**2 + 0.3**2, abs=0.02
        )
    assert first.mean().item() == pytest.approx(1.0, abs=0.02) and torch.equal(alone.eval()(x), x)


@pytest.mark.parametrize("path", available_loss_paths())
def test_frozen_lm_head_computes_no_weight_gradient(path: LossPath) -> None:
    """Prevents a third of the head's work for a gradient that is not used."""
    generator = torch.Generator().manual_seed(0)
    hidden, table = (
        torch.randn(1100, 32, generator=generator),
        torch.randn(700, 32, generator=generator),
    )
    targets = torch.randint(700, (1100,), generator=generator)
    gradients = []
    for is_trained in (True, False):
        x, weight = hidden.clone().requires_grad_(), table.clone().requires_grad_(is_trained)
        with TensorRecorder() as recorder:
            linear_cross_entropy(x, weight, targets, path=path).mul(2.0).backward()
        operations = recorder.operations_returning(weight.shape)
        assert bool(operations) == is_trained, operations
        assert (weight.grad is not None) == is_trained and x.grad is not None
        gradients.append(x.grad)
    assert torch.equal(*gradients)


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
    """Prevents a misspelt target that is silently not trained."""
    if not lines:
        validate_options(LoraOptions, values)
        return
    with pytest.raises(UserError) as error:
        validate_options(LoraOptions, values)
    errors = str(error.value).splitlines()
    assert len(errors) == len(lines)
    for line, start in zip(errors, lines, strict=True):
        assert line.startswith(start)


def test_adapter_keeps_the_bias_of_its_layer() -> None:
    """Prevents a layer with a bias from losing it, and with it the function of the base model."""
    linear = nn.Linear(6, 4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, generator=generator)
    adapted = LoraLinear(linear, LoraOptions(rank=2), generator)
    torch.testing.assert_close(adapted(x), linear(x))


def test_without_adapter_the_base_computes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents a reference with half an adapter, and one that stays off after an error."""
    base = save_random_base(tmp_path / "base", tokenizer)
    model, _ = weights.load_checkpoint(base, CPU)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model(ids)
        attach_adapter(model, Adapter(LoraOptions(targets=ALL_TARGETS), base, ""), seed=0)
        for module in model.modules():
            if isinstance(module, LoraLinear):
                module.lora_B.weight.fill_(0.1)
        adapted = model(ids)
        assert not torch.allclose(adapted, expected, atol=0.1)
        with pytest.raises(RuntimeError), without_adapter(model):
            torch.testing.assert_close(model(ids), expected)
            raise RuntimeError
        assert torch.equal(model(ids), adapted)
