"""Pairs of an article and its title out of plain text: whole texts, and the sections of texts.

A title has to be one that a reader could give to what it stands above: of a certain length, mostly
Chinese, no phrase that stands above anything (总结, 使用方法), and made of characters that occur in
the article. The article is cut at a sentence: rows for fine-tuning are short.
"""

import re
from collections.abc import Iterator, Sequence

from data.from_text.outline import Section, read_outline
from data.prepare.clean import chinese_share
from data.records import Record, SkippedRecord, Summary

MIN_TITLE_CHARACTERS = 5
MAX_TITLE_CHARACTERS = 40
MIN_ARTICLE_CHARACTERS = 80
MAX_ARTICLE_CHARACTERS = 800
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
    rf"(?:\d{{1,2}}(?:\.\d{{1,2}})+\s+|第\s*{_NUMERAL}{{1,6}}\s*[章节回篇卷编条款步天讲课期部][\s·:：、.—-]*"
    rf"|[（(]\s*{_NUMERAL}{{1,4}}\s*[)）][\s、.:：]*"
    rf"|{_NUMERAL}{{1,3}}(?:[.．]\d{{1,2}})*\s*[、。.．:：)）](?!\d)\s*|[①-⑳]\s*"
    r"|(?:step|part|chapter|section|tip|no\.?|步骤|方法|技巧|其)\s*[0-9一二三四五六七八九十]{1,3}\s*[:：、.—-]*\s*"
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
    rf"\s*[（(](?:上|中|下|续|完|[上中下]篇|译|转|{_NUMERAL}{{1,3}}|图|组图|多图|视频)[)）]$"
)
# Emoji and the like.
_PICTOGRAM = re.compile("[\u2190-\u2bff\ufe0f\u200d\U0001f000-\U0001faff]+")
_OUTER_MARKS = "\"'“”‘’《》「」『』*#_~·-—:：,，、;；。.… \t\u3000"
# A closing mark may belong to the title: 什么是《论语》.
_PAIRED_MARKS = {"》": "《", "”": "“", "’": "‘", "」": "「", "』": "『", '"': '"', "'": "'"}
_TITLE_PROSE = re.compile("[。；;]")
# Headings that stand above many articles, and say nothing about any: whole, or as the beginning.
_GENERIC = re.compile(
    r"(?:(?:写在)?(?:最|前|后)[前后面边]{1,2}(?:的话)?|(?:前|引|导|绪|序|结)[言语论章]|(?:小|总|最后的?)?结(?:论|语|束语)?|摘要|概[述要况览]|简介"
    r"|(?:基本|项目|背景|课程|内容|文章)?(?:介绍|简介|概述|背景|概览)|目录|总结|小结|附录?|总则|分则|附则|正文|导读|引子|说明|注意事项?|使用方法?|用法"
    r"|(?:参考|相关)(?:文献|资料|链接|阅读|文章|内容|条目|来源)|(?:外部|友情|相关)(?:链接|连接)|延伸阅读|扩展阅读|更多(?:资源|信息|内容|阅读)?"
    r"|(?:系统|环境|安装|软件|硬件)(?:要求|需求|准备|步骤|配置|安装|介绍)|(?:安装|配置|使用|下载|操作|具体|实现|测试)(?:指南|说明|方法|步骤|教程|过程|地址|结果)?"
    r"|(?:常见)?问题(?:与?(?:解答|回答))?|问答|讨论|练习|习题|思考题?|示例|例子|代码|结果|评论|致谢|鸣谢|关于(?:作者|我们|本文|译者)|作者(?:简介|介绍)"
    r"|(?:其他|其它|另外|此外|未来|展望|下一步|接下来|后续)(?:计划|工作|信息|事项|步骤|内容|功能|问题)?|封面图|本周(?:图片|话题|金句)|往[年期]回顾|历史上的本周"
    r"|(?:科技|行业)?(?:动态|新闻|文章|工具|资源|图片|文摘|言论|软件|教程|欢迎订阅|订阅)|法律责任|监督(?:管理|检查)|监督管理和?与?法律责任|组织(?:机构|实施|管理)"
    r"|(?:一个)?简单的?(?:方法|办法|例子|示例)|本周.{0,6}|这本书.{0,6}|其[他它](?:更改|变化|改进).{0,6}|感谢.{0,8}|我们的?(?:观点|看法|结论|目标)|权利(?:和|与)义务|人物(?:生平|经历|介绍)|生平(?:简介)?|历史(?:沿革|背景|发展)?|地理(?:位置|环境)?"
    r"|(?:主要|个人)(?:作品|成就|内容|特点|经历|功能|特性|变化|人物)|获奖(?:情况|记录)?|演员表|剧情(?:简介|介绍|大纲)?|行政区[划域]|经济发展|词源|定义|分类|特点|特征|优点|缺点|优缺点"
    r"|(?:为什么|怎么|如何)(?:做|办|用|使用)?|(?:你|您|我们?)?(?:需要|应该|可以|能)?(?:知道|了解|做|用)?(?:什么|的(?:事|东西))|(?:让我们|现在)?(?:开始|继续)吧?)[？?！!]?"
)
# Two or more of the tasks that every law has.
_TASK = (
    "(?:规划|建设|保护|管理|监督|检查|奖励|处罚|扶持|促进|保障|鼓励|支持|服务|预防|防治|治理|利用|实施|审查|申请|审批|登记|使用|维护"
    "|设立|变更|撤销|终止|监测|预警|处置|应急|开发|职责|权利|义务|机构|组织|人员|制度|会议|宣传|教育|培训|参与|申报|认定|责任|监管)"
)
_GENERIC_TASKS = re.compile(
    rf"{_TASK}(?:(?:[和与及、]|以及)?{_TASK}){{0,3}}(?:措施|工作|规定|程序|方式|办法|活动)?"
)
_SENTENCE_MARKS = "。！？!?…；;”’」』）)】.:："
_SENTENCE_END = re.compile('[。！？!?…][”’」』）)"]*|\n')


def make_title_pairs(
    text: str, *, has_title_line: bool = False
) -> Iterator[Record | SkippedRecord]:
    """Yield a `Summary` for each heading of a text that is a good title of what is below it.

    For the others a `SkippedRecord` says why. `text` is cleaned; `has_title_line` is as in
    `read_outline`. A section that begins where the text above it begins, without a line between
    the two headings, is the same article: only the first of its headings that is good counts.
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
        article = _join_article(sections, number, title)
        reason = rejection_reason(title, article)
        if reason is not None:
            yield SkippedRecord(reason)
        else:
            used_lines.add(first_lines[number])
            yield Summary(article, title)


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


def rejection_reason(title: str, article: str) -> str | None:
    """Return why a title is no good for an article, or None if it is."""
    if len(_CHINESE.findall(title)) < MIN_TITLE_CHARACTERS:
        return "title_too_short"
    if len(title) > MAX_TITLE_CHARACTERS:
        return "title_too_long"
    if chinese_share(title) < MIN_CHINESE_TITLE:
        return "title_little_chinese"
    if _TITLE_PROSE.search(title):
        return "title_is_prose"
    if _GENERIC.fullmatch(title) or _GENERIC_TASKS.fullmatch(title):
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


def _join_article(sections: Sequence[Section], number: int, title: str) -> str:
    """Return the prose below a heading, at most `MAX_ARTICLE_CHARACTERS` of it.

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
            if num_characters > MAX_ARTICLE_CHARACTERS:
                return cut_at_sentence("\n".join(lines), MAX_ARTICLE_CHARACTERS)
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
