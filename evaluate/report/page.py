"""Build the report: one page that compares runs, with a column for each run."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from common.flat_tables import format_value, parse_interval
from evaluate.report.plots import plot_curves, plot_intervals
from evaluate.report.render import (
    MISSING,
    Block,
    Cell,
    CodeText,
    Heading,
    Paragraph,
    Picture,
    Table,
)
from evaluate.report.run_reader import Point, RunRecord

TITLE = "Runs side by side"
# Figures with an interval in the picture of a results file.
MAX_INTERVALS_SHOWN = 60
# Of results with more figures than a picture can show: those that it has, by the name of the file.
PICTURED_KEYS = {
    "rules": re.compile(r"\.(right|rule_use)$"),
    "needle": re.compile(r"\.by_length\.\d+\.right$"),
    "long-text": re.compile(r"^by_past\.\d+\.loss$"),
    "rouge-dialogue": re.compile(r"\.rouge\.stripped\.rouge-1$"),
    # Lengths and losses have another scale.
    "before-after": re.compile(r"^tasks\..*\.(exact|rouge_1|loops|stopped)\.change$"),
}
# Longer texts in the results are cut to this many characters.
MAX_CELL_CHARACTERS = 300
_MAX_LABEL_IN_FILE = 60
TRAINING_METRICS_NOTE = (
    "Measured during training, by the command of each run above, on the data that the rows name: "
    "validation repeatedly, final once at the end, on more data. The loss is in nats per token. "
    "The step of each value is in brackets. Best is the lowest value of loss, perplexity, bits, "
    "repetition, loops and KL, and the highest of all other metrics."
)


def build_report(
    runs: Sequence[RunRecord], page_name: str, first_section: Sequence[Block] = ()
) -> list[Block]:
    """Return the blocks of the page; `page_name` is the prefix of the names of picture files.

    `first_section` comes after the description of the runs, before all other sections.
    """
    return [
        Heading(1, TITLE),
        *_overview_blocks(runs),
        *first_section,
        *_option_difference_blocks(runs),
        *_training_metric_blocks(runs),
        *_curve_blocks(runs, page_name),
        *_result_blocks(runs, page_name),
        *_sample_blocks(runs),
    ]


def _header(row_label: str, runs: Sequence[RunRecord]) -> list[str]:
    """Return the header of a table with a column for each run, under its number and name."""
    return [row_label, *(f"{index} · {run.name}" for index, run in enumerate(runs, 1))]


def _overview_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """Return the table of the identities of the runs, see `RunRecord.overview`."""
    overviews = [run.overview() for run in runs]
    rows: list[list[Cell]] = []
    for label in overviews[0]:
        cells: list[Cell] = [overview[label] for overview in overviews]
        if label == "command":
            cells = [_code_cell(cell) for cell in cells]
        rows.append([label, *cells])
    return [Table(_header("run", runs), rows)]


def _option_difference_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """Return a heading and the table of the options that differ between runs.

    Instead of an empty table there is a sentence that says why. Returns nothing for a single run.
    """
    if len(runs) == 1:
        return []
    indices_with_config = [index for index, run in enumerate(runs) if run.config]
    rows: list[list[Cell]] = []
    for key in _unique_items(run.config for run in runs):
        cells = [_code_cell(_format_config_value(run.config, key)) for run in runs]
        # Runs without a config.yaml are left out of the comparison.
        is_different = len({cells[index] for index in indices_with_config}) > 1
        # The option `run` is the run directory, which always differs and is in the header.
        if key != "run" and is_different:
            rows.append([CodeText(key), *cells])
    body: Block
    if rows:
        body = Table(_header("option", runs), rows)
    elif len(indices_with_config) > 1:
        body = Paragraph("The options are the same.")
    else:
        body = Paragraph(f"{MISSING} (fewer than two runs have a config.yaml)")
    return [Heading(2, "Options that differ"), body]


def _format_config_value(config: dict[str, Any], key: str) -> str | None:
    """Return an option as text; None if the config does not have it."""
    if key not in config:
        return None
    value = config[key]
    if isinstance(value, str) and value:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _training_metric_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """Return a table of the metrics that training recorded, grouped by kind of record."""
    last_losses = (_format_point(_last_point(run.curve("train", "loss"))) for run in runs)
    rows: list[list[Cell]] = [["train loss, last", *last_losses]]
    metrics = _unique_items(run.list_metrics() for run in runs)
    # The sort is stable: final metrics come last, all others keep their order.
    metrics.sort(key=lambda metric: metric[0] == "final")
    for kind in _unique_items([[kind for kind, _ in metrics]]):
        rows.append([f"{kind}, measured on", *(run.describe_eval_data(kind) for run in runs)])
        for metric_kind, key in metrics:
            if metric_kind == kind:
                rows += _metric_rows(runs, kind, key)
    # Leave out rows without any value, such as the final evaluation if all runs are in progress.
    non_empty_rows = [row for row in rows if any(cell is not None for cell in row[1:])]
    return [
        Heading(2, "Metrics during training"),
        Paragraph(TRAINING_METRICS_NOTE),
        Table(_header("metric", runs), non_empty_rows) if non_empty_rows else Paragraph(MISSING),
    ]


def _metric_rows(runs: Sequence[RunRecord], kind: str, key: str) -> list[list[Cell]]:
    """Return the rows of one metric: its last values and, of a repeated score, the best values."""
    label = _metric_label(kind, key)
    last_points = [_last_point(run.curve(kind, key)) for run in runs]
    if all(run.is_count(kind, key) for run in runs):
        return [[label, *(_format_count(point) for point in last_points)]]
    last_cells = [_format_point(point) for point in last_points]
    if kind == "final":
        return [[label, *last_cells]]
    best_cells = [_format_point(run.best_point(kind, key)) for run in runs]
    return [[f"{label}, last", *last_cells], [f"{label}, best", *best_cells]]


def _curve_blocks(runs: Sequence[RunRecord], page_name: str) -> list[Block]:
    """Return a picture of each metric over steps, with one curve for each run.

    The names of the picture files begin with `page_name`.
    """
    # The losses come first, and are shown even if no run has them.
    metrics = _unique_items(
        [[("train", "loss"), ("validation", "loss")], *(run.list_metrics() for run in runs)]
    )
    blocks: list[Block] = [
        Heading(2, "Curves"),
        Paragraph("The numbers in the pictures are those of the runs above."),
    ]
    num_pictures = 0
    for kind, key in metrics:
        is_count = all(run.is_count(kind, key) for run in runs)
        # A final metric has a single point, and perplexity is the exponential of the loss. Without
        # any value a metric counts as a count too; the loss has its heading even then.
        if kind == "final" or key == "perplexity" or (is_count and key != "loss"):
            continue
        label = _metric_label(kind, key)
        blocks.append(Heading(3, label))
        curves = [run.curve(kind, key) for run in runs]
        if not any(math.isfinite(value) for curve in curves for _, value in curve):
            blocks.append(Paragraph(MISSING))
            continue
        num_pictures += 1
        # The font of the picture may lack characters outside ASCII, which names of sets can have.
        axis_label = label if label.isascii() and label.isprintable() else "score"
        picture = plot_curves(curves, axis_label)
        file = _picture_file(f"{page_name}-{num_pictures}", label)
        blocks.append(Picture(file, f"{label} over steps", picture))
    return blocks


def _result_blocks(runs: Sequence[RunRecord], page_name: str) -> list[Block]:
    """Return a table for each name of a results file, with all figures in these files.

    A picture shows those with an interval; the names of picture files begin with `page_name`.
    """
    blocks: list[Block] = [Heading(2, "Results")]
    names = sorted(_unique_items(run.results for run in runs))
    if not names:
        advice = "no run has results/*.json; evaluation commands write them with --json"
        blocks.append(Paragraph(f"{MISSING} ({advice})"))
    for number, name in enumerate(names, 1):
        results = [run.results.get(name, {}) for run in runs]
        rows: list[list[Cell]] = [
            ["command", *(_code_cell(result.get("made.command")) for result in results)],
            ["commit", *(format_value(result.get("made.commit")) for result in results)],
        ]
        for key in _unique_items(results):
            cells = [_clip_text(format_value(result.get(key))) for result in results]
            # The environment of the command is under "made". The two rows above show the command
            # and the commit; the rest of it is left out.
            is_environment = key.startswith("made.")
            if not is_environment and any(cell is not None for cell in cells):
                rows.append([key, *cells])
        blocks += [Heading(3, name), Table(_header("result", runs), rows)]
        blocks += _interval_blocks(name, results, f"{page_name}-results-{number}")
    return blocks


def _interval_blocks(name: str, results: Sequence[dict[str, Any]], file_prefix: str) -> list[Block]:
    """Return a picture of the figures with intervals in the results files `name`, if any.

    The name of the picture file begins with `file_prefix`.
    """
    all_keys = select_pictured_keys(
        name,
        [
            key
            for key in _unique_items(results)
            if any(parse_interval(result.get(key)) for result in results)
        ],
    )
    if not all_keys:
        return []
    keys = all_keys[:MAX_INTERVALS_SHOWN]
    # The font of the picture may lack characters outside ASCII: those rows have their number.
    labels = [
        key if key.isascii() and key.isprintable() else f"figure {number}"
        for number, key in enumerate(keys, 1)
    ]
    picture = plot_intervals(
        labels, [[parse_interval(result.get(key)) for key in keys] for result in results]
    )
    number = "" if keys == all_keys else f"the first {len(keys)} of {len(all_keys)} "
    alt_text = f"{name}: {number}figures with their 95 % intervals"
    return [Picture(_picture_file(file_prefix, name), alt_text, picture)]


def _picture_file(prefix: str, label: str) -> str:
    """Return the name of a picture's file: `prefix`, which no other has, and part of its label."""
    # Labels with names of derived sets may be longer than file systems allow a name to be.
    words = re.sub("[^a-z0-9]+", "-", label.lower())[:_MAX_LABEL_IN_FILE].strip("-")
    return f"{prefix}-{words}.svg"


