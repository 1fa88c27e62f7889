"""Learning-rate schedules."""

import pytest

from train.lr_schedule import ScheduleOptions, get_lr_multiplier


@pytest.mark.parametrize("name", ["wsd", "cosine"])
def test_lr_schedules_warm_up_hold_and_decay(name: str) -> None:
    """Catch a rate of zero in the first or last step, a jump, and a decay that starts elsewhere."""
    options = ScheduleOptions.model_validate(
        {"name": name, "warmup": 0.1, "decay": 0.2, "final": 0.0}
    )
    rates = [get_lr_multiplier(options, step, 100) for step in range(100)]
    assert rates[0] > 0 and rates[99] > 0 and max(rates) <= 1.0
    assert all(a < b for a, b in zip(rates[:10], rates[1:11], strict=True))
    assert max(abs(a - b) for a, b in zip(rates, rates[1:], strict=False)) < 0.11
    if name == "wsd":
        assert rates[10:80] == [1.0] * 70
        assert all(a > b for a, b in zip(rates[80:], rates[81:], strict=False))
    else:
        assert rates[54] == pytest.approx(0.5, abs=0.02)


def test_degenerate_schedules_keep_a_positive_rate() -> None:
    """Catch a division by zero without warm-up and decay, and in a run of one step."""
    constant = ScheduleOptions(warmup=0.0, decay=0.0)
    assert get_lr_multiplier(constant, 99, 100) == 1.0
    one_step = ScheduleOptions(name="wsd", warmup=0.0, decay=1.0, final=0.1)
    assert get_lr_multiplier(one_step, 0, 1) > 0.1
