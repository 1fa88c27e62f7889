"""When a loss is a spike: far above the level that the last steps had."""

from dataclasses import dataclass

# The level and its spread look back over about so many steps, and say nothing before so many are known.
MEMORY = 50
# A spike is this many mean deviations above the level, and at least this share of the level itself.
DEVIATIONS, SHARE = 6.0, 0.1


@dataclass
class Level:
    """The running level of the loss. A checkpoint keeps it, so that a resumed run sees the same spikes."""

    loss: float = 0.0
    spread: float = 0.0  # mean distance of a step's loss from the level
    steps: int = 0
    above: bool = False  # whether the last step was a spike

    def rises(self, loss: float) -> bool:
        """Take in a step's finite loss; True where a spike begins."""
        limit = self.loss + max(DEVIATIONS * self.spread, SHARE * self.loss)
        was_above, self.above = self.above, self.steps >= MEMORY and loss > limit
        # What is above the limit counts as the limit: one spike moves the level little, a lasting rise becomes the level.
        counted = min(loss, limit) if self.steps >= MEMORY else loss
        share = 1 / min(self.steps + 1, MEMORY)
        self.spread += share * (abs(counted - self.loss) - self.spread) if self.steps else 0.0
        self.loss += share * (counted - self.loss)
        self.steps += 1
        return self.above and not was_above
