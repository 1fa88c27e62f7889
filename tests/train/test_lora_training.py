"""Fine-tuning an adapter: small checkpoints, the same bits after a kill, and what is refused."""

import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.files import sha256_file
from common.run_layout import list_steps, step_folder
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from model.checkpoint import locate, weights
from model.checkpoint.locate import find_newest_step
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import Adapter, LoraOptions, adapter_tensors, attach_adapter
from model.tokenizer.base import Tokenizer
from tests.fault_injection.child import run_in_test_process
from tests.helpers.processes import CommandProcess, PauseAfterStep, run_command
from tests.helpers.training import QLORA, checkpoint_bytes, to_arguments
from train.autotune import count_trainable_parameters
from train.monitoring.throughput import training_flops_per_token
from train.optimizer import OptimizerOptions, build_optimizers

LAST_STEP = 6
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "max_position_embeddings": 256,
}
ADAPTER_FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def options(
    root: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer
) -> dict[str, Any]:
    """An adapter with dropout, two micro-batches a step, beside a base of random weights."""
    folder = tmp_path_factory.mktemp("lora")
    sample = root / "assets" / "sample" / "summary" / "csl"
    source = SourceGroup("csl", (str(sample / "train.tsv"),), (str(sample / "dev.tsv"),))
    prepare_options = PrepareOptions(workers=1, limit=20)
    prepare_groups([source], folder / "csl", root / "assets/tokenizer", prepare_options)
    (folder / "base").mkdir()
    model = Llama(LlamaConfig(vocab_size=tokenizer.vocab_size, **SHAPE)).init_weights(0)
    weights.save_checkpoint(model, tokenizer, folder / "base")
    return {
        "device": "cpu",
        "data": folder / "csl",
        "base": folder / "base",
        "sequence_length": 128,
        "batch_tokens": 256,
        "micro_batch": 1,
        "max_steps": LAST_STEP,
        "checkpoint.every": 2,
        "evaluation.every": LAST_STEP,
        "log_every": 2,
        "evaluation.examples": 1,
        "evaluation.max_new_tokens": 2,
        "adapter": "lora",
        "lora.dropout": 0.2,
    }


def tune(run: Path, options: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Fine-tune to the end."""
    return run_command("train.sft", *to_arguments({"run": run, **options}))


@pytest.fixture(scope="module")
def whole(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    arguments = to_arguments({"run": run, **options})
    # Not a fork, so that sets of strings have another order than in the killed run.
    output = run_in_test_process("train.sft", arguments)
    summary = "LoRA of rank 8 (alpha 16, dropout 0.2) on q_proj, v_proj: 3,584 parameters train"
    assert summary in output
    return run


@pytest.mark.slow
def test_killed_lora_run_resumes_bit_identically(
    options: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    """Catch other dropout masks after a resume, and an adapter or moments not restored."""
    run = tmp_path / "run"
    arguments = to_arguments({"run": run, **options})
    process = CommandProcess("train.sft", *arguments, fault=PauseAfterStep(3))
    process.send_signal_when(signal.SIGKILL, lambda: 2 in list_steps(run))
    assert process.wait().returncode == -signal.SIGKILL
    assert find_newest_step(run) == 2
    done = tune(run, options)
    assert done.returncode == 0 and "continues after step 2" in done.stdout, done.stderr
    expected = checkpoint_bytes(whole, LAST_STEP, ADAPTER_FILE)
    assert checkpoint_bytes(run, LAST_STEP, ADAPTER_FILE) == expected


@pytest.mark.slow
def test_killed_qlora_run_resumes_bit_identically(options: dict[str, Any], tmp_path: Path) -> None:
    """Catch 4-bit weights, 8-bit moments or dropout of repeated layers that a resume changes."""
    qlora = {**options, **QLORA}
    whole, run = tmp_path / "whole", tmp_path / "run"
    output = run_in_test_process("train.sft", to_arguments({"run": whole, **qlora}))
    assert "the rest is frozen, its layers in NF4" in output
    process = CommandProcess(
        "train.sft", *to_arguments({"run": run, **qlora}), fault=PauseAfterStep(3)
    )
    process.send_signal_when(signal.SIGKILL, lambda: 2 in list_steps(run))
    assert process.wait().returncode == -signal.SIGKILL
    done = tune(run, qlora)
    assert done.returncode == 0 and "continues after step 2" in done.stdout, done.stderr
    expected = checkpoint_bytes(whole, LAST_STEP, ADAPTER_FILE)
    assert checkpoint_bytes(run, LAST_STEP, ADAPTER_FILE) == expected
    moments = load_file(step_folder(run, LAST_STEP) / "optimizer.safetensors")
    # The moments of small matrices stay in fp32.
    dtypes = {tensor.dtype for name, tensor in moments.items() if "/state" in name}
    assert dtypes == {torch.uint8, torch.float32}
    # The base in other weights is another run.
    done = tune(run, {**qlora, "quantize": "none"})
    assert done.returncode == 2 and "adapter.quantize: nf4 -> None" in done.stderr, done.stderr


@pytest.mark.slow
def test_checkpoint_contains_adapter_and_base_reference(
    options: dict[str, Any], whole: Path
) -> None:
    """Catch the base's weights in every checkpoint, and an adapter that PEFT reads otherwise."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, folder = options["base"], step_folder(whole, LAST_STEP)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes.keys() == {
        ADAPTER_FILE,
        "adapter_config.json",
        "base.json",
        "config.json",
        "manifest.json",
        "optimizer.safetensors",
        "state.json",
        "template.json",
        "tokenizer.model",
    }
    assert sum(sizes.values()) - sizes["tokenizer.model"] < 60_000
    assert (base / locate.WEIGHTS_FILE).stat().st_size > 1_000_000
    ids = torch.arange(400, 440).unsqueeze(0)
    cpu = torch.device("cpu")
    with torch.no_grad():
        base_logits = weights.load_checkpoint(base, cpu)[0](ids)
        logits = weights.load_checkpoint(whole, cpu)[0](ids)
        peft_model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        peft_logits = peft_model(ids).logits
    torch.testing.assert_close(logits, peft_logits, rtol=1e-4, atol=1e-5)
    assert (logits - base_logits).abs().max() > 1e-3
    assert locate.weights_sha256(folder) == sha256_file(folder / ADAPTER_FILE)


