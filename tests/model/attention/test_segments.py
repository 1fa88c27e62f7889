"""Offsets of segments for variable-length kernels."""

import torch

from model.attention.segments import Segment, Segments, make_offsets


def test_offsets_cover_all_positions_in_their_order() -> None:
    """Prevents a position, or padding, that belongs to another segment on a GPU."""
    items = (Segment(0, 0, 4), Segment(0, 4, 5), Segment(2, 0, 7))
    offsets = make_offsets(Segments(items, num_rows=3, length=7))
    assert offsets.queries.tolist() == offsets.keys.tolist() == [0, 4, 5, 7, 14, 21]
    assert offsets.queries.dtype == torch.int32 and offsets.key_indices is None


def test_keys_of_a_segment_follow_those_of_its_prefix() -> None:
    """Prevents an answer on a GPU that does not see its prompt, or sees another answer."""
    items = (Segment(1, 0, 2), Segment(1, 2, 4, 0, 2), Segment(1, 4, 5, 0, 2))
    offsets = make_offsets(Segments(items, num_rows=2, length=6))
    assert offsets.queries.tolist() == [0, 6, 8, 10, 11, 12]
    assert offsets.keys.tolist() == [0, 6, 8, 12, 15, 16]
    assert offsets.key_indices is not None
    # Row 0 is padding, the second row begins at 6.
    expected = [*range(6), 6, 7, *(6, 7, 8, 9), *(6, 7, 10), 11]
    assert offsets.key_indices.tolist() == expected
