"""`python -m evaluate.report RUN…`: one page that sets runs side by side, as Markdown and as HTML."""

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError, run_main
from common.files import write_atomic
from common.options import Parser
from evaluate.report.plots import draw
from evaluate.report.render import MISSING, Block, Cell, Code, Heading, Paragraph, Picture, Table, to_html, to_markdown
from evaluate.report.run_reader import Point, RunRecord, read_run, show

DESCRIPTION = """Set runs side by side on one page.

What each run is, its figures on held-out text while it was trained, what evaluation commands measured afterwards, where
the runs' options differ, the curves, the newest samples. A run's results are the files that evaluation commands wrote
into it: python -m evaluate.perplexity --checkpoint runs/a --json runs/a/results/perplexity.json"""
TITLE = "Runs side by side"
LONGEST_TEXT = 300


def main() -> None:
    """Entry point."""
    parser = Parser(prog="python -m evaluate.report", description=DESCRIPTION,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, finished or not")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="PATH",
                        help="write PATH.md, PATH.html and the pictures PATH-1-….svg; into a folder that exists: report.md … "
                             "(default: report)")
    options = parser.parse_args()
    out = options.out / "report" if options.out.is_dir() else options.out
    blocks = report([read_run(folder) for folder in options.runs], out.name)
    pictures = [block for block in blocks if isinstance(block, Picture)]
    markdown, page = (out.with_name(f"{out.name}.{end}") for end in ("md", "html"))
    try:
        # The pages last: a page that is there has its pictures.
        for picture in pictures:
            write_atomic(out.with_name(picture.file), picture.svg)
        write_atomic(markdown, to_markdown(blocks))
        write_atomic(page, to_html(TITLE, blocks))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}; name another place") from None
    print(f"{len(options.runs)} run{'s' * (len(options.runs) > 1)}, {len(pictures)} pictures: {markdown}  {page}")


def report(runs: Sequence[RunRecord], name: str) -> list[Block]:
    """The page: one column per run in every table. The names of the pictures' files begin with the page's `name`."""
    return [Heading(1, TITLE), *_facts(runs), *_differences(runs), *_figures(runs), *_curves(runs, name), *_results(runs),
            *_samples(runs)]


def _head(first: str, runs: Sequence[RunRecord]) -> list[str]:
    return [first, *(f"{index} · {run.name}" for index, run in enumerate(runs, 1))]


def _facts(runs: Sequence[RunRecord]) -> list[Block]:
    facts = [run.facts() for run in runs]
    rows = [[name, *(_code(of[name]) if name == "command" else of[name] for of in facts)] for name in facts[0]]
    return [Table(_head("run", runs), rows)]


def _differences(runs: Sequence[RunRecord]) -> list[Block]:
    if len(runs) == 1:
        return []
    # Every run has another folder; that is its name here. A run whose file is missing says nothing about its options.
    keys = [key for key in _merged(run.config for run in runs) if key != "run"]
    shown = {key: [_code(_config_value(run.config, key)) for run in runs] for key in keys}
    known = [index for index, run in enumerate(runs) if run.config]
    rows: list[list[Cell]] = [
        [Code(key), *cells] for key, cells in shown.items() if len({cells[index] for index in known}) > 1
    ]
    nothing = Paragraph("The options are the same." if len(known) > 1 else f"{MISSING} (there are no two config.yaml)")
    return [Heading(2, "Options that differ"), Table(_head("option", runs), rows) if rows else nothing]


def _config_value(config: dict[str, Any], key: str) -> str | None:
    if key not in config:
        return None
    value = config[key]
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def _figures(runs: Sequence[RunRecord]) -> list[Block]:
    measures = sorted(_merged(run.measures() for run in runs), key=lambda measure: measure[0] == "final")
    rows: list[list[Cell]] = [["train loss, last", *(_point(_last(run.curve("train", "loss"))) for run in runs)]]
    for kind in _merged([[kind for kind, _ in measures]]):
        rows.append([f"{kind}, measured on", *(run.measured_on(kind) for run in runs)])
        for key in (key for of, key in measures if of == kind):
            rows += _measure(runs, kind, key)
    # What no run has, such as a final evaluation of runs that go on, is no comparison.
    shown = [row for row in rows if any(cell is not None for cell in row[1:])]
    return [
        Heading(2, "Figures while training"),
        Paragraph("Measured while each run was trained, by its own command above, on what the rows say: validation again and "
                  "again, final once, at the end, where that is more. Loss is in nats per token. Each figure with its step; "
                  "best is each measure's own: the lowest loss, perplexity, bits and repetition, the highest of the others."),
        Table(_head("measure", runs), shown) if shown else Paragraph(MISSING),
    ]


