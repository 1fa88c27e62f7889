"""Fixtures: a tiny model with memorized answers, commands in this process, two runs."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

from model.chat_template.template import Template
from model.checkpoint import weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from tests.helpers.reports import VALIDATION_METRICS, write_run

Teach = Callable[[Sequence[tuple[list[int], str]], Path], Path]


@pytest.fixture(scope="session")
def teach(tokenizer: Tokenizer) -> Teach:
    """Train a model that answers each prompt and stops; return its checkpoint folder."""

    def _teach(pairs: Sequence[tuple[list[int], str]], folder: Path) -> Path:
        rows = [[*prompt, *tokenizer.encode(answer), tokenizer.eos_id] for prompt, answer in pairs]
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        scored = torch.tensor(
            [
                index
                for number, (row, (prompt, _)) in enumerate(zip(rows, pairs, strict=True))
                for index in range(
                    number * length + len(prompt) - 1, number * length + len(row) - 1
                )
            ]
        )
        targets = ids.roll(-1, 1).flatten()[scored]
        config = LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
        )
        model = Llama(config).init_weights(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=6e-3, fused=True)
        for _ in range(200):
            loss = model(ids, targets, target_positions=scored, scale=1 / len(targets))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if loss.item() < 0.01:
                break
        assert loss.item() < 0.1
        folder.mkdir()
        weights.save_checkpoint(model, tokenizer, folder)
        Template().save(folder)
        return folder

    return _teach


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, root: Path) -> Callable[..., None]:
    """Run the `main` of a command with arguments, from the root of the project."""

    def _run(module: ModuleType, *arguments: object) -> None:
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()

    return _run


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of unequal lengths and learning rates."""
    first = write_run(
        tmp_path / "a",
        [5.0, 4.0, 3.0],
        {
            20: VALIDATION_METRICS,
            30: {**VALIDATION_METRICS, "loss": 2.25, "accuracy": 0.35},
            40: {**VALIDATION_METRICS, "loss": 2.75, "accuracy": 0.3},
        },
        optimizer={"lr": 0.25},
    )
    second = write_run(
        tmp_path / "b", [6.0, 2.0], {20: VALIDATION_METRICS}, max_steps=20, optimizer={"lr": 0.5}
    )
    return first, second
