"""Pairs of an article and its title out of plain text: whole texts, and the sections of texts.

A title has to be one that a reader could give to what it stands above: of a certain length, mostly
Chinese, no phrase that stands above anything (规划与建设), and made of characters that occur in
the article. The article is cut at a sentence: rows for fine-tuning are short.

Headlines are the longer of these titles, each above the beginning of its article alone. The
beginning of a piece of news tells what the headline says in fewer words (LCSTS, Hu et al. 2015,
arXiv:1506.05865, is made of such pairs: posts of at most 140 characters and their headlines).
"""

import re
from collections.abc import Iterator, Sequence

from data.from_text.outline import Section, read_outline
from data.prepare.clean import chinese_share
from data.records import SkippedRecord, Summary

MIN_TITLE_CHARACTERS = 5
MAX_TITLE_CHARACTERS = 40
MIN_ARTICLE_CHARACTERS = 80
MAX_ARTICLE_CHARACTERS = 800
MIN_HEADLINE_CHARACTERS = 10
MAX_LEAD_CHARACTERS = 140
MAX_CAPTION = 40
# Least share of Chinese characters among the visible ones.
MIN_CHINESE_TITLE = 0.5
MIN_CHINESE_ARTICLE = 0.6
# Least shares of the title's distinct characters, and pairs of them, that occur in the article.
MIN_CHARACTER_OVERLAP = 0.7
MIN_PAIR_OVERLAP = 0.3

_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_WORD_CHARACTER = re.compile("[^\\W_]")
_NUMERAL = "[0-9０-９一二三四五六七八九十百零〇两]"
# Numbers and labels before a title: 第一章, 第 404 期：, （三）, 2.1, Step 3:, 【译】.
_NUMBERING = re.compile(
    rf"(?:\d{{1,2}}(?:\.\d{{1,2}})+\s+|第\s*{_NUMERAL}{{1,6}}\s*(?:[章节篇卷编款课]|(?:[回条步天讲期部]|部分)(?=[\s·:：、.—-]|$))[\s·:：、.—-]*"
    rf"|[（(]\s*{_NUMERAL}{{1,4}}\s*[)）][\s、.:：]*"
    rf"|{_NUMERAL}{{1,3}}(?:[.．]\d{{1,2}})*\s*(?:、|[。.．:：)）](?!\d))\s*|[①-⑳]\s*"
    r"|(?:step|part|chapter|section|tip|no\.?|步骤|方法|技巧)\s*[0-9一二三四五六七八九十]{1,3}\s*[:：、.—-]*\s*"
    r"|其[一二三四五六七八九十]{1,3}(?:[:：、.—-]\s*|\s+)"
    r"|[\[【](?:译|转载?|原创|翻译|英文|中文)[\]】]\s*)",
    re.IGNORECASE,
)
# What sites and series put behind or before a title.
_SITE = re.compile(
    r"\s*[|｜]\s*\S{1,20}$|\s+[-—–]{1,2}\s+(?:\S*(?:网|社区|专栏|博客|百科|周刊|少数派))$"
)
_SERIES = re.compile(
    rf"^\S{{2,12}}[（(]\s*第\s*{_NUMERAL}{{1,5}}\s*[期篇回讲][)）]\s*[:：]\s*|^本周话题\s*[:：]\s*"
)
_PART = re.compile(
    rf"\s*[（(](?:上|中|下|续|完|[上中下]篇|译|转|{_NUMERAL}{{1,3}}|图|组图|多图|视频|中文|英文)[)）]$"
)
# Emoji and the like.
_PICTOGRAM = re.compile("[\u2190-\u2bff\ufe0f\u200d\U0001f000-\U0001faff]+")
_OUTER_MARKS = "\"'“”‘’《》「」『』*#_~·-—:：,，、;；。.… \t\u3000"
# A closing mark may belong to the title: 什么是《论语》.
_PAIRED_MARKS = {"》": "《", "”": "“", "’": "‘", "」": "「", "』": "『", '"': '"', "'": "'"}
_TITLE_PROSE = re.compile("[。；;]")
# Headings that stand above many articles and say nothing about any. Most are too short anyway.
_CHANGE = "(?:变化|更改|改变|改进|优化|提高|总结|措施|事项)"
_NOTES = "(?:参考(?:文献|资料|书目)|注释|来源|外部(?:链接|连接)|相关(?:条目|链接|阅读)|延伸阅读)"
# What every law is about.
_TASK = (
    "(?:规划|建设|保护|管理|监督|检查|奖励|处罚|扶持|促进|保障|鼓励|支持|服务|预防|防治|治理|利用"
    "|实施|审查|申请|审批|登记|使用|维护|设立|变更|撤销|终止|监测|预警|处置|应急|准备|开发|职责|权利"
    "|义务|机构|组织|人员|制度|会议|宣传|教育|培训|参与|申报|认定|责任|监管)"
)
_GENERIC = re.compile(
    rf"{_TASK}(?:(?:[和与及、]|以及)?{_TASK}){{1,3}}(?:措施|工作|规定|程序|方式|办法|活动)?"
    rf"|其[他它]的?{_CHANGE}(?:[和与及/、]?{_CHANGE}){{0,2}}|{_NOTES}(?:[和与及、]{_NOTES})+"
    "|(?:你|您|我)们?(?:需要|应该|可以|能|能够)(?:知道|了解|做)?(?:什么|的(?:东西|事情))[？?]?"
    "|常见问题[与和及]?(?:解答|回答)|(?:一个)?简单的(?:例子|示例|方法)|(?:让我们|现在)开始吧[！!]?"
    "|写在最?[前后]面?的话|下一步工作|我们的(?:观点|目标)|感谢(?:读者|赞助商|你的阅读).{0,5}"
    "|历史上的本周|本周(?:的讨论|热门下载)|这本书是给谁的|生平[与和及](?:事迹|经历)|历史[与和及]发展"
)
_SENTENCE_MARKS = "。！？!?…；;”’」』）)】.:："
_SENTENCE_END = re.compile('[。！？!?…][”’」』）)"]*|\n')


