"""The precision that "auto" stands for."""

import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytest import MonkeyPatch

from model.config import config_from_preset
from model.precision import resolve_precision

CPU = torch.device("cpu")
LARGE = config_from_preset("babyllama-43m", vocab_size=65_000)
SAMPLE = config_from_preset("babyllama-3m", vocab_size=4202)


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "cpu_info", "large"),
    [
        (True, True, "vendor_id : GenuineIntel", "bf16"),  # Sapphire Rapids and later
        (True, False, "vendor_id : AuthenticAMD", "bf16"),  # Zen 4 and later
        (True, False, "vendor_id : GenuineIntel", "fp32"),  # Cooper Lake
        (False, False, "vendor_id : AuthenticAMD", "fp32"),
    ],
)
def test_auto_on_a_cpu_follows_processor_and_shape(
    avx512_bf16: bool, amx: bool, cpu_info: str, large: str, monkeypatch: MonkeyPatch
) -> None:
    """Prevents bf16 where it is emulated or no faster, and other figures for the sample."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda _: cpu_info)
    assert resolve_precision(CPU, "auto", trained=LARGE) == large
    assert resolve_precision(CPU, "auto", trained=replace(LARGE, vocab_size=8192)) == large
    assert resolve_precision(CPU, "auto", trained=SAMPLE) == "fp32"
    # 4-bit weights are there to save memory, so the rest is narrow, too.
    quantized = resolve_precision(CPU, "auto", trained=SAMPLE, is_quantized=True)
    assert quantized == ("bf16" if avx512_bf16 else "fp32")
    # Chat and evaluation decode in fp32, whatever the size.
    assert resolve_precision(CPU, "auto") == "fp32"
    assert resolve_precision(CPU, "fp32", trained=LARGE) == "fp32"
    assert resolve_precision(CPU, "bf16", trained=SAMPLE) == "bf16"


def test_processors_of_amd_are_known_without_linux(monkeypatch: MonkeyPatch) -> None:
    """Prevents fp32 on Windows with a processor that is fast in bf16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    for name, expected in (
        ("AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", "bf16"),
        ("Intel64 Family 6 Model 85 Stepping 11, GenuineIntel", "fp32"),
    ):
        monkeypatch.setattr(platform, "processor", lambda name=name: name)
        assert resolve_precision(CPU, "auto", trained=LARGE) == expected
