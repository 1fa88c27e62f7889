"""A curriculum: rows of text, and from some step on a growing number of rows of tasks among them.

The share of the tasks rises along a straight line from 0 at the step `start` to `share` at the step
`stop`. Which rows a step has follows from the step alone: the rows of tasks of all steps before it
are the area under that line, rounded to a whole row. So any stretch of steps has its share of
tasks to within a row, and neither the text nor the tasks miss or repeat a row of their own plans.
"""

from dataclasses import dataclass

import numpy as np

from data.batching.text_rows import TextPlan


@dataclass(frozen=True)
class Ramp:
    """How many rows of each step are tasks."""

    rows_per_step: int
    start: int  # the first step that may have tasks
    stop: int  # the number of steps of the run
    share: float  # of the rows, at `stop`

    def rows_before(self, step: int) -> int:
        """Return how many rows of tasks the steps before `step`, at most `stop`, have together."""
        if step <= self.start:
            return 0
        area = self.share * (step - self.start) ** 2 / (2 * (self.stop - self.start))
        # Not round(), which rounds halves to even numbers: a step could get a row too many.
        return int(self.rows_per_step * area + 0.5)


class CurriculumPlan:
    """The rows of a run with a curriculum, from the plan of its text and that of its tasks."""

    def __init__(self, text: TextPlan, tasks: TextPlan, ramp: Ramp) -> None:
        """Mix the rows of two plans; `tasks` has to have another folder and the same length."""
        self._text = text
        self._tasks = tasks
        self._ramp = ramp

    def row(self, row_number: int) -> np.ndarray:
        """Return the ids of row `row_number`, int64[length + 1].

        Rows are numbered from the start of the run. The tasks are the last rows of a step.
        """
        step, index = divmod(row_number, self._ramp.rows_per_step)
        first_task = self._ramp.rows_before(step)
        num_tasks = self._ramp.rows_before(step + 1) - first_task
        num_text_rows = self._ramp.rows_per_step - num_tasks
        if index < num_text_rows:
            return self._text.row(row_number - first_task)
        return self._tasks.row(first_task + index - num_text_rows)

    def epochs_completed(self, num_rows: int) -> float:
        """Return how many epochs of the text the first `num_rows` rows, of whole steps, make."""
        num_tasks = self._ramp.rows_before(num_rows // self._ramp.rows_per_step)
        return self._text.epochs_completed(num_rows - num_tasks)
