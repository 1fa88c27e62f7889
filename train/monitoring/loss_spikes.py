"""Detect spikes of the training loss: steps far above the level of the steps before."""

from dataclasses import dataclass

# Steps over which the level and its spread are averaged; no spike is reported before so many.
WINDOW_STEPS = 50
# A spike is this many mean deviations above the level, and at least this share of the level.
MIN_SPIKE_DEVIATIONS = 6.0
MIN_SPIKE_FRACTION = 0.1


@dataclass
class LossSpikeDetector:
    """A running mean of the loss. Checkpoints store it, so that a resumed run reports the same."""

    loss: float = 0.0
    spread: float = 0.0  # mean absolute deviation from the level
    steps: int = 0
    above: bool = False  # whether the last step was above the limit

    def update(self, loss: float) -> bool:
        """Add the finite loss of a step; return whether a spike begins with it."""
        limit = self.loss + max(MIN_SPIKE_DEVIATIONS * self.spread, MIN_SPIKE_FRACTION * self.loss)
        was_above = self.above
        is_settled = self.steps >= WINDOW_STEPS
        self.above = is_settled and loss > limit
        # Losses are clipped at the limit: a spike moves the level little, a lasting rise becomes
        # the level in time.
        clipped = min(loss, limit) if is_settled else loss
        weight = 1 / min(self.steps + 1, WINDOW_STEPS)
        if self.steps:
            self.spread += weight * (abs(clipped - self.loss) - self.spread)
        self.loss += weight * (clipped - self.loss)
        self.steps += 1
        return self.above and not was_above
