"""Write a page as Markdown and as HTML, with its pictures; write the report that way."""

from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.files import write_atomic
from common.run_layout import REPORT_NAME
from evaluate.report.page import TITLE, build_report
from evaluate.report.render import Block, Picture, to_html, to_markdown
from evaluate.report.run_reader import read_run


def write_report(run_dirs: Sequence[Path], out: Path, first_section: Sequence[Block] = ()) -> None:
    """Write the report of some runs as OUT.md and OUT.html, with the pictures beside them.

    `first_section` comes before all other sections. If `out` is a folder, the files are in it,
    named report.md and so on. Raises UserError if they cannot be written.
    """
    if out.is_dir():
        out = out / REPORT_NAME
    runs = [read_run(run_dir) for run_dir in run_dirs]
    blocks = build_report(runs, out.name, first_section)
    try:
        files = write_page(out, TITLE, blocks)
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written: {error.strerror}; choose another path"
        ) from None
    print(f"{'1 run' if len(runs) == 1 else f'{len(runs)} runs'}, {files}")


def write_page(out: Path, title: str, blocks: Sequence[Block]) -> str:
    """Write a page as OUT.md and OUT.html, with the pictures beside them.

    Returns the number of pictures and the two files, to print. Raises OSError if a file cannot be
    written.
    """
    pictures = [block for block in blocks if isinstance(block, Picture)]
    markdown_file = out.with_name(f"{out.name}.md")
    html_file = out.with_name(f"{out.name}.html")
    # The pages are written last, so that no page refers to pictures that are not there yet.
    for picture in pictures:
        write_atomic(out.with_name(picture.file_name), picture.svg)
    write_atomic(markdown_file, to_markdown(blocks))
    write_atomic(html_file, to_html(title, blocks))
    count = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
    return f"{count}: {markdown_file}  {html_file}"
