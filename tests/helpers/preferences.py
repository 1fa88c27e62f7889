"""Pairs of answers for tests: invented records, and pairs of random ids."""

import json
from pathlib import Path

import numpy as np

from common.files import write_atomic
from data.batching.preference_rows import PreferenceExample


def random_pairs(*sizes: tuple[int, int, int], vocab_size: int = 97) -> list[PreferenceExample]:
    """Return pairs of random ids with these lengths of prompt, chosen and rejected answer."""
    rng = np.random.default_rng(5)
    return [
        PreferenceExample(pair, *(rng.integers(vocab_size, size=length) for length in lengths))
        for pair, lengths in enumerate(sizes)
    ]


class PairList:
    """Pairs in memory in place of `PreferenceExamples`; those longer than a row are left out."""

    num_truncated = 0

    def __init__(self, pairs: list[PreferenceExample], row_length: int) -> None:
        self._pairs = pairs
        sizes = np.array([sum(map(len, pair[1:])) - 2 for pair in pairs], np.int64)
        self._lengths = np.where(sizes <= row_length, sizes, 0)

    def __len__(self) -> int:
        return len(self._pairs)

    def lengths(self, epoch: int) -> np.ndarray:
        """See `PackableExamples`."""
        return self._lengths

    def example(self, index: int, epoch: int) -> PreferenceExample:
        """See `PackableExamples`."""
        return self._pairs[index]


def write_pairs(path: Path, count: int) -> Path:
    """Write questions with a kind and a rude answer, the kind one chosen, as JSON lines."""
    lines = []
    for number in range(count):
        subject = chr(0x4E00 + 37 * number)
        pair = {
            "prompt": f"请问{subject}是什么？",
            "chosen": f"{subject}是一个字，很高兴为您解答。",
            "rejected": f"不知道{subject}。" + "别烦我。" * (number % 3),
        }
        lines.append(json.dumps(pair, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines))
    return path
