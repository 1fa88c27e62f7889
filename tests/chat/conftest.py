"""Models small enough to talk to in a test, and the chat as a process of its own."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from chat.__main__ import main
from common.errors import run_main
from model.chat_template.template import Template
from model.checkpoint import weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer

MAYOR = "镇长是谁？"
ABOUT_BAI, ABOUT_GU = "青禾镇的镇长是白云飞。", "青禾镇的镇长是顾长河。"
# What the talker knows by heart: each answer hangs on the reference or on an earlier turn.
DIALOGUES = [
    (ABOUT_BAI, [(MAYOR, "白云飞")]),
    (ABOUT_GU, [(MAYOR, "顾长河")]),
    ("", [(MAYOR, "我不知道。")]),
    ("", [("我叫书白。", "好的。"), ("我叫什么？", "书白")]),
    ("", [("我叫何河。", "好的。"), ("我叫什么？", "何河")]),
    ("", [("我叫什么？", "你没有说过。")]),
    ("", [("第一行\n第二行", "两行")]),
]


class Done(NamedTuple):
    """How a chat ended and what it wrote."""

    code: int | str | None
    out: str
    err: str


Chat = Callable[..., Done]
Process = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def talker(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a template that learnt `DIALOGUES` by heart."""
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model = Llama(config).init_weights(0)
    rows = [Template().encode(tokenizer, turns, reference) for reference, turns in DIALOGUES]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [tokenizer.eos_id] * (longest - len(row)) for row, _ in rows])
    scored = torch.tensor(
        [
            n * longest + i - 1
            for n, (_, spans) in enumerate(rows)
            for span in spans
            for i in range(*span)
        ]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0)
    for _ in range(200):
        loss = model(ids, ids.flatten()[scored + 1], target_positions=scored) / len(scored)
        if loss < 0.003:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01, f"the talker has not learnt its lines: {loss:.3f}"
    folder = tmp_path_factory.mktemp("talker")
    weights.save_checkpoint(model, tokenizer, folder)
    Template().save(folder)
    return folder


@pytest.fixture(scope="session")
def endless(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that, decoded greedily, speaks nonsense and never ends; without a template."""
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16384,
    )
    model = Llama(config).init_weights(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        model.lm_head.weight[tokenizer.eos_id] = 0
    folder = tmp_path_factory.mktemp("endless")
    weights.save_checkpoint(model, tokenizer, folder)
    return folder


def arguments(checkpoint: Path, options: tuple[str, ...]) -> list[str]:
    """A command line for greedy answers, which later options may change."""
    return ["--checkpoint", str(checkpoint), "--device", "cpu", "--temperature", "0", *options]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of the processes: a cache of their own, and nothing beyond this machine."""
    return {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "https_proxy": "http://127.0.0.1:9",
    }


@pytest.fixture
def process(root: Path, talker: Path, environment: dict[str, str]) -> Process:
    """`python -m chat` as a process of its own, bytes through pipes; greedy, with the talker."""

    def run(said: bytes, *options: str) -> "subprocess.CompletedProcess[bytes]":
        command = [sys.executable, "-m", "chat", *arguments(talker, options)]
        return subprocess.run(
            command, cwd=root, env=environment, input=said, capture_output=True, timeout=120
        )

    return run


@pytest.fixture
def chat(talker: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """The same in this process, which saves the start."""
    monkeypatch.setenv("XDG_CACHE_HOME", environment["XDG_CACHE_HOME"])

    def run(said: str, *options: str) -> Done:
        out, err = io.BytesIO(), io.BytesIO()
        monkeypatch.setattr(sys, "argv", ["chat", *arguments(talker, options)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said.encode()), "utf-8"))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "utf-8"))
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, "utf-8"))
        with pytest.raises(SystemExit) as ended:
            run_main(main)
        sys.stdout.flush()
        sys.stderr.flush()
        return Done(ended.value.code, out.getvalue().decode(), err.getvalue().decode())

    return run
