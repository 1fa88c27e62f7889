"""Learning-rate schedules."""

import pytest

from train.lr_schedule import ScheduleOptions, first_decay_step, get_lr_multiplier


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


@pytest.mark.parametrize(
    ("name", "warmup", "decay", "max_steps"),
    [
        ("wsd", 0.02, 0.7, 470),
        ("wsd", 0.1, 0.9, 7),
        ("wsd", 0.0, 0.01, 30),
        ("wsd", 0.0, 0.0, 30),
        ("cosine", 0.05, 0.7, 90),
    ],
)
def test_first_decay_step_is_the_first_with_a_lower_rate(
    name: str, warmup: float, decay: float, max_steps: int
) -> None:
    """Prevents a curriculum that begins before the rate falls, or after."""
    options = ScheduleOptions.model_validate({"name": name, "warmup": warmup, "decay": decay})
    rates = [get_lr_multiplier(options, step, max_steps) for step in range(max_steps)]
    peak = max(range(max_steps), key=rates.__getitem__)
    falling = [step for step in range(peak, max_steps) if rates[step] < 1.0]
    expected = falling[0] if falling else max_steps
    assert first_decay_step(options, max_steps) == expected
