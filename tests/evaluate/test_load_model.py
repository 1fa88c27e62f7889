"""Checkpoints of evaluation commands."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common import run_layout
from common.files import write_json, write_manifest
from evaluate.load_model import load_checkpoint
from evaluate.options import DeviceOptions
from model.checkpoint import locate, weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer


@pytest.mark.slow
def test_result_names_the_evaluated_step_not_a_newer_one(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents results of one step under the number of a step that training writes meanwhile."""
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )

    def write(step: int) -> None:
        folder = run_layout.step_folder(tmp_path, step)
        folder.mkdir(parents=True)
        weights.save_checkpoint(Llama(config).init_weights(step), tokenizer, folder)
        write_manifest(folder, {"step": step})

    def load(path: Path, device: torch.device) -> Any:
        checkpoint = real(path, device)
        write(20)
        return checkpoint

    write_json(tmp_path / "run.json", {})
    write(10)
    real = weights.load_checkpoint
    monkeypatch.setattr(weights, "load_checkpoint", load)
    loaded = load_checkpoint(tmp_path, DeviceOptions(), torch.device("cpu"))
    assert locate.find_newest_step(tmp_path) == 20
    assert loaded.provenance == {"checkpoint": str(tmp_path), "step": 10}
    assert loaded.folder == run_layout.step_folder(tmp_path, 10)
    expected = Llama(config).init_weights(10).lm_head.weight
    assert torch.equal(loaded.model.lm_head.weight, expected)
