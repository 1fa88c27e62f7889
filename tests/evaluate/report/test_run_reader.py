"""Files: those of the report, and missing, damaged or growing files of runs."""

import base64
import re
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from common.errors import UserError
from evaluate.report.__main__ import main
from evaluate.report.render import MISSING
from evaluate.report.run_reader import RunRecord, read_run
from tests.helpers.processes import run_command
from tests.helpers.reports import (
    VALIDATION_METRICS,
    ReportParser,
    line_vertices,
    render_report,
    write_run,
)


@pytest.mark.slow
def test_a_missing_file_is_shown_as_missing(two: tuple[Path, Path]) -> None:
    """Prevents a run without one of its files from stopping the report."""
    (two[0] / "run.json").unlink()
    (two[0] / "config.yaml").unlink()
    (two[1] / "metrics.jsonl").unlink()
    read = render_report(*two)
    for row, without in (("command", 0), ("seed", 0), ("validation loss, last", 1)):
        values = read.find_row(row)
        assert values[without] == MISSING != values[1 - without], row
    assert len(read.images) == 4
    assert "fewer than two runs have a config.yaml" in read.text


@pytest.mark.slow
def test_the_command_writes_both_pages_and_their_pictures(
    two: tuple[Path, Path], tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a page that needs other files, and different bytes from the same runs."""
    outs = [tmp_path / "x" / "报告 (1)", tmp_path / "again" / "报告 (1)"]
    done = run_command("evaluate.report", *map(str, two), "--out", str(outs[0]))
    assert done.returncode == 0, done.stderr
    assert f"2 runs, 4 pictures: {outs[0]}.md  {outs[0]}.html" in done.stdout
    # This process has another hash seed than forks of the server, and so another order of sets.
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["report", *map(str, two), "--out", str(outs[1])])
    main()
    written = {path.name: path.read_bytes() for path in outs[0].parent.iterdir()}
    assert written == {path.name: path.read_bytes() for path in outs[1].parent.iterdir()}
    page = ReportParser(written["报告 (1).html"].decode())
    links = re.findall(r"!\[[^]]*\]\((\S*)\)\n", written["报告 (1).md"].decode())
    linked = [unquote(link) for link in links]
    assert set(written) == {"报告 (1).md", "报告 (1).html", *linked} and len(linked) == 4
    embedded = [base64.b64decode(image["src"].partition(",")[2]) for image in page.images]
    assert embedded == [written[name] for name in linked]
    assert not re.search(r"(src|href)=\"(?!data:)", written["报告 (1).html"].decode())


@pytest.mark.slow
def test_report_handles_one_and_five_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a report that works for two runs only."""
    folders = [
        write_run(tmp_path / f"r{index}", [5.0 - index, 1.0], {20: VALIDATION_METRICS})
        for index in range(5)
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", "r0"])
    main()
    assert "1 run," in capsys.readouterr().out
    alone = ReportParser((tmp_path / "report.html").read_text(encoding="utf-8"))
    all_five = render_report(*folders)
    assert (
        all(len(row) == 2 for table in alone.tables for row in table)
        and "Options that differ" not in alone.text
    )
    assert all(len(row) == 6 for table in all_five.tables for row in table)
    for picture in all_five.svgs_by_alt().values():
        assert all(len(line_vertices(picture, run)) for run in range(1, 6))
    monkeypatch.setattr(sys, "argv", ["report", "r0", "--out", "r1"])
    main()
    assert (tmp_path / "r1" / "report.md").is_file()


@pytest.mark.slow
def test_user_errors_name_the_folder_in_one_line(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a traceback for a wrong path."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "empty")])
    with pytest.raises(UserError, match=rf"^{tmp_path / 'empty'} is not a run.*$"):
        main()
    with pytest.raises(UserError, match=f"{tmp_path / 'absent'} does not exist"):
        read_run(tmp_path / "absent")
    monkeypatch.setattr(
        sys, "argv", ["report", str(two[1]), "--out", str(tmp_path / "file" / "page")]
    )
    with pytest.raises(UserError, match=f"--out {tmp_path / 'file' / 'page'}: cannot be written"):
        main()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results/rouge.json", "{", "cannot be read as JSON"),
        ("results/rouge.json", "[1]", "expected a JSON object"),
        ("run.json", "7", "expected a JSON object"),
        ("config.yaml", "a: [", "not readable as YAML"),
        ("metrics.jsonl", '{"kind": "train", "step": 1}\nnonsense\n', "line 2"),
        ("metrics.jsonl", '{"kind": "train"}\n', "line 1"),
        ("metrics.jsonl", "[]\n", "line 1"),
        (
            "run.json",
            '{"fingerprints": {"model": {"model_type": "gpt2"}}}',
            "only llama is supported",
        ),
    ],
)
def test_corrupted_file_is_named(
    two: tuple[Path, Path], file: str, content: str, message: str
) -> None:
    """Prevents results that are silently left out because of a damaged file."""
    (two[0] / "results").mkdir(exist_ok=True)
    (two[0] / file).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        render_report(*two)
    assert all(line.startswith(str(two[0])) for line in str(error.value).splitlines())


@pytest.mark.slow
def test_a_run_in_progress_can_be_read(two: tuple[Path, Path]) -> None:
    """Prevents an incomplete last line of a running training from being damage."""
    with (two[0] / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert render_report(*two).find_row("steps")[0] == "40 of 100 · 3,000 tokens"


def test_best_term_of_a_reward_is_the_highest() -> None:
    """Prevents the step with the most loops as the best one, because few loops are better."""
    records = [
        {"kind": "reward", "step": step, "loops": loops, "reward_loops": -loops}
        for step, loops in ((1, 0.5), (2, 0.1), (3, 0.9))
    ]
    run = RunRecord("", {}, {}, {}, records, {})
    assert run.best_point("reward", "loops") == (2, 0.1)
    assert run.best_point("reward", "reward_loops") == (2, -0.1)
