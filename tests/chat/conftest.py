"""Small models to talk to, and the chat as a function and as a process."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from chat.__main__ import main
from common import run_layout
from common.errors import run_main
from common.files import write_checksummed_json
from data.corpora.sample import SAMPLE_SFT_FILES, SMALL_TOKENIZER
from data.index.passages import TitledDocument
from data.index.writer import add_documents
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import ShardSet
from model.chat_template.template import Template
from model.checkpoint import weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer

MAYOR_QUESTION = "镇长是谁？"
BAI_REFERENCE = "青禾镇的镇长是白云飞。"
LAKE_TEXT = "西湖在杭州城的西边，湖上有一座断桥，春天游人很多。"
GU_REFERENCE = "青禾镇的镇长是顾长河。"
# (reference, turns) that the `talker` memorizes: each answer depends on the reference or on an
# earlier turn.
DIALOGUES = [
    (BAI_REFERENCE, [(MAYOR_QUESTION, "白云飞")]),
    (GU_REFERENCE, [(MAYOR_QUESTION, "顾长河")]),
    ("", [(MAYOR_QUESTION, "我不知道。")]),
    ("", [("我叫书白。", "好的。"), ("我叫什么？", "书白")]),
    ("", [("我叫何河。", "好的。"), ("我叫什么？", "何河")]),
    ("", [("我叫什么？", "你没有说过。")]),
    ("", [("第一行\n第二行", "两行")]),
]


class ChatResult(NamedTuple):
    """The exit code and the output of a chat."""

    code: int | str | None
    out: str
    err: str


Chat = Callable[..., ChatResult]
Process = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def talker(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a template, overfitted to `DIALOGUES`."""
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
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [tokenizer.eos_id] * (length - len(row)) for row, _ in rows])
    # Positions, in the flattened batch, that predict an id of an answer.
    target_positions = torch.tensor(
        [
            row_index * length + index - 1
            for row_index, (_, answer_spans) in enumerate(rows)
            for span in answer_spans
            for index in range(*span)
        ]
    )
    targets = ids.flatten()[target_positions + 1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0)
    for _ in range(200):
        loss = model(ids, targets, target_positions=target_positions) / len(targets)
        if loss < 0.003:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01, f"the talker has not memorized its dialogues: loss {loss:.3f}"
    folder = tmp_path_factory.mktemp("talker")
    weights.save_checkpoint(model, tokenizer, folder)
    Template().save(folder)
    return folder


@pytest.fixture(scope="session")
def endless(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a template that generates nonsense and, decoded greedily, never ends."""
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


@pytest.fixture(scope="session")
def sample_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardSet]:
    """The first records of two parts of the sample, prepared as `make sft DATA=…` does it."""
    prepared = tmp_path_factory.mktemp("prepared")
    shard_sets = {}
    for name in ("redgpt", "csl"):
        folder = prepared / f"sample-{name}-0123abcd"
        group = SourceGroup(name, (str(SAMPLE_SFT_FILES[name].train[0]),))
        corpus = {"name": f"sample-{name}", "parts": []}
        options = PrepareOptions(workers=1, limit=5)
        prepare_groups([group], folder, SMALL_TOKENIZER, options, corpus=corpus)
        shard_sets[name] = ShardSet.open(folder)
    return shard_sets


def write_run_on(folder: Path, checkpoint: Path, trained_on: list[ShardSet]) -> Path:
    """Write a run that was trained on these sets, with a copy of a checkpoint as its step 1.

    Return the folder of the step.
    """
    step_folder = run_layout.step_folder(folder, 1)
    shutil.copytree(checkpoint, step_folder)
    data = [{"set": each.fingerprint, "weight": 1.0} for each in trained_on]
    folders = [str(each.folder) for each in trained_on]
    write_checksummed_json(folder / "run.json", {"shards": folders, "fingerprints": {"data": data}})
    return step_folder


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of `BAI_REFERENCE` and of a passage with a title."""
    folder = tmp_path / "index"
    documents = [
        TitledDocument("", BAI_REFERENCE, "镇志:1"),
        TitledDocument("西湖", LAKE_TEXT, "游记:2"),
    ]
    add_documents(folder, documents)
    return folder


def chat_arguments(checkpoint: Path, options: tuple[str, ...]) -> list[str]:
    """Return a command line for greedy answers, which `options` may override."""
    return ["--checkpoint", str(checkpoint), "--device", "cpu", "--temperature", "0", *options]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment variables for processes: a cache of their own, and no network."""
    return {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "https_proxy": "http://127.0.0.1:9",
    }


@pytest.fixture
def process(root: Path, talker: Path, environment: dict[str, str]) -> Process:
    """Run `python -m chat` with the talker as a process, bytes through pipes; greedy."""

    def run(stdin: bytes, *options: str) -> "subprocess.CompletedProcess[bytes]":
        command = [sys.executable, "-m", "chat", *chat_arguments(talker, options)]
        return subprocess.run(
            command, cwd=root, env=environment, input=stdin, capture_output=True, timeout=120
        )

    return run


@pytest.fixture
def chat(talker: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Run the same within this process, which saves the start-up time."""
    monkeypatch.setenv("XDG_CACHE_HOME", environment["XDG_CACHE_HOME"])

    def run(stdin: str | bytes, *options: str) -> ChatResult:
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        out, err = io.BytesIO(), io.BytesIO()
        monkeypatch.setattr(sys, "argv", ["chat", *chat_arguments(talker, options)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "utf-8"))
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, "utf-8"))
        with pytest.raises(SystemExit) as exit_info:
            run_main(main)
        sys.stdout.flush()
        sys.stderr.flush()
        return ChatResult(exit_info.value.code, out.getvalue().decode(), err.getvalue().decode())

    return run
