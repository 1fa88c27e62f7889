"""Titles are the headings that a reader could give to the article, and each article is whole."""

import pytest

from data.from_text.title_pairs import (
    MAX_ARTICLE_CHARACTERS,
    MAX_LEAD_CHARACTERS,
    clean_title,
    cut_at_sentence,
    make_headlines,
    make_title_pairs,
    rejection_reason,
)
from data.records import SkippedRecord, Summary

INSTALL = (
    "在一台旧电脑上安装系统并不难。先下载镜像，再写进优盘，然后从优盘启动电脑，按提示选择语言和时区，"
    "等上二十分钟，系统就安装好了。以后电脑再慢，也可以用同一个优盘重新安装一次，旧资料不会丢。"
)
BACKUP = (
    "备份资料之前，先想好哪些资料最要紧。照片和文章要备份两份，一份放在移动硬盘，一份放在别处。"
    "备份完了再打开几个文件看看，能看才算数。每个月备份一次，旧的备份留三份就够，多了反而找不到。"
)


def pairs(text: str, **options: bool) -> list[tuple[str, str]]:
    return [
        (record.title, record.article)
        for record in make_title_pairs(text, **options)
        if isinstance(record, Summary)
    ]


def reasons(text: str) -> list[str]:
    return [record.reason for record in make_title_pairs(text) if isinstance(record, SkippedRecord)]


def test_article_and_sections_have_their_titles() -> None:
    """Prevents an article that ends at its first section, or a section with the next one's text."""
    text = f"# 旧电脑的安装和备份\n\n{INSTALL}\n\n## 2. 先备份要紧的资料\n\n{BACKUP}"
    assert pairs(text) == [
        ("旧电脑的安装和备份", f"{INSTALL}\n{BACKUP}"),
        ("先备份要紧的资料", BACKUP),
    ]


def test_headings_without_a_line_between_share_an_article() -> None:
    """Prevents one article with two titles: the model would learn to give either."""
    text = f"# 旧电脑的安装\n\n## 在旧电脑上安装系统\n\n{INSTALL}"
    assert pairs(text) == [("旧电脑的安装", INSTALL)]
    # If the first is no good, the second is the title.
    text = f"# 目录\n\n## 在旧电脑上安装系统\n\n{INSTALL}"
    assert pairs(text) == [("在旧电脑上安装系统", INSTALL)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"# 安装\n{INSTALL}", "title_too_short"),
        (f"# {'在旧电脑上安装系统' * 5}\n{INSTALL}", "title_too_long"),
        (f"# Installing Debian 在旧电脑上\n{INSTALL}", "title_little_chinese"),
        (f"# 安装系统。以后再备份\n{INSTALL}", "title_is_prose"),
        (f"# 常见问题与解答\n{INSTALL}", "title_generic"),
        ("# 在旧电脑上安装系统\n在旧电脑上安装系统并不难。", "article_too_short"),
        (f"# 在旧电脑上安装系统\n{INSTALL} {'make install all ' * 40}", "article_little_chinese"),
        (f"# 欧洲足球锦标赛\n{INSTALL}", "title_elsewhere"),
    ],
)
def test_what_is_no_title_is_skipped_with_the_reason(text: str, reason: str) -> None:
    """Prevents pairs that teach a model to write phrases, or words that the article lacks."""
    assert reasons(text) == [reason]
    assert pairs(text) == []


@pytest.mark.parametrize(
    ("heading", "title"),
    [
        ("第三章  旧电脑的安装", "旧电脑的安装"),
        ("第一十回·勤王室马腾举义    报父仇曹操兴师", "勤王室马腾举义 报父仇曹操兴师"),
        ("科技爱好者周刊（第 188 期）：音乐是反社交", "音乐是反社交"),
        ("（二）旧电脑的安装", "旧电脑的安装"),
        ("2.1 旧电脑的安装", "旧电脑的安装"),
        ("一、旧电脑的安装：", "旧电脑的安装"),
        ("3、26层的养猪大楼（中文）", "26层的养猪大楼"),
        ("1.5倍速度的旧电脑", "1.5倍速度的旧电脑"),
        ("Step 3: 旧电脑的安装", "旧电脑的安装"),
        ("【译】旧电脑的安装（上）", "旧电脑的安装"),
        ("“旧电脑的安装”", "旧电脑的安装"),
        ("怎样读《论语》", "怎样读《论语》"),
        ("《论语》怎样读", "《论语》怎样读"),
        ("旧电脑的安装 | Linux中国", "旧电脑的安装"),
        ("3 个理由装系统", "3 个理由装系统"),
        ("2018 年的旧电脑", "2018 年的旧电脑"),
        ("十大旧电脑", "十大旧电脑"),
        ("为什么要装系统？", "为什么要装系统？"),
        ("第一步：装系统", "装系统"),
        ("第二部分 旧电脑的安装", "旧电脑的安装"),
        ("第三部门的发展", "第三部门的发展"),
        ("第一步兵师的组建", "第一步兵师的组建"),
        ("其一、旧电脑的安装", "旧电脑的安装"),
        ("其三百人的故事", "其三百人的故事"),
    ],
)
def test_title_is_the_heading_without_what_is_around_it(heading: str, title: str) -> None:
    """Prevents answers that begin with the number of a chapter or end with the name of a site."""
    assert clean_title(heading) == title


def test_repeated_title_is_no_part_of_the_article() -> None:
    """Prevents articles whose first line is the answer."""
    assert pairs(f"# 在旧电脑上安装系统\n\n**在旧电脑上安装系统**\n\n{INSTALL}") == [
        ("在旧电脑上安装系统", INSTALL)
    ]


def test_long_articles_end_with_a_sentence() -> None:
    """Prevents articles that break off, and articles of which a row would hold a small part."""
    [(_, article)] = pairs(f"# 在旧电脑上安装系统\n\n{(INSTALL + BACKUP) * 20}")
    assert MAX_ARTICLE_CHARACTERS / 2 < len(article) <= MAX_ARTICLE_CHARACTERS
    assert article.endswith("。")
    assert cut_at_sentence("没有句号" * 10, 7) == "没有句号没有句"
    assert cut_at_sentence("他说：“走。”她没走。", 9) == "他说：“走。”"


def test_headlines_are_long_titles_of_short_beginnings() -> None:
    """Prevents headings of one word, and whole articles, among headlines and beginnings of news."""
    text = f"# 在一台旧电脑上安装系统\n\n{INSTALL}{BACKUP}\n\n## 备份最要紧的资料\n\n{BACKUP}"
    headlines = [record for record in make_headlines(text) if isinstance(record, Summary)]
    beginning = INSTALL + BACKUP[: BACKUP.index("备份完了")]
    assert headlines == [Summary(beginning, "在一台旧电脑上安装系统")]
    assert len(beginning) <= MAX_LEAD_CHARACTERS


def test_overlap_is_of_characters_and_of_pairs() -> None:
    """Prevents titles of common characters that no word of the article has."""
    assert rejection_reason("电脑上的旧系统安装", INSTALL) is None
    # Every character occurs, and hardly any two of them together.
    assert rejection_reason("统脑难盘新安好以", INSTALL.replace("难", "难新")) == "title_elsewhere"
