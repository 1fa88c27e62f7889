"""A page of headings, paragraphs, tables and pictures, written as Markdown and as one self-contained HTML file.

Texts come from files that anybody may have made: in both forms every character of them is shown and none has an effect.
"""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

MISSING = "—"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
th, td { border: 1px solid #ccc; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
td { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 8rem; }
th { background: #f4f4f4; }
code { font-size: 0.9em; }
img { max-width: 100%; }
"""


class CodeText(str):
    """Text as it would be typed."""


# What a table's cell holds; None is shown as missing.
Cell = str | None


@dataclass(frozen=True)
class Heading:
    """A heading of a level from 1."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """A head and rows of as many cells; the first cell of a row is its name."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    """An SVG file beside the page: its name, what it shows, its bytes."""

    file_name: str
    alt_text: str
    svg: bytes


Block = Heading | Paragraph | Table | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """The page as GitHub's Markdown; pictures are links to their files in the same folder."""
    return "\n\n".join(_block_to_markdown(block) for block in blocks) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The page as one HTML file that needs no other: pictures are inside as data URIs."""
    body = "\n".join(_block_to_html(block) for block in blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_escape_html(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _block_to_markdown(block: Block) -> str:
    match block:
        case Heading():
            return "#" * block.level + " " + _escape_markdown(block.text)
        case Paragraph():
            return _escape_markdown(block.text)
        case Picture():
            return f"![{_escape_markdown(block.alt_text)}]({quote(block.file_name)})"
        case Table():
            head = [_escape_markdown(text) for text in block.header]
            rows = [[_cell_to_markdown(cell) for cell in row] for row in block.rows]
            lines = [head, ["---"] * len(head), *rows]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell_to_markdown(cell: Cell) -> str:
    text = MISSING if cell is None else _escape_markdown(cell)
    return f"<code>{text}</code>" if isinstance(cell, CodeText) else text


def _escape_markdown(text: str) -> str:
    # The entities first: Markdown passes HTML through. Then all that is a mark to it, and line ends, which end a cell.
    escaped = re.sub(r"([\\`*_\[\]|~#!$])", r"\\\1", html.escape(_sanitize(text), quote=False))
    return escaped.replace("\n", "<br>")


def _block_to_html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{_escape_html(block.text)}</h{block.level}>"
        case Paragraph():
            return f"<p>{_escape_html(block.text)}</p>"
        case Picture():
            data = base64.b64encode(block.svg).decode()
            return f'<p><img alt="{_escape_html(block.alt_text)}" src="data:image/svg+xml;base64,{data}"></p>'
        case Table():
            head = "".join(f"<th>{_escape_html(text)}</th>" for text in block.header)
            rows = "\n".join(_row_to_html(row) for row in block.rows)
            return (
                f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
                f"<tbody>\n{rows}\n</tbody>\n</table></div>"
            )


def _row_to_html(row: Sequence[Cell]) -> str:
    name, *cells = (
        MISSING
        if cell is None
        else f"<code>{_escape_html(cell)}</code>"
        if isinstance(cell, CodeText)
        else _escape_html(cell)
        for cell in row
    )
    return f"<tr><th>{name}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _escape_html(text: str) -> str:
    return html.escape(_sanitize(text))


def _sanitize(text: str) -> str:
    """Only what both forms can hold: no lone surrogates, one kind of line end, no control characters."""
    normalized = text.encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", normalized)
