"""Learning-rate schedules: a multiplier of the peak rate for each step."""

import math

from train.options import ScheduleOptions


def get_lr_multiplier(options: ScheduleOptions, step: int, max_steps: int) -> float:
    """Return the multiplier of the peak rate in step `step` (0 … max_steps - 1), in (0, 1]."""
    warmup_steps = math.ceil(options.warmup * max_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    # The decay would reach `final` one step after the end, so that the last step still trains.
    if options.name == "cosine":
        progress = (step - warmup_steps + 1) / (max_steps - warmup_steps + 1)
        return options.final + (1 - options.final) * 0.5 * (1 + math.cos(math.pi * progress))
    remaining = (max_steps - step) / (options.decay * max_steps + 1)
    return options.final + (1 - options.final) * min(1.0, remaining)