def make_title_pairs(
    text: str,
    *,
    has_title_line: bool = False,
    min_title_characters: int = MIN_TITLE_CHARACTERS,
    max_article_characters: int = MAX_ARTICLE_CHARACTERS,
) -> Iterator[Summary | SkippedRecord]:
    """Yield a `Summary` for each heading of a text that is a good title of what is below it.

    For the others a `SkippedRecord` says why. `text` is cleaned; `has_title_line` is as in
    `read_outline`; `min_title_characters` counts Chinese ones. A section that begins where the text
    above it begins, without a line between the two headings, is the same article: only the first of
    its headings that is good counts.
    """
    sections = read_outline(text, has_title_line=has_title_line)
    used_lines: set[int] = set()
    num_lines = 0
    first_lines = []
    for section in sections:
        first_lines.append(num_lines)
        num_lines += len(section.lines)
    for number, section in enumerate(sections):
        if not section.heading or first_lines[number] in used_lines:
            continue
        title = clean_title(section.heading)
        article = _join_article(sections, number, title, max_article_characters)
        reason = rejection_reason(title, article, min_title_characters)
        if reason is not None:
            yield SkippedRecord(reason)
        else:
            used_lines.add(first_lines[number])
            yield Summary(article, title)


def make_headlines(text: str, *, has_title_line: bool = False) -> Iterator[Summary | SkippedRecord]:
    """Yield the longer titles of `make_title_pairs`, each with the first sentences of its article.

    The rest of the articles is left out, and the title has to occur in those sentences.
    """
    return make_title_pairs(
        text,
        has_title_line=has_title_line,
        min_title_characters=MIN_HEADLINE_CHARACTERS,
        max_article_characters=MAX_LEAD_CHARACTERS,
    )


