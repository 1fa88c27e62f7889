"""Learning-rate schedules: the share of the peak rate at each step."""

import math

from train.options import ScheduleOptions


def get_lr_multiplier(options: ScheduleOptions, step: int, max_steps: int) -> float:
    """The share of the peak rate to use in step `step` (0 … max_steps - 1), in (0, 1]."""
    warmup = math.ceil(options.warmup * max_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if options.name == "cosine":
        done = (step - warmup + 1) / (max_steps - warmup + 1)
        return options.final + (1 - options.final) * 0.5 * (1 + math.cos(math.pi * done))
    # The last step still moves: the line would reach `final` one step after the end.
    left = (max_steps - step) / (options.decay * max_steps + 1)
    return options.final + (1 - options.final) * min(1.0, left)
