"""The reference beside a model in training: a copy, or the model without its adapter."""

from pathlib import Path

import pytest
import torch

from model.llama import Llama
from model.lora import Adapter, LoraOptions, adapter_tensors, attach_adapter
from tests.helpers.random_llama import random_llama
from train.reference_model import ReferenceModel

IDS = torch.arange(12)[None]


@torch.no_grad()
def change(model: Llama) -> None:
    """Change all weights that train."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1)


@torch.no_grad()
def test_copy_stays_when_the_model_is_trained() -> None:
    """Prevents a reference that moves with the model, and one that is trained."""
    model = random_llama()
    before = model(IDS)
    reference = ReferenceModel(has_adapter=False)
    reference.keep(lambda: model)
    change(model)
    with reference.borrow(model) as borrowed:
        assert torch.equal(borrowed(IDS), before)
        assert not any(parameter.requires_grad for parameter in borrowed.parameters())
    assert not torch.equal(model(IDS), before)


@torch.no_grad()
def test_adapter_needs_no_second_base() -> None:
    """Prevents a resumed run that reads a base of 33B a second time, only to drop it."""
    model = random_llama()
    before = model(IDS)
    attach_adapter(model, Adapter(LoraOptions(), Path("base"), "sha256"), seed=0)
    reference = ReferenceModel(has_adapter=True)
    reference.keep(lambda: pytest.fail("loaded the base again"))
    change(model)
    assert len(adapter_tensors(model)) == 8
    changed = model(IDS)
    with reference.borrow(model) as borrowed:
        assert torch.equal(borrowed(IDS), before)
    assert torch.equal(model(IDS), changed)
