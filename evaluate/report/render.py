"""Render a page of headings, paragraphs, tables and pictures as Markdown and as one HTML file.

The texts come from files of unknown origin. Both formats escape them, so that every character is
shown as it is and none is interpreted as markup.
"""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HTML_TEMPLATE = "page.html.jinja"
# Shown instead of a value that is unknown.
MISSING = "—"


class CodeText(str):
    """A cell that is shown in a monospaced font."""


# None is shown as MISSING.
Cell = str | None


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title of the page."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table whose rows have as many cells as the header; the first cell of a row is its label."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    """An SVG picture: a file beside the Markdown page, embedded in the HTML page."""

    file_name: str
    alt_text: str
    svg: bytes


Block = Heading | Paragraph | Table | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return the page as GitHub Markdown; pictures are links to files in the same folder."""
    return "\n\n".join(_block_to_markdown(block) for block in blocks) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Return the page as one self-contained HTML file; pictures are data URIs."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_finalize,
        keep_trailing_newline=True,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.tests["heading"] = lambda block: isinstance(block, Heading)
    environment.tests["paragraph"] = lambda block: isinstance(block, Paragraph)
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    environment.tests["code"] = lambda cell: isinstance(cell, CodeText)
    return environment.get_template(HTML_TEMPLATE).render(title=title, blocks=blocks)


def _finalize(value: Any) -> Any:
    """Prepare the value of a template expression; Jinja escapes it afterwards."""
    if value is None:
        return MISSING
    return _sanitize(value) if isinstance(value, str) else value


def _block_to_markdown(block: Block) -> str:
    """Return one block of the page as GitHub Markdown."""
    match block:
        case Heading():
            return "#" * block.level + " " + _escape_markdown(block.text)
        case Paragraph():
            return _escape_markdown(block.text)
        case Picture():
            return f"![{_escape_markdown(block.alt_text)}]({quote(block.file_name)})"
        case Table():
            header = [_escape_markdown(text) for text in block.header]
            rows = [[_cell_to_markdown(cell) for cell in row] for row in block.rows]
            lines = [header, ["---"] * len(header), *rows]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell_to_markdown(cell: Cell) -> str:
    """Return a table cell. Code is in HTML tags, because no escapes work within backticks."""
    text = MISSING if cell is None else _escape_markdown(cell)
    return f"<code>{text}</code>" if isinstance(cell, CodeText) else text


def _escape_markdown(text: str) -> str:
    """Escape a text so that GitHub Markdown shows every character of it, on one line."""
    # First replace <, > and & by HTML entities, because Markdown passes HTML through. Then escape
    # the special characters of Markdown. A line end would end the row of a table.
    escaped = re.sub(r"([\\`*_\[\]|~#!$])", r"\\\1", html.escape(_sanitize(text), quote=False))
    return escaped.replace("\n", "<br>")


def _sanitize(text: str) -> str:
    """Replace characters that HTML cannot contain: lone surrogates and control characters.

    Line ends become LF.
    """
    normalized = text.encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", normalized)
