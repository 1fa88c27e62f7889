"""Shard sets of conversations and of summaries that the tests of examples and of rows share."""

from pathlib import Path

import numpy as np
import pytest

from data.sequences import Sequences, ShardWriter
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


@pytest.fixture
def conversations(tmp_path: Path, tokenizer: Tokenizer) -> Sequences:
    """300 conversations of one to six turns, in two shards."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "conversations"
    folder.mkdir()
    writer = ShardWriter(folder, "train", tokenizer.vocab_size, shard_tokens=9000, has_spans=True)
    for number in range(300):
        turns = [
            (f"第{number}个问题", "答" * int(rng.integers(1, 40)))
            for _ in range(rng.integers(1, 7))
        ]
        ids, spans = Template().encode(tokenizer, turns, "资料" * int(rng.integers(0, 30)))
        writer.add(np.array(ids), np.array(spans))
    writer.close()
    return Sequences(folder, "train")


@pytest.fixture
def summaries(tmp_path: Path, tokenizer: Tokenizer) -> tuple[Sequences, list[tuple[str, str]]]:
    """120 articles with titles, some much too long for a row; and their texts."""
    rng = np.random.default_rng(2)
    folder = tmp_path / "summaries"
    folder.mkdir()
    writer = ShardWriter(folder, "train", tokenizer.vocab_size, shard_tokens=3000, has_spans=True)
    texts = [
        ("山里的风从东边来，" * int(rng.integers(1, 40)) + f"{number}。", f"第{number}号风")
        for number in range(120)
    ]
    for article, title in texts:
        article_ids, title_ids = tokenizer.encode(article), tokenizer.encode(title)
        ids = article_ids + title_ids
        writer.add(np.array(ids), np.array([[len(article_ids), len(ids)]]))
    writer.close()
    return Sequences(folder, "train"), texts
