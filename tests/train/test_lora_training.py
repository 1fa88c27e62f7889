"""Fine-tuning an adapter as a user runs it: small checkpoints, the same bits after a kill, and what it refuses."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from common.files import sha256_file
from common.options import validate_options
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from model.checkpoint import locate, weights
from model.checkpoint.locate import find_newest_step, list_steps, step_folder
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import Adapter, LoraOptions, adapter_tensors, attach_adapter
from model.tokenizer.base import Tokenizer
from tests.helpers import processes
from train.autotune import (
    ComputePlan,
    count_trainable_parameters,
    estimate_training_bytes,
    training_flops_per_token,
)
from train.optimizer import OptimizerOptions, build_optimizers
from train.options import SftOptions

STEPS = 12
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def words(root: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> list[str]:
    """Options that fine-tune an adapter with dropout, two micro-batches a step, beside a base of random weights."""
    folder, sample = tmp_path_factory.mktemp("lora"), root / "assets" / "sample" / "summary" / "csl"
    prepare_groups(
        [SourceGroup("csl", (str(sample / "train.tsv"),), (str(sample / "dev.tsv"),))],
        folder / "csl",
        root / "assets/tokenizer",
        PrepareOptions(workers=1, limit=60),
    )
    (folder / "base").mkdir()
    model = Llama(LlamaConfig(vocab_size=tokenizer.vocab_size, **SHAPE)).init_weights(0)
    weights.save_checkpoint(model, tokenizer, folder / "base")
    return [
        "--device",
        "cpu",
        "--data",
        str(folder / "csl"),
        "--base",
        str(folder / "base"),
        "--batch_tokens",
        "1024",
        "--micro_batch",
        "2",
        "--max_steps",
        str(STEPS),
        "--checkpoint.every",
        "3",
        "--evaluation.every",
        str(STEPS),
        "--log_every",
        "2",
        "--evaluation.examples",
        "1",
        "--evaluation.max_new_tokens",
        "2",
        "--adapter",
        "lora",
        "--lora.dropout",
        "0.2",
    ]


def tensors(run: Path) -> tuple[bytes, bytes]:
    folder = step_folder(run, STEPS)
    return (folder / "adapter_model.safetensors").read_bytes(), (
        folder / "optimizer.safetensors"
    ).read_bytes()


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = processes.run_command("train.sft", *words, "--run", str(run), fresh_interpreter=True)
    assert done.returncode == 0, done.stderr
    assert (
        "adapter   LoRA of rank 8 (alpha 16, dropout 0.2) on q_proj, v_proj: 3,584 parameters train"
        in done.stdout
    )
    return run


@pytest.mark.slow
def test_killed_lora_run_resumes_bit_identically(
    words: list[str], whole: Path, tmp_path: Path
) -> None:
    """Dropout that is drawn anew after a resume; an adapter or its moments that are not restored."""
    run = tmp_path / "run"
    process = processes.CommandProcess(
        "train.sft", *words, "--run", str(run), fault=processes.PauseAfterStep(4)
    )
    process.send_signal_when(signal.SIGKILL, lambda: 3 in list_steps(run))
    assert process.wait().returncode == -signal.SIGKILL
    assert find_newest_step(run) == 3
    done = processes.run_command("train.sft", *words, "--run", str(run))
    assert done.returncode == 0 and "continues after step 3" in done.stdout, done.stderr
    assert tensors(run) == tensors(whole)


@pytest.mark.slow
def test_checkpoint_contains_adapter_and_base_reference(
    words: list[str], whole: Path, tmp_path: Path
) -> None:
    """The base's weights stored again at every checkpoint, or changed; an adapter that chat and evaluation cannot load."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, folder = Path(words[words.index("--base") + 1]), step_folder(whole, STEPS)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes.keys() == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "config.json",
        "manifest.json",
        "optimizer.safetensors",
        "state.json",
        "template.json",
        "tokenizer.model",
    }
    assert (
        sum(sizes.values()) - sizes["tokenizer.model"]
        < 60_000
        < 2_000_000
        < (base / locate.WEIGHTS_FILE).stat().st_size
    )
    ids = torch.arange(400, 440).unsqueeze(0)
    with torch.no_grad():
        plain, ours = (
            weights.load_checkpoint(each, torch.device("cpu"))[0](ids) for each in (base, whole)
        )
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)(
            ids
        ).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - plain).abs().max() > 1e-3
    # Which a run of its own may begin with: all of its weights, or another adapter.
    assert locate.weights_sha256(folder) == sha256_file(folder / "adapter_model.safetensors")


@pytest.mark.slow
def test_changed_adapter_or_base_is_refused(words: list[str], whole: Path, tmp_path: Path) -> None:
    """A continuation that silently is something else, or begins from weights that are gone with a traceback."""
    run, base = tmp_path / "run", Path(words[words.index("--base") + 1])
    shutil.copytree(whole, run)
    done = processes.run_command("train.sft", *words, "--adapter", "none", "--run", str(run))
    assert (
        done.returncode == 2
        and "another adapter" in done.stderr
        and len(done.stderr.splitlines()) == 1
    ), done.stderr
    hidden = base.rename(base.with_name("hidden"))
    try:
        done = processes.run_command("train.sft", *words, "--run", str(run))
    finally:
        hidden.rename(base)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"its base {base.resolve()} does not exist" in done.stderr


def small(**changes: Any) -> Llama:
    return Llama(LlamaConfig(vocab_size=99, **{**SHAPE, **changes})).init_weights(0)


@pytest.mark.parametrize("tied", [True, False])
def test_only_adapter_parameters_are_optimized_and_counted(tied: bool) -> None:
    """Muon on the thin matrices; moments, memory and speed reckoned for weights that do not train."""
    model, choices = (
        small(tie_word_embeddings=tied),
        ComputePlan("cpu", "fp32", False, 2, "chunked"),
    )
    config = model.config
    assert count_trainable_parameters(model) == config.num_parameters
    head = 6 * config.vocab_size * config.hidden_size
    assert training_flops_per_token(model, 64) == (config.flops_per_token(64) - head, head)
    before = estimate_training_bytes(model, choices, 64)
    attach_adapter(model, Adapter(LoraOptions(targets=("q_proj", "down_proj")), Path(), ""), seed=0)
    adapter = adapter_tensors(model)
    count = sum(tensor.numel() for tensor in adapter.values())
    assert count_trainable_parameters(model) == count == 2 * 8 * (64 + 64 + 64 + 128)
    optimizers = build_optimizers(model, OptimizerOptions(name="muon"))
    held = [
        parameter for group in optimizers["adamw"].param_groups for parameter in group["params"]
    ]
    assert optimizers.keys() == {"adamw"} and {id(each) for each in held} == {
        id(each) for each in adapter.values()
    }
    assert (
        before - estimate_training_bytes(model, choices, 64)
        == 12 * (config.num_parameters - count) + 4 * 99 * 64
    )
    body, ends = training_flops_per_token(model, 64)
    frozen = config.num_matmul_parameters - 99 * 64
    assert body == 4 * frozen + 6 * count + 6 * 2 * 64 * 64 and ends == head * 2 / 3


def test_an_adapter_needs_a_base() -> None:
    """Random weights that are frozen for good."""
    with pytest.raises(UserError, match=r"^--adapter lora: .*--base none"):
        validate_options(SftOptions, {"adapter": "lora", "base": "none"})
    with pytest.raises(UserError) as caught:
        validate_options(SftOptions, {"adapter": "lara", "lora": {"targets": "qproj"}})
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["--adapter", "--lora.targets.0"]