def clean_title(heading: str) -> str:
    """Return a heading without numbering, names of series and sites, and marks around it."""
    title = " ".join(_PICTOGRAM.sub(" ", heading).split())
    title = _SITE.sub("", _SERIES.sub("", title))
    # Some have a number within a numbered part: 第二章 一、…
    for _ in range(2):
        if match := _NUMBERING.match(title):
            title = title[match.end() :]
    title = _PART.sub("", title)
    stripped = title.strip(_OUTER_MARKS)
    # Quotation marks inside which only a part of the title stands stay.
    start = title.find(stripped)
    before, after = title[:start].strip()[-1:], title[start + len(stripped) :][:1]
    if after in _PAIRED_MARKS and stripped.count(_PAIRED_MARKS[after]) > stripped.count(after):
        stripped += after
    closing = {opening: mark for mark, opening in _PAIRED_MARKS.items() if mark != opening}
    if before in closing and stripped.count(closing[before]) > stripped.count(before):
        stripped = before + stripped
    return stripped


def rejection_reason(
    title: str, article: str, min_title_characters: int = MIN_TITLE_CHARACTERS
) -> str | None:
    """Return why a title is no good for an article, or None if it is."""
    if len(_CHINESE.findall(title)) < min_title_characters:
        return "title_too_short"
    if len(title) > MAX_TITLE_CHARACTERS:
        return "title_too_long"
    if chinese_share(title) < MIN_CHINESE_TITLE:
        return "title_little_chinese"
    if _TITLE_PROSE.search(title):
        return "title_is_prose"
    if _GENERIC.fullmatch(title):
        return "title_generic"
    if len(article) < max(MIN_ARTICLE_CHARACTERS, 3 * len(title)):
        return "article_too_short"
    if chinese_share(article) < MIN_CHINESE_ARTICLE:
        return "article_little_chinese"
    if not _overlaps(title, article):
        return "title_elsewhere"
    return None


def _overlaps(title: str, article: str) -> bool:
    """Return whether enough of a title's characters, and of pairs of them, are in an article."""
    letters = "".join(_WORD_CHARACTER.findall(title.lower()))
    article = article.lower()
    characters = set(letters)
    pairs = {letters[start : start + 2] for start in range(len(letters) - 1)}
    num_characters = sum(character in article for character in characters)
    num_pairs = sum(pair in article for pair in pairs)
    has_characters = num_characters >= MIN_CHARACTER_OVERLAP * len(characters)
    return has_characters and num_pairs >= MIN_PAIR_OVERLAP * len(pairs)


def _join_article(sections: Sequence[Section], number: int, title: str, max_characters: int) -> str:
    """Return the prose below a heading, at most `max_characters` of it.

    It goes up to the next heading of the same level or a higher one. A beginning that repeats the
    title is left out, and so are lines at the end that are no sentences: they often are captions
    and links that repeat it.
    """
    level = sections[number].level
    lines: list[str] = []
    num_characters = 0
    for section in sections[number:]:
        if section is not sections[number] and section.level <= level:
            break
        for line in section.lines:
            if not lines and line.strip(_OUTER_MARKS) == title:
                continue
            lines.append(line)
            num_characters += len(line) + 1
            if num_characters > max_characters:
                return cut_at_sentence("\n".join(lines), max_characters)
    while lines and len(lines[-1]) < MAX_CAPTION and lines[-1][-1] not in _SENTENCE_MARKS:
        lines.pop()
    return "\n".join(lines)


def cut_at_sentence(text: str, max_characters: int) -> str:
    """Return the whole sentences, or lines, among the first `max_characters` of a text.

    A text whose first sentence is longer is cut within it.
    """
    if len(text) <= max_characters:
        return text
    end = 0
    for match in _SENTENCE_END.finditer(text):
        if match.end() > max_characters:
            break
        end = match.end()
    return text[: end or max_characters].rstrip()
