"""An extract is the part of an article that says what its title says."""

import re

from data.from_text.extracts import COVERAGE_WEIGHT, choose_extract, make_extracts
from data.records import SkippedRecord, Summary
from evaluate.metrics.rouge import compute_rouge

BEGINNING = "公司昨天开了一个发布会，来的人很多，"
INSIDE = "新款手机的电池可以用三天"
ARTICLE = f"{BEGINNING}会上说{INSIDE}，价格和去年一样。记者们还看了工厂，然后坐车回城里去了。"


def test_extract_is_the_part_closest_to_the_title() -> None:
    """Prevents a model that learns to copy the beginning whatever the title is about."""
    assert choose_extract(ARTICLE, "新手机电池可用三天") == f"会上说{INSIDE}"
    assert choose_extract(ARTICLE, "公司开发布会") == "公司昨天开了一个发布会"


def test_beginning_is_taken_unless_another_part_is_clearly_better() -> None:
    """Prevents labels that jump about the article for one character more: nobody can learn them."""
    beginning, inside = "甲乙丙丁戊己庚辛壬癸", "子丑寅卯辰巳午未申酉"
    # Too long for an extract, and no character twice.
    middle = "".join(map(chr, range(0x5000, 0x5040)))
    article = f"{beginning}。{middle}。{inside}"
    assert choose_extract(article, beginning[:4] + inside[:3]) == beginning
    # 0.48 against 0.57.
    assert choose_extract(article, beginning[:5] + inside[:6]) == beginning
    assert choose_extract(article, beginning[:2] + inside[:6]) == inside


def test_article_without_such_a_part_is_skipped() -> None:
    """Prevents extracts that say nothing of the title."""
    assert choose_extract("完全不同的一句话在这里说着", "足球锦标赛") == ""
    # One character in common: 0.11.
    assert choose_extract("完全不同的一句话在这里说着", "足球赛的票") == ""
    title = "发布会上说的是新款手机的电池价格"
    text = f"# {title}\n\n{ARTICLE}{'记者们还看了工厂。' * 5}"
    [record] = make_extracts(text)
    assert isinstance(record, Summary) and record.title in record.article
    title = "在旧电脑上安装新的操作系统"
    one_clause = f"不少人想{title}{'而没有做过的人会问要不要先复制文件' * 5}"
    assert list(make_extracts(f"# {title}\n\n{one_clause}。\n")) == [SkippedRecord("no_extract")]


def test_weak_beginning_does_not_replace_a_part_that_will_do() -> None:
    """Prevents articles without an extract, although one part of them says enough."""
    beginning, inside = "甲乙丙丁戊己庚辛壬癸", "子丑寅卯辰巳午未申酉"
    title = f"{beginning[:2]}{inside[:3]}天地玄黄宇宙洪荒"
    # 0.17 against 0.26.
    assert choose_extract(f"{beginning}。{'春夏秋冬' * 15}。{inside}", title) == inside


def test_numbers_and_quotations_stay_whole() -> None:
    """Prevents a model that learns to write half of a number, or to open a quotation only."""
    article = "公司在年会上公布的是1,250万元的销售额和利润，比去年多。"
    expected = "公司在年会上公布的是1,250万元的销售额和利润"
    assert choose_extract(article, "销售额和利润250万元") == expected
    quotation = "新款手机的电池可以用三天，价格和去年一样"
    article = f"他对记者说：“{quotation}”。"
    assert choose_extract(article, "新款手机电池可以用三天") == f"“{quotation}”"


def test_extracts_have_a_length_like_headlines() -> None:
    """Prevents answers of one word, and answers as long as the article."""
    long_clause = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳"
    assert choose_extract(f"好球！{long_clause}", "球") == ""
    assert choose_extract(f"{long_clause}{long_clause}", long_clause) == ""


def test_capital_letters_count_as_small_ones() -> None:
    """Prevents titles in capitals without an extract."""
    article = "苹果公司的发布会今天在这里召开了，iphone sells well"
    assert choose_extract(article, "IPHONE SELLS WELL") == "iphone sells well"


def test_chosen_extract_has_the_best_score() -> None:
    """Prevents a choice by another ROUGE than the one that the model is judged by."""
    title = "Nova 的电池可以用三天，价格和去年一样"
    article = f"{BEGINNING}没有新款！NOVA 上说{INSIDE}，价格和去年一样。然后回城里去了。"
    clauses = re.findall("[^，。！]+[，。！]", article)
    parts = [
        "".join(clauses[start:end]).strip("，。！")
        for start in range(len(clauses))
        for end in range(start + 1, len(clauses) + 1)
    ]

    def score(part: str) -> float:
        letters = [character for character in article.lower() if character.isalnum()]
        said = set(part.lower())
        rest = sum(character in said for character in letters) - len(said & set(letters))
        rouge: float = compute_rouge(part, title, case="lower")["1"].f
        return rouge + COVERAGE_WEIGHT * rest / len(letters)

    assert choose_extract(article, title) == max(parts, key=score)


def test_what_the_article_repeats_counts() -> None:
    """Prevents extracts that nobody can guess: of two like the title, the one about the article."""
    first, last = "甲乙丙丁戊己庚辛壬癸", "甲子丑寅卯辰巳午未申"
    title = "甲乙丙丁子丑寅天地玄"
    # Too long for an extract, and no character twice.
    middle = "".join(map(chr, range(0x5000, 0x5040)))
    assert choose_extract(f"{first}。{middle}。{last}", title) == first
    assert choose_extract(f"{first}。{middle}{last[1:] * 2}。{last}", title) == last
