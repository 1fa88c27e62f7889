"""Fixtures and hypothesis settings that all tests share."""

import gc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from common.files import atomic_folder
from data.sequences import SequenceWriter
from data.shards import SHARD_FORMAT
from model.tokenizer import load_tokenizer
from model.tokenizer.base import TOKENIZER_FILE as TOKENIZER_FILE
from model.tokenizer.base import Tokenizer

# No deadline: the time of an example depends on the load of the machine. Derandomized: every run
# tries the same examples, so that a failure is due to a change. Raise max_examples to search more.
settings.register_profile("untimed", deadline=None, derandomize=True)
settings.load_profile("untimed")

ROOT = Path(__file__).parent.parent


# The files that take longest (`--durations=0`), longest first. A worker takes whole files: one of
# these at the end would leave the other worker idle.
LONGEST_FILES = (
    "bench/test_gpu.py",
    "train/test_distributed.py",
    "train/test_reading.py",
    "reliability/test_torchrun.py",
    "chat/serve/test_connection_limits.py",
    "model/interop/test_hf_import.py",
    "train/test_sft.py",
    "reliability/test_kill.py",
    "train/test_autotune.py",
    "reliability/test_disk.py",
    "train/test_resume.py",
    "evaluate/report/test_run_reader.py",
    "assets/test_sample.py",
    "test_readme.py",
    "model/interop/test_hf_export.py",
)


# The garbage collector would visit all objects of PyTorch again and again, which takes a tenth of
# the tests' time. It is off while the test files are imported, and then leaves these objects alone.
gc.disable()


def pytest_collection_finish() -> None:
    """Enable the garbage collector for all objects but those of the imported modules."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that parallel workers end together."""
    ranks = {ROOT / "tests" / name: rank for rank, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root folder of the project."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real corpora and the real tokenizer, or skip the test without it."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the real corpora and tokenizer are not beside this checkout (../shared)")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Return the small tokenizer of `assets`."""
    return load_tokenizer(ROOT / "assets" / "tokenizer")


@pytest.fixture
def shard_set(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """Write a small shard set: 300 training and 12 validation sequences of 5 to 200 ids."""
    folder = tmp_path / "shards"
    rng = np.random.default_rng(0)
    with atomic_folder(
        folder, manifest := {"format": SHARD_FORMAT, "kind": "documents"}
    ) as partial_folder:
        (partial_folder / TOKENIZER_FILE).write_bytes(tokenizer.serialized)
        splits = {}
        for split, count in (("train", 300), ("validation", 12)):
            writer = SequenceWriter(partial_folder, split, tokenizer.vocab_size, shard_tokens=5000)
            for length in rng.integers(5, 200, count):
                # A few ids that follow one another by a rule: something to learn.
                ids = 400 + (rng.integers(50) + 3 * np.arange(length - 2)) % 50
                writer.add(np.array([tokenizer.bos_id, *ids, tokenizer.eos_id]))
            splits[split] = writer.close()
        manifest["splits"] = splits
    return folder
