"""What all tests share."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from common.files import atomic_folder
from data.sequences import ShardWriter
from data.shards import SHARD_FORMAT
from model.tokenizer import load_tokenizer
from model.tokenizer.base import TOKENIZER_FILE as TOKENIZER_FILE
from model.tokenizer.base import Tokenizer

# How long an example takes says something of the machine and what else it does, and nothing of the code. And the examples are
# the same every time: one that fails for whoever changed something else helps nobody. To look for more, raise max_examples.
settings.register_profile("untimed", deadline=None, derandomize=True)
settings.load_profile("untimed")

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules with the most slow tests first: at the end, no process waits long for another one's last module."""
    num_slow_tests = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -num_slow_tests[item.path])


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's own root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real third-party corpora and the real tokenizer, which the project never contains."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the real corpora and tokenizer are not beside this checkout (../shared)")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The shipped small tokenizer."""
    return load_tokenizer(ROOT / "assets" / "tokenizer")


@pytest.fixture
def shard_set(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A little shard set: 300 training and 12 validation sequences of 5 to 200 ids, from a seed."""
    folder = tmp_path / "shards"
    rng = np.random.default_rng(0)
    with atomic_folder(
        folder, manifest := {"format": SHARD_FORMAT, "kind": "documents"}
    ) as partial_folder:
        (partial_folder / TOKENIZER_FILE).write_bytes(tokenizer.serialized)
        splits = {}
        for split, count in (("train", 300), ("validation", 12)):
            writer = ShardWriter(partial_folder, split, tokenizer.vocab_size, shard_tokens=5000)
            for length in rng.integers(5, 200, count):
                # A few ids that follow one another by a rule: something to learn.
                ids = 400 + (rng.integers(50) + 3 * np.arange(length - 2)) % 50
                writer.add(np.array([tokenizer.bos_id, *ids, tokenizer.eos_id]))
            splits[split] = writer.close()
        manifest["splits"] = splits
    return folder
