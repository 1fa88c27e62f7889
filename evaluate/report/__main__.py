"""`python -m evaluate.report RUN…`: one page that sets runs side by side, as Markdown and as HTML."""

import json
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

from common.errors import UserError, run_main
from common.figures import format_value
from common.files import write_atomic
from common.options import parse_options
from evaluate.options import ReportOptions
from evaluate.report.plots import plot_curves
from evaluate.report.render import (
    MISSING,
    Block,
    Cell,
    CodeText,
    Heading,
    Paragraph,
    Picture,
    Table,
    to_html,
    to_markdown,
)
from evaluate.report.run_reader import Point, RunRecord, read_run

DESCRIPTION = """Set runs side by side on one page.

What each run is, its figures on held-out text while it was trained, what evaluation commands measured afterwards, where
the runs' options differ, the curves, the newest samples. A run's results are the files that evaluation commands wrote
into it: python -m evaluate.perplexity --checkpoint runs/a --json runs/a/results/perplexity.json"""
TITLE = "Runs side by side"
MAX_CELL_CHARACTERS = 300


def main() -> None:
    """Entry point."""
    options = parse_options(
        ReportOptions, sys.argv[1:], name="evaluate.report", description=DESCRIPTION
    )
    out = options.out / "report" if options.out.is_dir() else options.out
    blocks = build_report([read_run(folder) for folder in options.runs], out.name)
    pictures = [block for block in blocks if isinstance(block, Picture)]
    markdown, page = (out.with_name(f"{out.name}.{end}") for end in ("md", "html"))
    try:
        # The pages last: a page that is there has its pictures.
        for picture in pictures:
            write_atomic(out.with_name(picture.file_name), picture.svg)
        write_atomic(markdown, to_markdown(blocks))
        write_atomic(page, to_html(TITLE, blocks))
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written: {error.strerror}; name another place"
        ) from None
    print(
        f"{len(options.runs)} run{'s' * (len(options.runs) > 1)}, {len(pictures)} pictures: {markdown}  {page}"
    )


def build_report(runs: Sequence[RunRecord], page_name: str) -> list[Block]:
    """The page: one column per run in every table. The names of the pictures' files begin with the page's `page_name`."""
    return [
        Heading(1, TITLE),
        *_overview_blocks(runs),
        *_option_difference_blocks(runs),
        *_training_metric_blocks(runs),
        *_curve_blocks(runs, page_name),
        *_result_blocks(runs),
        *_sample_blocks(runs),
    ]


def _header(row_label: str, runs: Sequence[RunRecord]) -> list[str]:
    return [row_label, *(f"{index} · {run.name}" for index, run in enumerate(runs, 1))]


def _overview_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    overviews = [run.overview() for run in runs]
    rows = [
        [name, *(_code_cell(of[name]) if name == "command" else of[name] for of in overviews)]
        for name in overviews[0]
    ]
    return [Table(_header("run", runs), rows)]


def _option_difference_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    if len(runs) == 1:
        return []
    # Every run has another folder; that is its name here. A run whose file is missing says nothing about its options.
    keys = [key for key in _unique_items(run.config for run in runs) if key != "run"]
    cells_by_key = {
        key: [_code_cell(_format_config_value(run.config, key)) for run in runs] for key in keys
    }
    indices_with_config = [index for index, run in enumerate(runs) if run.config]
    rows: list[list[Cell]] = [
        [CodeText(key), *cells]
        for key, cells in cells_by_key.items()
        if len({cells[index] for index in indices_with_config}) > 1
    ]
    placeholder = Paragraph(
        "The options are the same."
        if len(indices_with_config) > 1
        else f"{MISSING} (there are no two config.yaml)"
    )
    return [
        Heading(2, "Options that differ"),
        Table(_header("option", runs), rows) if rows else placeholder,
    ]


def _format_config_value(config: dict[str, Any], key: str) -> str | None:
    if key not in config:
        return None
    value = config[key]
    return (
        value
        if isinstance(value, str) and value
        else json.dumps(value, ensure_ascii=False, default=str)
    )


def _training_metric_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    measures = sorted(
        _unique_items(run.list_measures() for run in runs),
        key=lambda measure: measure[0] == "final",
    )
    rows: list[list[Cell]] = [
        [
            "train loss, last",
            *(_format_point(_last_point(run.curve("train", "loss"))) for run in runs),
        ]
    ]
    for kind in _unique_items([[kind for kind, _ in measures]]):
        rows.append([f"{kind}, measured on", *(run.describe_eval_data(kind) for run in runs)])
        for key in (key for of, key in measures if of == kind):
            rows += _measure_rows(runs, kind, key)
    # What no run has, such as a final evaluation of runs that go on, is no comparison.
    non_empty_rows = [row for row in rows if any(cell is not None for cell in row[1:])]
    return [
        Heading(2, "Figures while training"),
        Paragraph(
            "Measured while each run was trained, by its own command above, on what the rows say: validation again and "
            "again, final once, at the end, where that is more. Loss is in nats per token. Each figure with its step; "
            "best is each measure's own: the lowest loss, perplexity, bits and repetition, the highest of the others."
        ),
        Table(_header("measure", runs), non_empty_rows) if non_empty_rows else Paragraph(MISSING),
    ]


