"""Logits and argmax of the LM head."""

from typing import Any

import pytest
import torch

from model.decode import lm_head
from model.decode.lm_head import Int8ArgmaxFilter, LMHead
from model.quantize import is_plain_linear, quantize_int8
from tests.helpers.random_llama import random_llama


@pytest.fixture(params=[False, True], ids=["bf16 rows", "int8 rows"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether the filter rounds several rows to int8: both ways, on a CPU that has both."""
    if request.param and not lm_head.multiplies_int8():
        pytest.skip("this CPU does not multiply int8")
    monkeypatch.setattr(lm_head, "multiplies_int8", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("spread", [0.02, 3.0])
def test_int8_filtered_argmax_is_exact(spread: float, quantized: bool, product: bool) -> None:
    """Prevents a most likely id that the rounding of int8 or bf16 filters out, or mixed-up rows."""
    generator = torch.Generator().manual_seed(1)
    model = random_llama(vocab_size=20_000)
    with torch.no_grad():
        # Rows of very different norms, and pairs that differ by less than int8 can tell.
        weight = torch.randn(10_000, 64, generator=generator)
        weight *= torch.rand(10_000, 1, generator=generator) * spread
        # One large weight per row, which the hidden states ignore, makes the steps of int8 coarse.
        weight[:, 0] = 30 * spread
        near = weight + torch.randn(10_000, 64, generator=generator) * spread * 1e-4
        order = torch.randperm(20_000, generator=generator)
        model.lm_head.weight.copy_(torch.cat([weight, near])[order])
    if quantized:
        quantize_int8(model)
    argmax_filter: Any = Int8ArgmaxFilter(model.lm_head)
    for rows in (1, 3, 16, 40 if product else 5):
        # One large number per row makes the steps of int8 coarse there, too.
        hidden = torch.randn(rows, 64, generator=generator)
        hidden[:, 1] *= 9
        hidden[:, 0] = 0.0
        expected = (hidden.double() @ model.lm_head.weight.double().T).argmax(-1)
        assert torch.equal(argmax_filter.argmax(hidden)[0], expected)
        assert torch.equal(LMHead(model.lm_head).argmax(hidden), expected)


@pytest.mark.parametrize(
    ("quantized", "screened"), [(False, True), (True, True), (False, False)], ids=str
)
# Small beside the error of the filter, and large beside it.
@pytest.mark.parametrize(("margin", "distance"), [(0.01, 1e-3), (2.0, 0.2)])
def test_clear_ids_lead_by_the_margin(
    margin: float,
    distance: float,
    quantized: bool,
    screened: bool,
    product: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents an id that counts as clear although a filtered one is as likely, or never does."""
    generator = torch.Generator().manual_seed(1)
    model = random_llama(vocab_size=2000)
    with torch.no_grad():
        weight = torch.randn(1000, 64, generator=generator)
        near = weight + torch.randn(1000, 64, generator=generator) * distance
        model.lm_head.weight.copy_(torch.cat([weight, near]))
    if quantized:
        quantize_int8(model)
    head = LMHead(model.lm_head)
    hidden = torch.randn(16, 64, generator=generator)
    if not screened:
        # More rows than the filter takes, if they are not int8, use all logits.
        hidden = torch.randn(17, 64, generator=generator)
        monkeypatch.setattr(lm_head, "multiplies_int8", lambda: False)
    ids, is_clear = head.clear_argmax(hidden, margin)
    logits = hidden.double() @ model.lm_head.weight.double().T
    best = logits.topk(2)
    assert torch.equal(is_clear, best.values[:, 0] - best.values[:, 1] > margin)
    assert 0 < int(is_clear.sum()) < len(hidden)
    assert torch.equal(ids[is_clear], best.indices[is_clear, 0])
    assert screened == (head._argmax_filter is not None)
    # Equal logits, and logits that are not finite, are never clear.
    assert not head.clear_argmax(torch.zeros_like(hidden), 0.0)[1].any()
    hidden[0] = torch.nan
    hidden[1] = torch.inf
    assert not head.clear_argmax(hidden, 0.0)[1][:2].any()


@pytest.mark.parametrize("quantized", [False, True])
def test_unused_ids_are_never_the_argmax(quantized: bool, product: bool) -> None:
    """Prevents a filter that lets an unused id through, and logits taken for an overflow."""
    generator = torch.Generator().manual_seed(1)
    model = random_llama(vocab_size=1024)
    with torch.no_grad():
        model.lm_head.weight[1000:] *= 9.0
    if quantized:
        quantize_int8(model)
    hidden = torch.randn(16, 64, generator=generator)
    logits = LMHead(model.lm_head).logits(hidden)
    assert int((logits.argmax(-1) >= 1000).sum()) > 8
    head = LMHead(model.lm_head, range(1000, 1024))
    assert torch.equal(head.argmax(hidden), logits[:, :1000].argmax(-1))
    assert head._argmax_filter is not None and head._argmax_filter.argmax(hidden) is not None
    assert torch.equal(head.logits(hidden)[:, :1000], logits[:, :1000])
    assert head.logits(hidden).isfinite().all()
    assert not head.logits(hidden).softmax(-1)[:, 1000:].any()


def test_argmax_ties_pick_the_lowest_id(product: bool) -> None:
    """Prevents another id than `torch.argmax` takes, where two rows of the head are equal."""
    head = torch.nn.Linear(64, 500, bias=False)
    hidden = torch.randn(4, 64)
    with torch.no_grad():
        head.weight[[7, 300]] = hidden[0]
        head.weight[[9, 20]] = hidden[1] * 2
    assert LMHead(head).argmax(hidden)[:2].tolist() == [7, 9]


def test_non_finite_logits_bypass_the_filter(product: bool) -> None:
    """Prevents an id beyond the vocabulary where no logit can be compared."""
    head = torch.nn.Linear(64, 500, bias=False)
    assert Int8ArgmaxFilter(head).argmax(torch.full((4, 64), torch.nan)) is None
    assert LMHead(head).argmax(torch.full((4, 64), torch.inf)).max() < 500
    with torch.no_grad():
        head.weight[7] = 1e38
    # Finite hidden states and weights can overflow in their product.
    hidden = torch.full((4, 64), 1e3)
    assert Int8ArgmaxFilter(head).argmax(hidden) is None
    assert not LMHead(head).clear_argmax(hidden, 0.0)[1].any()


def test_a_head_with_bias_is_called_as_it_is() -> None:
    """Prevents a bias, or anything else an unknown head adds, from being dropped."""
    linear = torch.nn.Linear(64, 500)
    hidden = torch.randn(3, 64)
    with torch.no_grad():
        linear.bias[13] = 100.0
        expected = linear(hidden)
    assert torch.equal(LMHead(linear).logits(hidden), expected)
    assert LMHead(linear).argmax(hidden).tolist() == [13, 13, 13]


def test_a_plain_head_takes_the_fast_products() -> None:
    """Prevents a linear class that is not recognized: slow logits, and no filter."""
    model = random_llama()
    assert is_plain_linear(model.lm_head)
    head = LMHead(model.lm_head)
    head.argmax(torch.randn(1, 64))
    head.logits(torch.randn(1, 64))
    assert head._argmax_filter is not None and head._transposed_weight is not None
