"""The precision that "auto" stands for."""

from dataclasses import replace

import pytest
import torch

from model.config import config_from_preset
from model.precision import resolve_precision

CPU = torch.device("cpu")
LARGE = config_from_preset("babyllama-43m", vocab_size=65_000)
SAMPLE = config_from_preset("babyllama-3m", vocab_size=4202)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_on_a_cpu_follows_processor_and_shape(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents emulated bf16, which is many times slower, and other figures for the sample."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    best = "bf16" if has_bf16 else "fp32"
    assert resolve_precision(CPU, "auto", trained=LARGE) == best
    assert resolve_precision(CPU, "auto", trained=replace(LARGE, vocab_size=8192)) == best
    assert resolve_precision(CPU, "auto", trained=SAMPLE) == "fp32"
    assert resolve_precision(CPU, "auto", trained=SAMPLE, is_quantized=True) == best
    # Chat and evaluation decode in fp32, whatever the size.
    assert resolve_precision(CPU, "auto") == "fp32"
    assert resolve_precision(CPU, "fp32", trained=LARGE) == "fp32"
    assert resolve_precision(CPU, "bf16", trained=SAMPLE) == "bf16"
