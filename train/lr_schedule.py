"""Learning-rate schedules: a multiplier of the peak learning rate for each step.

`wsd` is warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395); `cosine` is a warm-up followed
by half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983).
"""

import math

from train.options import ScheduleOptions


def first_decay_step(options: ScheduleOptions, max_steps: int) -> int:
    """Return the first step of a falling learning rate; `max_steps` if it never falls."""
    warmup_steps = math.ceil(options.warmup * max_steps)
    if options.name == "cosine":
        return warmup_steps
    return max(warmup_steps, math.floor(max_steps - options.decay * max_steps))


def get_lr_multiplier(options: ScheduleOptions, step: int, max_steps: int) -> float:
    """Return the multiplier of the peak learning rate, in (0, 1], at `step` (0 … max_steps - 1).

    The options `warmup` and `decay` are shares of `max_steps`, and `final` is a share of the peak.
    """
    warmup_steps = math.ceil(options.warmup * max_steps)
    if step < warmup_steps:
        # Not step / warmup_steps, because a rate of 0 would waste the first step.
        return (step + 1) / (warmup_steps + 1)
    # The decay would reach `final`, 0 by default, one step after the end of the run: at a rate of 0
    # the last step would change nothing. Hence the + 1 in the denominators.
    if options.name == "cosine":
        progress = (step - warmup_steps + 1) / (max_steps - warmup_steps + 1)
        return options.final + (1 - options.final) * 0.5 * (1 + math.cos(math.pi * progress))
    # wsd. The share of the decay that is left, and above 1 in the stable phase before it.
    remaining_decay = (max_steps - step) / (options.decay * max_steps + 1)
    return options.final + (1 - options.final) * min(1.0, remaining_decay)