def _measure(runs: Sequence[RunRecord], kind: str, key: str) -> list[list[Cell]]:
    """The rows of one measure: of a count the last, of a final figure the only, of others the last and the best."""
    name, curves = _name(kind, key), [run.curve(kind, key) for run in runs]
    if all(run.is_count(kind, key) for run in runs):
        return [[name, *(_count(_last(curve)) for curve in curves)]]
    last: list[Cell] = [name if kind == "final" else f"{name}, last", *(_point(_last(curve)) for curve in curves)]
    return [last] if kind == "final" else [last, [f"{name}, best", *(_point(run.best(kind, key)) for run in runs)]]


def _curves(runs: Sequence[RunRecord], page: str) -> list[Block]:
    measures = _merged([[("train", "loss"), ("validation", "loss")], *(run.measures() for run in runs)])
    blocks: list[Block] = [Heading(2, "Curves"), Paragraph("Numbers in the pictures are those of the runs above.")]
    count = 0
    for kind, key in measures:
        # One point is no curve; perplexity is the loss again, on another scale; a count is no score.
        if kind == "final" or key == "perplexity" or (all(run.is_count(kind, key) for run in runs) and key != "loss"):
            continue
        name = _name(kind, key)
        blocks.append(Heading(3, name))
        curves = [run.curve(kind, key) for run in runs]
        if not any(math.isfinite(value) for curve in curves for _, value in curve):
            blocks.append(Paragraph(MISSING))
            continue
        count += 1
        file = f"{page}-{count}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.svg"
        label = name if name.isascii() and name.isprintable() else "score"
        blocks.append(Picture(file, f"{name} over steps", draw(curves, label)))
    return blocks


def _results(runs: Sequence[RunRecord]) -> list[Block]:
    blocks: list[Block] = [Heading(2, "Results")]
    names = sorted(_merged(run.results for run in runs))
    if not names:
        blocks.append(Paragraph(f"{MISSING} (no run has results/*.json; evaluation commands write them with --json)"))
    for name in names:
        results = [run.results.get(name, {}) for run in runs]
        rows: list[list[Cell]] = [["command", *(_code(result.get("made.command")) for result in results)]]
        rows.append(["commit", *(show(result.get("made.commit")) for result in results)])
        for key in _merged(results):
            cells = [_clipped(show(result.get(key))) for result in results]
            if not key.startswith("made.") and any(cell is not None for cell in cells):
                rows.append([key, *cells])
        blocks += [Heading(3, name), Table(_head("figure", runs), rows)]
    return blocks


def _samples(runs: Sequence[RunRecord]) -> list[Block]:
    samples = [run.samples() for run in runs]
    prompts = _merged(samples)
    rows: list[list[Cell]] = [
        [prompt or "(nothing)", *(f"{of[prompt][1]}\n(step {of[prompt][0]:,})" if prompt in of else None for of in samples)]
        for prompt in prompts
    ]
    body = Table(_head("prompt", runs), rows) if rows else Paragraph(MISSING)
    return [Heading(2, "Newest samples"), body]


def _merged(groups: Any) -> list[Any]:
    """The different items of several groups, in the order of their first appearance."""
    return list(dict.fromkeys(item for group in groups for item in group))


def _name(kind: str, key: str) -> str:
    return f"{kind} {key.replace('_', ' ')}"


def _last(curve: list[Point]) -> Point | None:
    return curve[-1] if curve else None


def _point(point: Point | None) -> str | None:
    return None if point is None else f"{show(point[1])} (step {point[0]:,})"


def _count(point: Point | None) -> str | None:
    return None if point is None else f"{point[1]:,.0f}"


def _code(text: Any) -> Code | None:
    return None if text is None else Code(text)


def _clipped(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"


if __name__ == "__main__":
    run_main(main)
