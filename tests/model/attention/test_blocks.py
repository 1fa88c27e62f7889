"""Attention by strips against PyTorch's, and against itself where results must be equal."""

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import blocks
from model.attention.blocks import AttentionFunction
from model.attention.packing import PartShape, pack
from model.attention.segments import Segment, Segments, whole_rows
from tests.helpers.dense_mask import dense_mask

# Rows of 150 with segments longer than a strip, of one position, alike, and padding at the end.
PACKED = Segments(
    (
        Segment(0, 0, 97),
        Segment(0, 97, 98),
        Segment(0, 98, 131),
        Segment(1, 0, 30),
        Segment(1, 30, 61),
        Segment(1, 61, 150),
    ),
    num_rows=3,  # the last one is padding alone
    length=150,
)
# Prompts of 70 and 3 positions, each with answers; those of the first are of one filled length.
SHARED = Segments(
    (
        Segment(0, 0, 70),
        Segment(0, 70, 80, 0, 70),
        Segment(0, 80, 101, 0, 70),
        Segment(0, 101, 104),
        Segment(0, 104, 104, 101, 104),
        Segment(0, 104, 149, 101, 104),
    ),
    num_rows=1,
    length=150,
)
# As many keys as there are rows of queries, with three query heads for each key-value head.
AS_MANY_KEYS = Segments((Segment(0, 0, 64), Segment(0, 64, 90, 0, 64)), num_rows=1, length=100)


def random_inputs(
    segments: Segments,
    heads: int = 4,
    kv_heads: int = 4,
    dim: int = 16,
    scale: float = 1.0,
    seed: int = 0,
) -> list[Tensor]:
    """Return q, k, v and the gradient of the output, [B, T, heads, d]."""
    generator = torch.Generator().manual_seed(seed)
    shape = segments.num_rows, segments.length
    return [
        torch.randn(*shape, number, dim, generator=generator) * factor
        for number, factor in ((heads, scale), (kv_heads, scale), (kv_heads, 1), (heads, 1))
    ]


def ours(inputs: list[Tensor], segments: Segments) -> list[Tensor]:
    """Return output and gradients of q, k and v by strips."""
    *qkv, d_out = inputs
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = AttentionFunction.apply(*leaves, segments)
    return [out.detach(), *torch.autograd.grad(out, leaves, d_out)]


def plain(inputs: list[Tensor], segments: Segments) -> list[Tensor]:
    """Return output and gradients by PyTorch's attention with a mask; 0 for padding."""
    *qkv, d_out = inputs
    leaves = [x.detach().requires_grad_() for x in qkv]
    q, k, v = (x.transpose(1, 2) for x in leaves)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=dense_mask(segments), enable_gqa=q.shape[1] != k.shape[1]
    ).transpose(1, 2)
    is_used = torch.zeros(out.shape[:2], dtype=torch.bool)
    for segment in segments.items:
        is_used[segment.row, segment.start : segment.stop] = True
    out = out * is_used[:, :, None, None]
    return [out.detach(), *torch.autograd.grad(out, leaves, d_out)]


