"""Fixtures of the tests of training."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def fixed_matmul_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement of the machine's matmul rate, which takes seconds per trainer."""
    monkeypatch.setattr("train.monitoring.throughput.matmul_flops", lambda *_: 1e9)


@pytest.fixture
def default_signal_handlers() -> Iterator[None]:
    """Handle stop signals as a new process does, and as before after the test.

    A run that a signal stopped leaves its handlers to the process, which ends soon.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    previous = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)
