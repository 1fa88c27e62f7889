"""Headings are told from prose, and prose from everything else that stands in an article."""

import pytest

from data.from_text.outline import LINE_LEVEL, TITLE_LEVEL, plain_line, read_outline

PROSE = (
    "这一段说的是怎样在一台旧电脑上装好系统，再把常用的软件一个一个配置妥当，"
    "最后备份所有的资料，以后随时可以恢复，不必从头再来一遍。"
)


def headings(text: str, **options: bool) -> list[tuple[int, str]]:
    return [(section.level, section.heading) for section in read_outline(text, **options)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"# 旧电脑装系统\n\n{PROSE}\n\n## 备份资料 ##\n{PROSE}",
            [(1, "旧电脑装系统"), (2, "备份资料")],
        ),
        (
            f"旧电脑装系统\n=====\n\n{PROSE}\n\n备份资料\n----\n\n{PROSE}",
            [(1, "旧电脑装系统"), (2, "备份资料")],
        ),
        (f"=== 旧电脑装系统 ===\n{PROSE}", [(3, "旧电脑装系统")]),
        (f"##旧电脑**装系统**\n{PROSE}", [(2, "旧电脑装系统")]),
        (f"旧电脑装系统\n{PROSE}", [(TITLE_LEVEL, "旧电脑装系统")]),
        (f"{PROSE}\n\n备份资料\n{PROSE}", [(TITLE_LEVEL, ""), (LINE_LEVEL, "备份资料")]),
    ],
)
def test_headings_of_each_form(text: str, expected: list[tuple[int, str]]) -> None:
    """Prevents headings of a common form that are read as prose, with their marks in the text."""
    assert headings(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        f"{PROSE}\n```\n# 安装所有软件\n```\n{PROSE}",
        f"{PROSE}\n\n----\n\n{PROSE}",
        f"{PROSE}\n| 名称 | 版本 |\n|----|----|\n| 系统 | 二 |\n{PROSE}",
        f"{PROSE}\n- 装系统\n{PROSE}",
        f"{PROSE}\n\n他说：\n\n{PROSE}",
        f"{PROSE}\n\n真的吗？他不信。\n\n{PROSE}",
    ],
)
def test_prose_has_no_headings(text: str) -> None:
    """Prevents titles that are comments of code, rules, rows of tables, list items or sentences."""
    assert headings(text) == [(TITLE_LEVEL, "")]


def test_first_line_is_the_title_if_the_source_says_so() -> None:
    """Prevents an article of Wikipedia without its title because that is short or looks odd."""
    text = f"哪吒？\n\n{PROSE}"
    assert headings(text, has_title_line=True) == [(TITLE_LEVEL, "哪吒？")]
    assert headings(text) == [(TITLE_LEVEL, "")]


def test_prose_is_without_markup_and_lines_about_the_article() -> None:
    """Prevents code, pictures, addresses and names of translators in what is to be summarized."""
    text = "\n".join(
        [
            "# 旧电脑装系统",
            "![截图](https://example.org/a(1).png)",
            "> **先**看[说明](https://example.org/b)和`make`，见 https://example.org/c 。",
            "```",
            "make install",
            "```",
            "1. 再装[软件][2][^3]，<ruby>内核<rt>Kernel</rt></ruby>不必换。",
            "[![截图][3]][4]",
            "| 名称 | 版本 |",
            "[2]: https://example.org/d",
            "作者：[某人][a]",
            "via: https://example.org",
            "本文由 LCTT 原创编译，Linux中国 荣誉推出",
        ]
    )
    assert read_outline(text)[0].lines == ["先看说明和make，见  。", "再装软件，内核不必换。"]


@pytest.mark.parametrize(
    "line", ["2 * 3 * 4", "snake_case_name 和 __init__", "数组 [i][j]", "3.14 是圆周率"]
)
def test_plain_lines_stay(line: str) -> None:
    """Prevents signs and numbers that are lost because they look like Markdown."""
    assert plain_line(line) == line
