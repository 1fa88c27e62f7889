"""Fine-tuning an adapter as a user runs it: small checkpoints, the same bits after a kill, and what it refuses."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from common.files import sha256_file
from common.options import mistakes
from data.readers.source_args import Group
from data.prepare.pipeline import PrepareOptions, prepare_groups
from model.checkpoint import locate, weights
from model.checkpoint.locate import newest, step_folder, steps
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import Adapter, LoraOptions, adapter_tensors, attach
from model.tokenizer.base import Tokenizer
from tests.helpers import processes
from train.autotune import Choices, memory_needed, trained, training_flops
from train.optimizer import OptimizerOptions, build_optimizers
from train.options import SftOptions

STEPS = 12
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "tie_word_embeddings": True, "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def words(root: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> list[str]:
    """Options that fine-tune an adapter with dropout, two micro-batches a step, beside a base of random weights."""
    folder, sample = tmp_path_factory.mktemp("lora"), root / "assets" / "sample" / "summary" / "csl"
    prepare_groups([Group("csl", (str(sample / "train.tsv"),), (str(sample / "dev.tsv"),))], folder / "csl",
                   root / "assets/tokenizer", PrepareOptions(workers=1, limit=60))
    (folder / "base").mkdir()
    model = Llama(LlamaConfig(vocab_size=tokenizer.vocabulary_size, **SHAPE)).initialise(0)
    weights.save(model, tokenizer, folder / "base")
    return ["--config", "configs/sft.yaml", "--device", "cpu", "--data", str(folder / "csl"), "--base", str(folder / "base"),
            "--batch_tokens", "1024", "--micro_batch", "2", "--max_steps", str(STEPS), "--checkpoint.every", "3",
            "--evaluation.every", str(STEPS), "--log_every", "2", "--evaluation.examples", "1",
            "--evaluation.max_new_tokens", "2", "--adapter", "lora", "--lora.dropout", "0.2"]


def tensors(run: Path) -> tuple[bytes, bytes]:
    folder = step_folder(run, STEPS)
    return (folder / "adapter_model.safetensors").read_bytes(), (folder / "optimizer.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = processes.run("train.sft", *words, "--run", str(run), anew=True)
    assert done.returncode == 0, done.stderr
    assert "adapter   LoRA of rank 8 (alpha 16, dropout 0.2) on q_proj, v_proj: 3,584 parameters train" in done.stdout
    return run


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(words: list[str], whole: Path, tmp_path: Path) -> None:
    """Dropout that is drawn anew after a resume; an adapter or its moments that are not restored."""
    run = tmp_path / "run"
    process = processes.Command("train.sft", *words, "--run", str(run), fault=processes.HeldAfter(4))
    process.send_when(signal.SIGKILL, lambda: 3 in steps(run))
    assert process.done().returncode == -signal.SIGKILL
    assert newest(run) == 3
    done = processes.run("train.sft", *words, "--run", str(run))
    assert done.returncode == 0 and "continues after step 3" in done.stdout, done.stderr
    assert tensors(run) == tensors(whole)


@pytest.mark.slow
def test_a_checkpoint_is_the_adapter_and_where_its_base_is(words: list[str], whole: Path, tmp_path: Path) -> None:
    """The base's weights stored again at every checkpoint, or changed; an adapter that chat and evaluation cannot load."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, folder = Path(words[words.index("--base") + 1]), step_folder(whole, STEPS)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes.keys() == {"adapter_config.json", "adapter_model.safetensors", "base.json", "config.json", "manifest.json",
                            "optimizer.safetensors", "state.json", "template.json", "tokenizer.model"}
    assert sum(sizes.values()) - sizes["tokenizer.model"] < 60_000 < 2_000_000 < (base / locate.WEIGHTS).stat().st_size
    ids = torch.arange(400, 440).unsqueeze(0)
    with torch.no_grad():
        plain, ours = (weights.load(each, torch.device("cpu"))[0](ids) for each in (base, whole))
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - plain).abs().max() > 1e-3
    # Which a run of its own may begin with: all of its weights, or another adapter.
    assert locate.digest(folder) == sha256_file(folder / "adapter_model.safetensors")


@pytest.mark.slow
def test_another_adapter_or_base_under_the_same_name_is_refused(words: list[str], whole: Path, tmp_path: Path) -> None:
    """A continuation that silently is something else, or begins from weights that are gone with a traceback."""
    run, base = tmp_path / "run", Path(words[words.index("--base") + 1])
    shutil.copytree(whole, run)
    done = processes.run("train.sft", *words, "--adapter", "none", "--run", str(run))
    assert done.returncode == 2 and "another adapter" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    hidden = base.rename(base.with_name("hidden"))
    try:
        done = processes.run("train.sft", *words, "--run", str(run))
    finally:
        hidden.rename(base)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"expected at {base.resolve()}, where there is nothing" in done.stderr


def small(**changes: Any) -> Llama:
    return Llama(LlamaConfig(vocab_size=99, **{**SHAPE, **changes})).initialise(0)


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_adapter_is_optimised_and_counted(tied: bool) -> None:
    """Muon on the thin matrices; moments, memory and speed reckoned for weights that do not train."""
    model, choices = small(tie_word_embeddings=tied), Choices("cpu", "fp32", False, 2, "chunked")
    config = model.config
    assert trained(model) == config.parameters
    head = 6 * config.vocab_size * config.hidden_size
    assert training_flops(model, 64) == (config.flops_per_token(64) - head, head)
    before = memory_needed(model, choices, 64)
    attach(model, Adapter(LoraOptions(targets=("q_proj", "down_proj")), Path(), ""), seed=0)
    adapter = adapter_tensors(model)
    count = sum(tensor.numel() for tensor in adapter.values())
    assert trained(model) == count == 2 * 8 * (64 + 64 + 64 + 128)
    optimizers = build_optimizers(model, OptimizerOptions(name="muon"))
    held = [parameter for group in optimizers["adamw"].param_groups for parameter in group["params"]]
    assert optimizers.keys() == {"adamw"} and {id(each) for each in held} == {id(each) for each in adapter.values()}
    assert before - memory_needed(model, choices, 64) == 12 * (config.parameters - count) + 4 * 99 * 64
    body, ends = training_flops(model, 64)
    frozen = config.matmul_parameters - 99 * 64
    assert body == 4 * frozen + 6 * count + 6 * 2 * 64 * 64 and ends == head * 2 / 3


def test_an_adapter_needs_a_base() -> None:
    """Random weights that are frozen for good."""
    [line] = mistakes(SftOptions, {"adapter": "lora", "base": "none", "epochs": 1})
    assert line.startswith("--adapter lora") and "--base none" in line
    lines = mistakes(SftOptions, {"adapter": "lara", "lora": {"targets": "qproj"}, "epochs": 1})
    assert [line.split(":")[0] for line in lines] == ["--adapter", "--lora.targets.0"]
