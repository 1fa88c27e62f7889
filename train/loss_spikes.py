"""When a loss is a spike: far above the level that the last steps had."""

from dataclasses import dataclass

# The level and its spread look back over about so many steps, and say nothing before so many are known.
WINDOW_STEPS = 50
# A spike is this many mean deviations above the level, and at least this share of the level itself.
MIN_SPIKE_DEVIATIONS, MIN_SPIKE_FRACTION = 6.0, 0.1


@dataclass
class LossSpikeDetector:
    """The running level of the loss. A checkpoint keeps it, so that a resumed run sees the same spikes."""

    loss: float = 0.0
    spread: float = 0.0  # mean distance of a step's loss from the level
    steps: int = 0
    above: bool = False  # whether the last step was a spike

    def update(self, loss: float) -> bool:
        """Take in a step's finite loss; True where a spike begins."""
        limit = self.loss + max(MIN_SPIKE_DEVIATIONS * self.spread, MIN_SPIKE_FRACTION * self.loss)
        was_above, self.above = self.above, self.steps >= WINDOW_STEPS and loss > limit
        # What is above the limit counts as the limit: one spike moves the level little, a lasting rise becomes the level.
        counted = min(loss, limit) if self.steps >= WINDOW_STEPS else loss
        share = 1 / min(self.steps + 1, WINDOW_STEPS)
        self.spread += share * (abs(counted - self.loss) - self.spread) if self.steps else 0.0
        self.loss += share * (counted - self.loss)
        self.steps += 1
        return self.above and not was_above
