"""The numbers by which attention in strips copies vectors."""

from itertools import pairwise

import pytest
import torch

from model.attention.packing import pack
from model.attention.segments import Segments, whole_rows
from tests.model.attention.test_blocks import AS_MANY_KEYS, PACKED, SHARED


def test_all_layers_use_one_packing() -> None:
    """Prevents that each layer, and each pass, numbers the vectors of a batch again."""
    assert pack(PACKED, 4, 2) is pack(PACKED, 4, 2)
    assert pack(PACKED, 4, 2) is not pack(PACKED, 4, 4)
    assert whole_rows(2, 64) is whole_rows(2, 64)


@pytest.mark.parametrize("segments", [PACKED, SHARED, AS_MANY_KEYS, whole_rows(2, 150)])
def test_every_vector_is_copied_there_and_back(segments: Segments) -> None:
    """Prevents vectors that are lost, doubled, or come back to another head or position."""
    packing = pack(segments, 6, 2)
    is_used = torch.zeros(segments.num_rows, segments.length, dtype=torch.bool)
    for item in segments.items:
        is_used[item.row, item.start : item.stop] = True
    vectors = torch.arange(is_used.numel() * 6)
    expected = vectors.where(is_used.flatten().repeat_interleave(6), -1)
    # One vector more is that of positions in no segment.
    copies = torch.cat([vectors[packing.queries], torch.tensor([-1])])
    assert copies[packing.query_rows].equal(expected)


def test_strips_cover_all_rows_and_keys() -> None:
    """Prevents keys or queries that no strip contains, and a strip across the end of a prefix."""
    for part in pack(SHARED, 6, 2).parts:
        shape = part.shape
        for strips, stop in ((shape.query_strips, shape.rows), (shape.key_strips, shape.keys)):
            bounds = [0, *(end for _, end in strips)]
            assert strips == list(pairwise(bounds)) and bounds[-1] == stop
        assert not any(start < shape.prefix < stop for start, stop in shape.key_strips)
