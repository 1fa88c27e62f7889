"""A run that was really trained, for the tests that send models out and take them in."""

import sys
from pathlib import Path

import pytest

from data.inputs import Group
from data.prepare import PrepareOptions, prepare_groups
from train.sft import main

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}


@pytest.fixture(scope="session")
def trained_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, with grouped heads, fine-tuned from nothing on a little of the sample's conversations."""
    folder = tmp_path_factory.mktemp("trained")
    group = Group("redgpt", (str(root / "assets/sample/sft/redgpt/RedGPT-Dataset-V1-CN.json.gz"),))
    prepare_groups([group], folder / "redgpt", root / "assets/tokenizer", PrepareOptions(workers=1, limit=80))
    words = {"config": root / "configs/sft.yaml", "base": "none", "data": folder / "redgpt", "run": folder / "run",
             "sequence_length": 256, "batch_tokens": 1024, "max_steps": 12, "device": "cpu", "evaluation.examples": 0,
             "checkpoint.every": 100, **{f"model.{key}": value for key, value in SHAPE.items()}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        # Seconds, for a share that is only shown.
        patch.setattr("train.clock.matmul_flops", lambda *_: 1e9)
        patch.setattr(sys, "argv", ["train.sft", *(word for key, value in words.items() for word in (f"--{key}", str(value)))])
        main()
    return folder / "run"
