"""Detect spikes of the training loss: steps far above the level of the steps before."""

from dataclasses import dataclass

# Number of steps over which the level and its spread are averaged. The first WINDOW_STEPS steps of
# a run report no spike.
WINDOW_STEPS = 50
# A loss is a spike if it is above the level by more than both this many mean absolute deviations
# and this fraction of the level.
MIN_SPIKE_DEVIATIONS = 6.0
MIN_SPIKE_FRACTION = 0.1


@dataclass
class LossSpikeDetector:
    """The level of the loss, a running mean, and its spread.

    Checkpoints store the fields under these names, so that a resumed run reports the same spikes.
    """

    loss: float = 0.0  # the level, in nats per token
    spread: float = 0.0  # mean absolute deviation from the level
    steps: int = 0
    above: bool = False  # whether the last loss was above the limit

    def update(self, loss: float) -> bool:
        """Update the level with the finite loss of a step; return whether a spike begins here.

        Of several steps in a row above the limit only the first begins a spike.
        """
        limit = self.loss + max(MIN_SPIKE_DEVIATIONS * self.spread, MIN_SPIKE_FRACTION * self.loss)
        was_above = self.above
        is_settled = self.steps >= WINDOW_STEPS
        self.above = is_settled and loss > limit
        # Losses are clipped at the limit, so that a spike moves the level little. A rise that lasts
        # still becomes the new level in time.
        clipped = min(loss, limit) if is_settled else loss
        # The plain mean of the first WINDOW_STEPS losses, then an exponential moving average.
        weight = 1 / min(self.steps + 1, WINDOW_STEPS)
        # The first loss is the level itself and has no deviation from it.
        if self.steps:
            self.spread += weight * (abs(clipped - self.loss) - self.spread)
        self.loss += weight * (clipped - self.loss)
        self.steps += 1
        return self.above and not was_above
