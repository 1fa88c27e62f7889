"""Small corpora, a tokenizer that is trained on them, and preparation in its own process."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from data.shards import ShardSet

# The command with small units and shards, so that little text makes many of them.
COMMAND = """
import data.prepare.worker, data.sequences
data.prepare.worker.UNIT_BYTES = 1 << 16
data.sequences.SequenceWriter.__init__.__defaults__ = (1 << 17,)
from common.errors import run_main
from data.prepare.__main__ import main
run_main(main)
"""
COMMON = list(
    "的一是了我不在人们有来他这上着个地到大里说就去子得也和那要下看天时过出小么起你都把好还多没为又可家学只以主会样年想生同老中十从自面前头道它后"
)


def document(seed: int, characters: int = 400) -> str:
    """Return random text of common characters, unlike that of any other seed."""
    rng = random.Random(seed)
    return "".join(rng.choices(COMMON, k=characters)) + f"。第{seed}篇。"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BPE model with byte fallback of a few hundred pieces."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter([document(seed) for seed in range(50)]),
            model_writer=file,
            model_type="bpe",
            vocab_size=450,
            byte_fallback=True,
            character_coverage=1.0,
            minloglevel=2,
            num_threads=1,
        )
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """200 documents, 10 copies, 5 near copies, 3 short ones, 1 bad line: 219 records."""
    texts = [document(seed) for seed in range(200)]
    rows = [
        {"text": text}
        for text in [
            *texts,
            *texts[:10],
            *[text[:-8] + "完" for text in texts[50:55]],
            "短",
            "短",
            "短",
        ]
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows) + b"{broken\n")
    return path


def run(arguments: list[str], root: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `COMMAND` in its own process."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a shard set except the report, which has times in it."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.json"}


def documents(folder: Path) -> list[str]:
    """Return the texts of a shard set, and check that each has `<bos>` and `<eos>`."""
    shards = ShardSet.open(folder, checksums=True)
    tokenizer = shards.load_tokenizer()
    texts = []
    for split in ("train", "validation"):
        sequences = shards.load_text(split)
        for index in range(len(sequences)):
            ids = sequences.tokens(index)
            assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
            texts.append(tokenizer.decode(ids[1:-1].tolist()))
    return texts
