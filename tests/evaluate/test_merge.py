"""`python -m evaluate.merge` on a run of QLoRA: the trained loss, and those of both merges."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from evaluate.measures.merge import compare_merges
from evaluate.options import MergeOptions
from model.checkpoint import weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from tests.fault_injection.child import run_in_test_process
from tests.helpers.training import to_arguments


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A run of a few steps, beside a base whose weights are large enough to lose by 4 bits."""
    folder = tmp_path_factory.mktemp("merge")
    sample = root / "assets" / "sample" / "summary" / "csl"
    source = SourceGroup("csl", (str(sample / "train.tsv"),), (str(sample / "dev.tsv"),))
    options = PrepareOptions(workers=1, limit=20)
    prepare_groups([source], folder / "csl", root / "assets/tokenizer", options)
    (folder / "base").mkdir()
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    weights.save_checkpoint(Llama(config).init_weights(0), tokenizer, folder / "base")
    arguments: dict[str, Any] = {
        "run": folder / "run",
        "base": folder / "base",
        "data": folder / "csl",
        "device": "cpu",
        "precision": "fp32",
        "sequence_length": 128,
        "batch_tokens": 256,
        "max_steps": 6,
        "adapter": "lora",
        "quantize": "nf4",
        "optimizer.lr": 0.02,
        "evaluation.examples": 0,
    }
    run_in_test_process("train.sft", to_arguments(arguments))
    return folder / "run"


@pytest.mark.slow
def test_table_has_the_losses_of_training_and_of_both_merges(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catch rows of other records or lengths, merges that are swapped, and a missing rounding."""
    results = {}
    for dtype in ("float32", "bfloat16"):
        file = tmp_path / f"{dtype}.json"
        compare_merges(MergeOptions(checkpoint=run, dtype=dtype, json=file, device="cpu"))
        results[dtype] = json.loads(file.read_text())["weights"]
    rows, rounded = results["float32"], results["bfloat16"]
    # The loss that training logged for its last step.
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (validation,) = (record for record in metrics if record["kind"] == "validation")
    trained = rows["adapter beside nf4"]["loss"]
    assert trained == pytest.approx(validation["loss"], rel=1e-5)
    assert rows["merged into dequantized"]["loss"] == pytest.approx(trained, rel=1e-5)
    assert abs(rows["merged into original"]["difference"]) > 1e-4
    assert abs(rows["base in nf4"]["loss"] - rows["base"]["loss"]) > 1e-4
    assert trained < rows["base in nf4"]["loss"]
    difference = rounded["merged into dequantized"]["loss"] - trained
    assert 0 < abs(difference) < 0.05
    printed = capsys.readouterr().out
    assert f"adapter beside nf4{trained:15.4f}" in printed and "rounded to bfloat16" in printed
