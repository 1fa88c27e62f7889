"""Both forms of the report have the same content, and escape all texts of a run."""

import json
from pathlib import Path

import markdown_it
import pytest

from common.files import write_json
from evaluate.report.page import TITLE, build_report
from evaluate.report.render import MISSING, to_html, to_markdown
from evaluate.report.run_reader import read_run
from tests.helpers.reports import ReportParser, write_run
from train.monitoring.metrics_log import MetricsLog

HOSTILE = (
    "<script>alert(1)</script> | `x` **b** [l](http://e.x) ![i](u) &lt; <!-- "
    "$x$ \\ ~~s~~ \"q\" 'q' # h"
)


@pytest.mark.slow
def test_run_contents_are_escaped_in_report(tmp_path: Path) -> None:
    """Prevents a text of a run that runs a script, loads a picture or breaks a table."""
    folder = write_run(
        tmp_path / HOSTILE.replace("/", "⁄"),
        [3.0, 2.0],
        {10: {"loss": 2.0, HOSTILE: 0.5, "中文": 0.5}},
    )
    run_info = json.loads((folder / "run.json").read_text())
    run_info["made"]["command"] = HOSTILE
    write_json(folder / "run.json", run_info)
    write_json(folder / "results" / f"{HOSTILE.replace('/', '⁄')}.json", {HOSTILE: HOSTILE})
    (folder / "config.yaml").write_text(json.dumps({HOSTILE: HOSTILE}))
    log = MetricsLog(folder, 100)
    log.write("sample", 20, prompt=HOSTILE, text=HOSTILE)
    log.close()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps(
                {
                    "kind": "sample",
                    "step": 30,
                    "prompt": "odd",
                    "text": "a\r\n\ud800\x00\x1b[31m\u2028b",
                }
            )
            + "\n"
        )
    plain = write_run(tmp_path / "plain", [1.0])
    blocks = build_report([read_run(folder), read_run(plain)], "x")
    read = ReportParser(to_html(HOSTILE, blocks))
    assert set(read.tags) <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "p",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "code",
        "img",
    }
    assert (
        all(image["src"].startswith("data:image/svg+xml;base64,") for image in read.images)
        and len(read.images) == 4
    )
    assert read.find_row("command", "run")[0] == HOSTILE
    assert read.find_row("odd")[0] == "a\n?\ufffd\ufffd[31m\u2028b\n(step 30)"
    named = {table[0][0]: row for table in read.tables for row in table[1:] if row[0] == HOSTILE}
    assert named == {
        "option": [HOSTILE, HOSTILE, MISSING],
        "result": [HOSTILE, HOSTILE, MISSING],
        "prompt": [HOSTILE, f"{HOSTILE}\n(step 20)", MISSING],
    }


@pytest.mark.slow
def test_html_and_markdown_reports_have_same_content(tmp_path: Path) -> None:
    """Prevents Markdown that an independent parser reads as other cells."""
    folder = write_run(
        tmp_path / HOSTILE.replace("/", "⁄"), [3.0, 2.0], {10: {"loss": 2.0}}, data=HOSTILE
    )
    write_json(folder / "results" / "x.json", {"text": HOSTILE, "made": {"command": HOSTILE}})
    log = MetricsLog(folder, 100)
    log.write("sample", 20, prompt="# " + HOSTILE, text="```\n- a\n\n    code\n| --- |\n" + HOSTILE)
    log.close()
    blocks = build_report([read_run(folder), read_run(write_run(tmp_path / "plain", [1.0]))], "x")
    reader = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    from_markdown, from_html = (
        ReportParser(reader.render(to_markdown(blocks))),
        ReportParser(to_html(TITLE, blocks)),
    )

    def cells(read: ReportParser) -> list[list[list[str]]]:
        # A Markdown cell has no white space at its ends.
        return [
            [["\n".join(cell.split("\n")).strip() for cell in row] for row in table]
            for table in read.tables
        ]

    assert cells(from_markdown) == cells(from_html) and len(from_html.tables) >= 4
    assert [image["alt"] for image in from_markdown.images] == [
        image["alt"] for image in from_html.images
    ]
    assert set(from_markdown.tags) <= {
        "h1",
        "h2",
        "h3",
        "p",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "code",
        "img",
        "br",
    }