def select_pictured_keys(name: str, keys: Sequence[str]) -> list[str]:
    """Return the keys that the picture of the results file `name` shows; see PICTURED_KEYS."""
    for prefix, pattern in PICTURED_KEYS.items():
        # The results of one set of a mixture have its name behind a hyphen.
        if name == prefix or name.startswith(f"{prefix}-"):
            return [key for key in keys if pattern.search(key)]
    return list(keys)


def _sample_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """Return a table of the newest sample of each prompt."""
    samples_by_run = [run.newest_samples() for run in runs]
    rows: list[list[Cell]] = []
    for prompt in _unique_items(samples_by_run):
        cells: list[Cell] = []
        for samples in samples_by_run:
            step, text = samples.get(prompt, (0, None))
            cells.append(None if text is None else f"{text}\n(step {step:,})")
        rows.append([prompt or "(empty prompt)", *cells])
    body = Table(_header("prompt", runs), rows) if rows else Paragraph(MISSING)
    return [Heading(2, "Newest samples"), body]


def _unique_items(groups: Iterable[Iterable[Any]]) -> list[Any]:
    """Return the different items of several groups in the order of their first occurrence."""
    return list(dict.fromkeys(item for group in groups for item in group))


def _metric_label(kind: str, key: str) -> str:
    return f"{kind} {key.replace('_', ' ')}"


def _last_point(curve: list[Point]) -> Point | None:
    return curve[-1] if curve else None


def _format_point(point: Point | None) -> str | None:
    return None if point is None else f"{format_value(point[1])} (step {point[0]:,})"


def _format_count(point: Point | None) -> str | None:
    """Return the value of a count, without its step."""
    return None if point is None else f"{point[1]:,.0f}"


def _code_cell(text: str | None) -> CodeText | None:
    """Return a cell in a monospaced font; None, an unknown value, stays None."""
    return None if text is None else CodeText(text)


def _clip_text(text: str | None) -> str | None:
    """Cut a text to MAX_CELL_CHARACTERS."""
    if text is None or len(text) <= MAX_CELL_CHARACTERS:
        return text
    return text[:MAX_CELL_CHARACTERS] + "…"
