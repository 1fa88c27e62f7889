"""The page of a run's checkpoints: curves, figures, and answers side by side."""

from common.run_layout import RESULTS_DIR, WATCH_NAME
from evaluate.report.answers_table import answers_table
from evaluate.report.plots import plot_curves
from evaluate.report.render import Block, Cell, Heading, Paragraph, Picture, Table
from evaluate.watch.declines import ALPHA
from evaluate.watch.result import SetResult, WatchResult

# Questions of each set that the page shows.
MAX_QUESTIONS_SHOWN = 24
METHOD_NOTE = (
    "All checkpoints were asked the same questions; answers are greedy. Rates have Wilson's 95 % "
    "interval, means that of the bootstrap over questions. Quality is ROUGE-1 (summaries), exact "
    "answers (conversations about a passage) and the share of answers that do not loop. It turns "
    "down where the mean difference over the same questions lies below 0 with its whole interval "
    "(Agresti & Min 2005), which is corrected for the number of pairs of steps and of measures: "
    f"if nothing gets worse, a decline is reported in at most about {100 * ALPHA:g} % of runs."
)


def build_page(result: WatchResult, title: str, notes: list[str]) -> list[Block]:
    """Return the blocks of the page; `notes` are sentences that come before all others."""
    return [
        Heading(1, title),
        *(Paragraph(line) for line in [*notes, *result.conclusions]),
        Paragraph(METHOD_NOTE),
        *_curve_blocks(result),
        *(
            block
            for number, set_result in enumerate(result.sets, 1)
            for block in _set_blocks(result, set_result, number)
        ),
    ]


def _curve_blocks(result: WatchResult) -> list[Block]:
    """Return a picture of the loss and of each measure over steps, with a curve for each set.

    One step alone has no curves.
    """
    steps = [entry.step for entry in result.steps]
    if len(steps) == 1:
        return []
    blocks: list[Block] = [Heading(2, "Curves")]
    loss_curve = [
        (step, loss) for step, loss in zip(steps, result.losses, strict=True) if loss is not None
    ]
    if loss_curve:
        picture = plot_curves([loss_curve], "validation loss")
        blocks.append(
            Picture(f"{WATCH_NAME}-validation-loss.svg", "validation loss over steps", picture)
        )
    blocks.append(Paragraph("The numbers in the pictures are those of the sets below."))
    measures = dict.fromkeys(
        measure for set_result in result.sets for measure in set_result.question_set.measures
    )
    for measure in measures:
        # A set without the measure has an empty curve, so that the numbers stay those of the sets.
        curves = [
            list(zip(steps, set_result.means(measure), strict=True))
            if measure in set_result.question_set.measures
            else []
            for set_result in result.sets
        ]
        picture = plot_curves(curves, measure.label, "set")
        file_name = f"{WATCH_NAME}-{measure.key.replace('_', '-')}.svg"
        blocks.append(Picture(file_name, f"{measure.label} over steps", picture))
    return blocks


def _step_headers(result: WatchResult) -> list[str]:
    return [
        f"step {entry.step:,}" + ("" if entry.step in result.kept_steps else " (deleted)")
        for entry in result.steps
    ]


def _set_blocks(result: WatchResult, set_result: SetResult, number: int) -> list[Block]:
    """Return a heading, the figures and the answers of one set."""
    question_set = set_result.question_set
    count = len(question_set.questions)
    trivial = question_set.trivial_scores()
    losses = [None if loss is None else f"{loss:.4f}" for loss in result.losses]
    rows: list[list[Cell]] = [["validation loss", *losses, None]]
    for measure in question_set.measures:
        cells = [measure.format_figure(figure) for figure in set_result.figures[measure.key]]
        rows.append([measure.label, *cells, trivial.get(measure.key)])
    headers = _step_headers(result)
    blocks: list[Block] = [
        Heading(2, f"{number} · {question_set.label}, {count} {question_set.question_name}s"),
        Table(["measure", *headers, "without a model"], rows),
        Heading(3, "Answers"),
    ]
    if count > MAX_QUESTIONS_SHOWN:
        blocks.append(
            Paragraph(
                f"The first {MAX_QUESTIONS_SHOWN} of {count}; all are in "
                f"{RESULTS_DIR}/{WATCH_NAME}.json."
            )
        )
    table = answers_table(question_set, headers, set_result.answers, MAX_QUESTIONS_SHOWN)
    return [*blocks, table]
