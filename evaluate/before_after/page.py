"""The comparison of a base and a tuned run: a section of a page, and lines to print."""

from collections.abc import Sequence

from common.run_layout import BEFORE_AFTER_NAME, RESULTS_DIR
from evaluate.before_after.changes import TaskComparison
from evaluate.report.answers_table import answers_table
from evaluate.report.render import Block, Cell, Heading, Paragraph, Table

# Questions of each task that the page shows.
MAX_QUESTIONS_SHOWN = 12
METHOD_NOTE = (
    "Both models were asked the same questions, each in its own chat template and both within the "
    "shorter of their contexts; answers are greedy. Rates have Wilson's 95 % interval, means and "
    "losses that of the bootstrap. Differences are paired, over the same questions: those of rates "
    "have Newcombe's interval, the others the bootstrap's. One whose interval excludes 0 is said "
    "to be found; of the measures that did not change, about one in twenty is said to have changed."
)


def build_section(before: str, after: str, comparisons: Sequence[TaskComparison]) -> list[Block]:
    """Return the blocks of the section; `before` and `after` name the models."""
    blocks: list[Block] = [
        Heading(2, "Before and after"),
        Paragraph(f"Before: {before}"),
        Paragraph(f"After: {after}"),
    ]
    for comparison in comparisons:
        blocks += [Paragraph(line) for line in comparison.conclusions]
    blocks.append(Paragraph(METHOD_NOTE))
    for comparison in comparisons:
        blocks += _task_blocks(comparison)
    return blocks


def _task_blocks(comparison: TaskComparison) -> list[Block]:
    """Return a heading, the figures and the answers of one task."""
    blocks: list[Block] = [
        Heading(3, comparison.title),
        Table(["measure", "before", "after", "change", "without a model"], _rows(comparison)),
    ]
    question_set = comparison.question_set
    if question_set is None:
        return blocks
    if len(question_set.questions) > MAX_QUESTIONS_SHOWN:
        blocks.append(
            Paragraph(
                f"The first {MAX_QUESTIONS_SHOWN} of {len(question_set.questions)} answers; all "
                f"are in {RESULTS_DIR}/{BEFORE_AFTER_NAME}.json."
            )
        )
    headers = ["before", "after"]
    return [*blocks, answers_table(question_set, headers, comparison.answers, MAX_QUESTIONS_SHOWN)]


def _rows(comparison: TaskComparison) -> list[list[Cell]]:
    """Return a row for each measure: its label, before, after, change, and without a model."""
    question_set = comparison.question_set
    trivial = question_set.trivial_scores() if question_set is not None else {}
    return [
        [
            change.measure.label,
            change.measure.format_figure(change.before),
            change.measure.format_figure(change.after),
            change.measure.format_difference(change.change),
            trivial.get(change.measure.key),
        ]
        for change in comparison.changes
    ]


def format_lines(before: str, after: str, comparisons: Sequence[TaskComparison]) -> list[str]:
    """Return the figures of each task and the conclusions as lines to print."""
    lines = [f"before: {before}", f"after:  {after}"]
    for comparison in comparisons:
        rows: list[list[str]] = [["", "before", "after", "change", ""]]
        for *figures, trivial in _rows(comparison):
            note = f"without a model {trivial}" if trivial else ""
            rows.append([*(cell or "" for cell in figures), note])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", comparison.title]
        for label, *cells, note in rows:
            columns = "".join(
                f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:4], strict=True)
            )
            lines.append(f"{label:{widths[0]}}{columns}  {note}".rstrip())
    return [*lines, "", *(line for comparison in comparisons for line in comparison.conclusions)]
