"""The outline of a text: its headings, and the prose below each of them.

Headings are lines in Markdown (`## Heading`, or underlined with = or -), in wiki markup
(`== Heading ==`), a first line that looks like a title, and a short line on its own above a
paragraph, as the headings of a Wikipedia article are. Prose is what is left of the lines without
code, tables, pictures, rules, links' targets, and lines about the article such as its author.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# The level of a first line that is the title of the text.
TITLE_LEVEL = 0
# That of a line on its own: below all headings that are marked as such.
LINE_LEVEL = 7
# A heading on a line of its own, and the first line of the paragraph below it.
MAX_LINE_HEADING = 30
MIN_LINE_PARAGRAPH = 60
MAX_FIRST_LINE = 60

_FENCE = re.compile(r"[ ]{0,3}(?:```|~~~)")
_MARKDOWN_HEADING = re.compile(r"[ ]{0,3}(#{1,6})(?:[ \t]+|(?=[^\s#\d!]))(.*?)[ \t]*#*")
_UNDERLINE = re.compile(r"[ ]{0,3}(?:={3,}|-{3,})[ \t]*")
_WIKI_HEADING = re.compile(r"(={2,6})[ \t]*([^=]+?)[ \t]*\1")
# Horizontal rules, and the rows of dashes in tables.
_RULE = re.compile(r"[\s|:*_=+~.…·—-]+")
_LIST_MARK = re.compile(r"[ \t]*(?:>[ \t]?)*[ \t]*(?:[-*+•·][ \t]+|\d{1,3}[.、)）][ \t]*(?!\d))?")
_PICTURE = re.compile(r"!\[[^\[\]]*\](?:\([^()\s]*(?:\([^()]*\)[^()\s]*)?[^()]*\)|\[[^\[\]]*\])?")
# Of references by name, `[text][name]`, only numbered ones: `[i][j]` is code.
_LINK = re.compile(r"\[([^\[\]]+)\](?:\([^()]*(?:\([^()]*\)[^()]*)?\)|\[\d*\])")
_FOOTNOTE = re.compile(r"\[\^[^\[\]]{1,20}\]|\[\s*\](?:\[\d*\]|\([^()]*\))")
# Above a word stands how it is read, or what it is in English.
_RUBY = re.compile(r"<rt>[^<]*</rt>|</?ruby>")
_LINK_TARGET = re.compile(r"[ ]{0,3}\[[^\[\]]+\]:[ ]*\S+.*")
# Underlines are emphasis only around Chinese: `__init__` is code.
_EMPHASIS = re.compile(
    r"\*{1,3}(?=\S)([^*\n]+?)(?<=\S)\*{1,3}|__([^_\n]*[\u4e00-\u9fff][^_\n]*)__|\*{2,}"
)
_STRUCK_OUT = re.compile(r"~~[^~\n]+~~")
_ESCAPE = re.compile(r"\\([\\`*_{}\[\]()#+.!|>~-])")
_URL = re.compile(r"https?://[^\s，。；、）)》\]]+")
# Lines about the article and not of it.
_ABOUT_ARTICLE = re.compile(
    r"via\s*[:：]|(?:原文|英文|译文|本文|文章|作者|译者|校对|选题|来源|出处|编译|编辑|责编|翻译|投稿|题图|图源|图片来源"
    r"|转载|版权|更新时间|发布时间|发布日期|时间|日期|链接|关键词|标签|摄影|记者|主条目|参见|参阅|详见|延伸阅读|相关阅读|推荐阅读)"
    r"[^，。；]{0,12}?[:：]|本文由.{0,40}(?:编译|翻译|推出|发布)|(?:本文|文章)(?:为|系)?.{0,10}(?:原创|转载|译自)"
    r"|.{0,20}(?:版权所有|未经许可|转载请|著作权归)"
    # The history of a law.
    r"|(?:\d{4}|[一二三四五六七八九〇○零]{4})年.{1,8}日.{0,120}(?:通过|批准|公布|发布|施行|修正|修订|修改)[）)]?$",
    re.IGNORECASE,
)
_SENTENCE_END = frozenset("。！？!?；;…：:，,、")
# Marks of sentences, which a heading does not have inside.
_PROSE_MARK = re.compile("[。；！？!?;]")


@dataclass(slots=True)
class Section:
    """A heading and the lines of prose below it, up to the next heading of any level.

    `level` is 1 for the highest heading in Markdown; see also `TITLE_LEVEL` and `LINE_LEVEL`. Prose
    before the first heading is a section without a heading.
    """

    level: int
    heading: str
    lines: list[str] = field(default_factory=list)


def read_outline(text: str, *, has_title_line: bool = False) -> list[Section]:
    """Return the sections of a text in order.

    With `has_title_line` its first line is the title whatever it looks like; otherwise only if it
    looks like one.
    """
    lines = list(_iter_lines_outside_code(text.split("\n")))
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    sections = [Section(TITLE_LEVEL, "")]
    skip_underline = False
    for number, line in enumerate(lines):
        if skip_underline:
            skip_underline = False
            continue
        heading = _match_marked_heading(lines, number)
        if heading is not None:
            skip_underline = _is_underlined(lines, number)
        elif number == first and (has_title_line or _is_title_line(lines, number)):
            heading = (TITLE_LEVEL, line)
        elif _is_line_heading(lines, number):
            heading = (LINE_LEVEL, line)
        if heading is not None:
            level, heading_text = heading
            sections.append(Section(level, plain_line(heading_text)))
        elif prose := _read_prose(line):
            sections[-1].lines.append(prose)
    return sections if sections[0].lines else sections[1:]


def plain_line(line: str) -> str:
    """Return a line without the marks of Markdown: list, quotation, emphasis, code, links."""
    line = line[_match_end(_LIST_MARK, line) :]
    if "[" in line:
        line = _FOOTNOTE.sub("", _LINK.sub(r"\1", _PICTURE.sub("", line)))
    if "<r" in line:
        line = _RUBY.sub("", line)
    if "*" in line or "_" in line:
        line = _EMPHASIS.sub(lambda match: match[1] or match[2] or "", line)
    if "~~" in line:
        line = _STRUCK_OUT.sub("", line)
    if "\\" in line:
        line = _ESCAPE.sub(r"\1", line)
    return line.replace("`", "").strip()


def _match_end(pattern: re.Pattern[str], line: str) -> int:
    """Return where a match of a pattern at the beginning of a line ends, 0 without a match."""
    match = pattern.match(line)
    return match.end() if match else 0


def _iter_lines_outside_code(lines: list[str]) -> Iterator[str]:
    """Yield the lines that are not in fenced code."""
    in_code = False
    for line in lines:
        if _FENCE.match(line):
            in_code = not in_code
        elif not in_code:
            yield line


def _match_marked_heading(lines: list[str], number: int) -> tuple[int, str] | None:
    """Return level and text of line `number` if it is a heading of Markdown or wiki markup."""
    line = lines[number]
    stripped = line.lstrip(" ")
    if stripped.startswith("#") and (match := _MARKDOWN_HEADING.fullmatch(line)):
        return len(match[1]), match[2]
    if stripped.startswith("==") and (match := _WIKI_HEADING.fullmatch(line.strip())):
        return len(match[1]), match[2]
    if _is_underlined(lines, number):
        return (1 if "=" in lines[number + 1] else 2), line
    return None


def _is_underlined(lines: list[str], number: int) -> bool:
    """Return whether line `number` is a paragraph of one line that the next line underlines."""
    if number + 1 == len(lines) or not _UNDERLINE.fullmatch(lines[number + 1]):
        return False
    line = lines[number].strip()
    is_alone = number == 0 or not lines[number - 1].strip()
    return is_alone and bool(line) and "|" not in line and not _RULE.fullmatch(line)


def _is_title_line(lines: list[str], number: int) -> bool:
    """Return whether the first line of a text looks like its title."""
    line = lines[number].strip()
    is_short = len(line) <= MAX_FIRST_LINE and not _PROSE_MARK.search(line)
    if not is_short or line[-1] in _SENTENCE_END or line.startswith(("-", "*", ">", "|", "!", "[")):
        return False
    below = next((line for line in lines[number + 1 :] if line.strip()), "")
    return len(below.strip()) >= 2 * len(line)


def _is_line_heading(lines: list[str], number: int) -> bool:
    """Return whether line `number` is short, has a blank line above it and a paragraph below."""
    line = lines[number].strip()
    if not 2 <= len(line) <= MAX_LINE_HEADING or number == 0 or lines[number - 1].strip():
        return False
    if line[-1] in _SENTENCE_END or line[0] in "-*>|![（(" or _PROSE_MARK.search(line):
        return False
    # The paragraph may have a blank line above it, too.
    below = lines[number + 1 : number + 3]
    paragraph = next((line.strip() for line in below if line.strip()), "")
    return len(paragraph) >= MIN_LINE_PARAGRAPH and paragraph[-1] in "。！？!?…”"


def _read_prose(line: str) -> str:
    """Return a line as prose, or "" if it is none."""
    stripped = line.strip()
    if not stripped or _RULE.fullmatch(stripped) or stripped.count("|") > 1:
        return ""
    if _LINK_TARGET.fullmatch(line):
        return ""
    prose = plain_line(line)
    # Before the marks of quotations are gone, lines about the article may begin with one.
    if _ABOUT_ARTICLE.match(prose):
        return ""
    if "://" in prose:
        prose = _URL.sub("", prose).strip()
    return prose