def _measure_rows(runs: Sequence[RunRecord], kind: str, key: str) -> list[list[Cell]]:
    """The rows of one measure: of a count the last, of a final figure the only, of others the last and the best."""
    name, curves = _measure_label(kind, key), [run.curve(kind, key) for run in runs]
    if all(run.is_count(kind, key) for run in runs):
        return [[name, *(_format_count(_last_point(curve)) for curve in curves)]]
    last: list[Cell] = [
        name if kind == "final" else f"{name}, last",
        *(_format_point(_last_point(curve)) for curve in curves),
    ]
    return (
        [last]
        if kind == "final"
        else [last, [f"{name}, best", *(_format_point(run.best_point(kind, key)) for run in runs)]]
    )


def _curve_blocks(runs: Sequence[RunRecord], page_name: str) -> list[Block]:
    measures = _unique_items(
        [[("train", "loss"), ("validation", "loss")], *(run.list_measures() for run in runs)]
    )
    blocks: list[Block] = [
        Heading(2, "Curves"),
        Paragraph("Numbers in the pictures are those of the runs above."),
    ]
    count = 0
    for kind, key in measures:
        # One point is no curve; perplexity is the loss again, on another scale; a count is no score.
        if (
            kind == "final"
            or key == "perplexity"
            or (all(run.is_count(kind, key) for run in runs) and key != "loss")
        ):
            continue
        name = _measure_label(kind, key)
        blocks.append(Heading(3, name))
        curves = [run.curve(kind, key) for run in runs]
        if not any(math.isfinite(value) for curve in curves for _, value in curve):
            blocks.append(Paragraph(MISSING))
            continue
        count += 1
        file = f"{page_name}-{count}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.svg"
        label = name if name.isascii() and name.isprintable() else "score"
        blocks.append(Picture(file, f"{name} over steps", plot_curves(curves, label)))
    return blocks


def _result_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    blocks: list[Block] = [Heading(2, "Results")]
    names = sorted(_unique_items(run.results for run in runs))
    if not names:
        blocks.append(
            Paragraph(
                f"{MISSING} (no run has results/*.json; evaluation commands write them with --json)"
            )
        )
    for name in names:
        results = [run.results.get(name, {}) for run in runs]
        rows: list[list[Cell]] = [
            ["command", *(_code_cell(result.get("made.command")) for result in results)]
        ]
        rows.append(["commit", *(format_value(result.get("made.commit")) for result in results)])
        for key in _unique_items(results):
            cells = [_clip_text(format_value(result.get(key))) for result in results]
            if not key.startswith("made.") and any(cell is not None for cell in cells):
                rows.append([key, *cells])
        blocks += [Heading(3, name), Table(_header("figure", runs), rows)]
    return blocks


def _sample_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    samples = [run.newest_samples() for run in runs]
    prompts = _unique_items(samples)
    rows: list[list[Cell]] = [
        [
            prompt or "(nothing)",
            *(
                f"{of[prompt][1]}\n(step {of[prompt][0]:,})" if prompt in of else None
                for of in samples
            ),
        ]
        for prompt in prompts
    ]
    body = Table(_header("prompt", runs), rows) if rows else Paragraph(MISSING)
    return [Heading(2, "Newest samples"), body]


def _unique_items(groups: Any) -> list[Any]:
    """The different items of several groups, in the order of their first appearance."""
    return list(dict.fromkeys(item for group in groups for item in group))


def _measure_label(kind: str, key: str) -> str:
    return f"{kind} {key.replace('_', ' ')}"


def _last_point(curve: list[Point]) -> Point | None:
    return curve[-1] if curve else None


def _format_point(point: Point | None) -> str | None:
    return None if point is None else f"{format_value(point[1])} (step {point[0]:,})"


def _format_count(point: Point | None) -> str | None:
    return None if point is None else f"{point[1]:,.0f}"


def _code_cell(text: Any) -> CodeText | None:
    return None if text is None else CodeText(text)


def _clip_text(text: str | None) -> str | None:
    return (
        text
        if text is None or len(text) <= MAX_CELL_CHARACTERS
        else text[:MAX_CELL_CHARACTERS] + "…"
    )


if __name__ == "__main__":
    run_main(main)