def errors(values: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Return the largest error of each tensor, relative to its largest value if that exceeds 1."""
    return [
        float((value - right).abs().max() / right.abs().max().clamp_min(1))
        for value, right in zip(values, expected, strict=True)
    ]


@pytest.mark.parametrize(
    "segments",
    [PACKED, SHARED, AS_MANY_KEYS, whole_rows(2, 150), whole_rows(3, 1), Segments((), 2, 8)],
)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 32), (6, 2, 10)])
def test_output_and_gradients_are_those_of_the_plain_path(
    segments: Segments, heads: int, kv_heads: int, dim: int
) -> None:
    """Prevents keys that are seen twice, not at all, or by another head, segment or answer."""
    inputs = random_inputs(segments, heads, kv_heads, dim)
    doubles = [x.double() for x in inputs]
    expected = plain(doubles, segments)
    assert max(errors(ours(doubles, segments), expected)) < 1e-13
    assert max(errors(ours(inputs, segments), expected)) < 2e-6


@pytest.mark.parametrize("scale", [1.0, 3.0, 11.0])
@pytest.mark.parametrize("segments", [PACKED, SHARED])
def test_rounding_is_that_of_the_plain_path(segments: Segments, scale: float) -> None:
    """Prevents overflow, underflow and lost digits, scores of up to about 500 included."""
    all_errors = []
    for seed in range(10):
        inputs = random_inputs(segments, scale=scale, seed=seed)
        scores = inputs[0].transpose(1, 2) @ inputs[1].transpose(1, 2).mT / 4
        assert scale < 11 or 400 < float(scores.abs().max()) < 1000
        expected = plain([x.double() for x in inputs], segments)
        all_errors.append(
            [errors(ours(inputs, segments), expected), errors(plain(inputs, segments), expected)]
        )
    by_strips, of_plain = torch.tensor(all_errors).mean(0)
    # Each is the mean of a few units of rounding.
    assert (by_strips <= 2 * of_plain).all()


def test_scores_too_large_for_any_exponential_are_no_nan() -> None:
    """Prevents a model that diverges, or an attention of one key alone, from ending in NaN."""
    inputs = random_inputs(PACKED, scale=1000.0)
    assert all(torch.isfinite(value).all() for value in ours(inputs, PACKED))


def test_bf16_is_as_exact_as_its_inputs() -> None:
    """Prevents scores or sums in bf16; results have the dtype of the inputs."""
    narrow = [x.bfloat16() for x in random_inputs(PACKED, 6, 2)]
    values = ours(narrow, PACKED)
    assert all(value.dtype == torch.bfloat16 for value in values)
    expected = plain([x.double() for x in narrow], PACKED)
    # Half a unit of the last place of a result, and the rounded output in the backward pass.
    assert max(errors(values, expected)) < 2**-7


def test_gradients_are_exact_inside_autocast() -> None:
    """Prevents sums in bf16 where the backward pass, too, runs inside of autocast."""
    inputs = random_inputs(PACKED)
    expected = ours(inputs, PACKED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = ours(inputs, PACKED)
    for value, right in zip(values, expected, strict=True):
        torch.testing.assert_close(value, right)


def test_keys_and_values_of_another_dtype_get_gradients_in_it() -> None:
    """Prevents an error, or gradients that are rounded to the dtype of another tensor."""
    q, k, v, d_out = random_inputs(PACKED)
    expected = ours([q, k.bfloat16().float(), v, d_out], PACKED)
    values = ours([q, k.bfloat16(), v, d_out], PACKED)
    assert [value.dtype for value in values[1:]] == [q.dtype, torch.bfloat16, v.dtype]
    torch.testing.assert_close(values[3], expected[3])
    ours([q.double(), k, v, d_out.double()], PACKED)


def test_packed_segments_are_those_alone() -> None:
    """Prevents any influence between the segments of a row, or of what fills up a segment."""
    inputs = random_inputs(PACKED, scale=2.0)
    # NaN left in the buffers would spread through a product with a probability of 0.
    ours([x * torch.nan for x in inputs], PACKED)
    packed = ours(inputs, PACKED)
    for row, start, stop, *_ in PACKED.items:
        alone = ours([x[row : row + 1, start:stop] for x in inputs], whole_rows(1, stop - start))
        for value, expected in zip(packed, alone, strict=True):
            torch.testing.assert_close(value[row : row + 1, start:stop], expected)
        assert all(not value[2].any() for value in packed)


def test_a_segment_that_diverges_leaves_others_alone() -> None:
    """Prevents NaN that spreads from one example to all that are computed together."""
    inputs = random_inputs(PACKED)
    expected = ours(inputs, PACKED)
    for tensor in inputs:
        tensor[1, 30:61] = torch.nan
    for value, right in zip(ours(inputs, PACKED), expected, strict=True):
        assert value[1, 30:61].isnan().any()
        value[1, 30:61] = right[1, 30:61]
        torch.testing.assert_close(value, right)


def test_same_inputs_give_the_same_bits() -> None:
    """Prevents results that depend on what was computed before: a resumed run would differ."""
    inputs = random_inputs(PACKED, scale=2.0)
    first = ours(inputs, PACKED)
    ours(random_inputs(SHARED), SHARED)
    ours(random_inputs(whole_rows(2, 700), 2, 2, 64), whole_rows(2, 700))
    assert all(map(torch.equal, first, ours(inputs, PACKED)))


@pytest.mark.parametrize("segments", [PACKED, SHARED])
def test_heads_are_divided_if_their_scores_are_many(
    segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents heads that are left out, or computed twice, in wide models and long rows."""
    inputs = random_inputs(segments, 10, 5)
    expected = ours(inputs, segments)
    monkeypatch.setattr("model.attention.packing.MAX_SCORES", 3 * 32 * 2 * 102)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    divided = dataclasses.replace(segments)  # without what was cached
    for value, right in zip(ours(inputs, divided), expected, strict=True):
        torch.testing.assert_close(value, right)
    matrices = {part.shape.matrices for part in pack(divided, 10, 5).parts}
    assert {2, 3} & matrices and max(matrices) <= 5


def test_memory_does_not_grow_with_the_square_of_the_length() -> None:
    """Prevents scores of all pairs of positions in memory at once: long rows would not fit."""
    sizes = []
    for length in (1024, 2048):
        workspace = blocks._Workspace()
        workspace.layout(PartShape(1, 1, length, 0), 8, torch.float32)
        sizes.append(sum(map(len, workspace._storages.values())))
    assert sizes[1] < 2.1 * sizes[0]


def test_threads_do_not_share_buffers() -> None:
    """Prevents results mixed from two answers that a server computes in two threads at once."""
    batches = [random_inputs(PACKED, dim=64, seed=seed) for seed in range(16)]
    expected = [ours(inputs, PACKED) for inputs in batches]
    with ThreadPoolExecutor(4) as pool:
        for values, right in zip(
            pool.map(lambda inputs: ours(inputs, PACKED), batches), expected, strict=True
        ):
            assert all(map(torch.equal, values, right))


def test_buffers_are_measured_without_importing_decompositions() -> None:
    """Prevents 70 MB more in every process: `triu_` on the meta device imports them."""
    code = """
import sys
import torch
from model.attention.blocks import AttentionFunction
from model.attention.segments import whole_rows
before = set(sys.modules)
AttentionFunction.apply(*torch.ones(3, 1, 8, 2, 4), whole_rows(1, 8))
print(*(set(sys.modules) - before))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not [name for name in result.stdout.split() if name.startswith("torch.")]