@pytest.mark.slow
def test_changed_adapter_or_missing_base_is_refused(
    options: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    """Catch a resumed run that trains something else, and a traceback for a base that is gone."""
    run, base = tmp_path / "run", options["base"]
    shutil.copytree(whole, run)
    done = tune(run, {**options, "adapter": "none"})
    assert done.returncode == 2 and "adapter: {'lora': " in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    hidden = base.rename(base.with_name("hidden"))
    try:
        done = tune(run, options)
    finally:
        hidden.rename(base)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert str(base.resolve()) in done.stderr and "adapter" in done.stderr


@pytest.mark.parametrize("is_tied", [True, False])
def test_only_adapter_parameters_are_optimized_and_counted(is_tied: bool) -> None:
    """Catch Muon on the thin matrices, and FLOPs of weights that do not train."""
    config = LlamaConfig(vocab_size=99, **{**SHAPE, "tie_word_embeddings": is_tied})
    model = Llama(config).init_weights(0)
    head_weights = config.vocab_size * config.hidden_size
    head_flops = 6 * head_weights
    assert count_trainable_parameters(model) == config.num_parameters
    body_flops = config.flops_per_token(64) - head_flops
    assert training_flops_per_token(model, 64) == (body_flops, head_flops)

    attach_adapter(model, Adapter(LoraOptions(targets=("q_proj", "down_proj")), Path(), ""), seed=0)
    adapter = adapter_tensors(model)
    count = sum(tensor.numel() for tensor in adapter.values())
    assert count_trainable_parameters(model) == count == 2 * 8 * (64 + 64 + 64 + 128)
    optimizers = build_optimizers(model, OptimizerOptions(name="muon"))
    optimized = []
    for group in optimizers["adamw"].param_groups:
        optimized += [id(parameter) for parameter in group["params"]]
    assert optimizers.keys() == {"adamw"}
    assert set(optimized) == {id(tensor) for tensor in adapter.values()}
    # The loss scale of fp16 refuses an optimizer that has nothing to update.
    assert build_optimizers(model, OptimizerOptions(name="adamw8bit")).keys() == {"adamw8bit"}
    frozen = config.num_matmul_parameters - head_weights
    attention_flops = 6 * 2 * 64 * 64
    expected = (4 * frozen + 6 * count + attention_flops, head_flops * 2 / 3)
    assert training_flops_per_token(model, 64) == expected
