"""What the segments of rows allow, as a mask for PyTorch's attention."""

import torch
from torch import Tensor

from model.attention.segments import Segments


def dense_mask(segments: Segments) -> Tensor:
    """Return the mask of allowed attention, bool[B, 1, T, T]; padding attends to itself."""
    length = segments.length
    mask = torch.eye(length, dtype=torch.bool).repeat(segments.num_rows, 1, 1).unsqueeze(1)
    for segment in segments.items:
        for query in range(segment.start, segment.stop):
            mask[segment.row, 0, query, segment.start : query + 1] = True
            mask[segment.row, 0, query, segment.prefix_start : segment.prefix_stop] = True
    return mask
