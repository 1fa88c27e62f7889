"""ROUGE equals counts by hand and rouge-chinese, for texts of any length."""

import logging
import random
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.records import Summary
from data.sources import find_source
from data.sources.base import LetterCase
from evaluate.metrics import rouge as rouge_metric
from evaluate.metrics.baselines import (
    first_20_characters,
    first_sentence,
    oracle_sentence,
    split_sentences,
)
from evaluate.metrics.rouge import (
    ROUGE_VARIANTS,
    bootstrap_mean_interval,
    compute_rouge,
    split_characters,
    split_words,
)
from evaluate.metrics.rouge_table import RougeTable


def figures(
    prediction: str, reference: str, case: LetterCase = "kept"
) -> list[tuple[float, float, float]]:
    return [
        (each.precision, each.recall, each.f)
        for each in compute_rouge(prediction, reference, case=case).values()
    ]


def test_character_rouge_matches_hand_computed_values() -> None:
    """Prevents exchanged precision and recall, wrong units, a contiguous subsequence."""
    assert list(compute_rouge("小驼", "小驼", case="kept")) == list(ROUGE_VARIANTS)
    # 小 驼 在 are shared by texts of 3 and 5 characters, 小驼 and 驼在 by 2 and 4 pairs, in order.
    assert figures("小驼在", "小驼在河边") == [
        pytest.approx((1.0, 3 / 5, 3 / 4)),
        pytest.approx((1.0, 2 / 4, 2 / 3)),
        pytest.approx((1.0, 3 / 5, 3 / 4)),
    ]
    # The same characters turned round: all of them, none of the pairs, one in order.
    assert figures("甲乙丙", "丙乙甲") == [
        pytest.approx((1, 1, 1)),
        (0, 0, 0),
        pytest.approx((1 / 3, 1 / 3, 1 / 3)),
    ]
    # What occurs often counts once among n-grams, but each time in a subsequence.
    assert figures("哈哈哈哈", "哈哈") == [
        pytest.approx((1, 1, 1)),
        pytest.approx((1, 1, 1)),
        pytest.approx((1 / 2, 1, 2 / 3)),
    ]


@pytest.mark.slow
def test_case_is_lowered_on_both_sides_or_kept_and_whitespace_ignored() -> None:
    """Prevents lower case on one side only or always, and spaces that count as characters."""
    assert figures("基于 SVM\n的", "基于svm的", "lower") == [pytest.approx((1, 1, 1))] * 3
    assert figures("基于svm的", "基于 SVM\n的", "lower") == [pytest.approx((1, 1, 1))] * 3
    # 基 于 的 are 3 of 6 characters and the longest subsequence, 基于 is 1 of 5 pairs.
    assert figures("基于svm的", "基于 SVM\n的", "kept") == [
        pytest.approx((3 / 6, 3 / 6, 3 / 6)),
        pytest.approx((1 / 5, 1 / 5, 1 / 5)),
        pytest.approx((3 / 6, 3 / 6, 3 / 6)),
    ]
    assert split_words(" Deep  Learning的\n方法") == ["Deep", "Learning", "的", "方法"]
    for case, expected in (("lower", 1), ("kept", 1 / 3)):
        words = compute_rouge("deep learning方法", "Deep Learning方法", split_words, case=case)
        assert words["1"].f == pytest.approx(expected)


@pytest.mark.slow
def test_real_headlines_lose_score_to_lower_case_only_where_case_is_kept(shared: Path) -> None:
    """Prevents scores of LCSTS that cannot be compared with published ones, which keep the case.

    The predictions are the true headlines as an uncased tokenizer writes them.
    """
    import rouge_chinese

    records = find_source("lcsts").iter_records(shared / "data/summary/lcsts/PART_III.txt")
    titles = [record.title for record in records if isinstance(record, Summary)]
    assert len(titles) == 725 and sum(title != title.lower() for title in titles) > 50
    theirs = rouge_chinese.Rouge().get_scores(
        [" ".join("".join(title.lower().split())) for title in titles],
        [" ".join("".join(title.split())) for title in titles],
        avg=True,
    )
    kept = [compute_rouge(title.lower(), title, case="kept") for title in titles]
    lower = [compute_rouge(title.lower(), title, case="lower") for title in titles]
    for variant in ROUGE_VARIANTS:
        mean = np.mean([scores[variant].f for scores in kept])
        assert mean == pytest.approx(theirs[f"rouge-{variant}"]["f"]) and mean < 0.99
        assert [scores[variant].f for scores in lower] == pytest.approx([1] * 725)


@pytest.mark.parametrize(
    ("prediction", "reference"), [("", "标题"), ("标题", ""), (" \n", "标题"), ("", "")]
)
def test_empty_text_scores_zero(prediction: str, reference: str) -> None:
    """Prevents an empty answer, for which rouge-chinese raises, from ending an evaluation."""
    for units in (split_characters, split_words):
        assert all(
            (each.precision, each.recall, each.f) == (0, 0, 0)
            for each in compute_rouge(prediction, reference, units, case="kept").values()
        )


@pytest.mark.slow
def test_scores_match_rouge_chinese_on_real_titles(root: Path) -> None:
    """Prevents other scores than those of the package, by sentence splitting or joining."""
    import rouge_chinese

    rows = [
        line.split("\t")
        for line in (root / "assets/sample/summary/csl/test.tsv").read_text().splitlines()[:40]
    ]
    for units in (split_characters, split_words):
        for title, abstract in rows:
            for text in (abstract, abstract[:30], abstract[30:60]):
                plain = rouge_chinese.Rouge().get_scores(
                    " ".join(units(text)), " ".join(units(title))
                )[0]
                scores = compute_rouge(text, title, units, case="kept")
                for kind in ROUGE_VARIANTS:
                    theirs = plain[f"rouge-{kind}"]
                    assert (scores[kind].precision, scores[kind].recall, scores[kind].f) == (
                        theirs["p"],
                        theirs["r"],
                        theirs["f"],
                    )


def by_definition(
    prediction: list[str], reference: list[str], n: int | None
) -> tuple[float, float]:
    """Return precision and recall, from sets of n-grams or the LCS table."""
    if n is None:
        table = np.zeros((len(prediction) + 1, len(reference) + 1), int)
        for i, one in enumerate(prediction):
            for j, other in enumerate(reference):
                table[i + 1, j + 1] = (
                    table[i, j] + 1 if one == other else max(table[i, j + 1], table[i + 1, j])
                )
        return table[-1, -1] / len(prediction), table[-1, -1] / len(reference)
    first, second = (
        {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
        for text in (prediction, reference)
    )
    return len(first & second) / max(len(first), 1), len(first & second) / max(len(second), 1)


@pytest.mark.slow
@given(st.text("。！？?.…”’a1 \n驼河", min_size=1), st.text("。！？?.…”’a1 \n驼河", min_size=1))
@settings(deadline=None, max_examples=100)
def test_scores_match_definition_on_any_text(prediction: str, reference: str) -> None:
    """Prevents sentence patterns of rouge-chinese from losing or adding units."""
    prediction_units, reference_units = split_characters(prediction), split_characters(reference)
    if prediction_units and reference_units:
        scores = compute_rouge(prediction, reference, case="kept")
        for kind, n in zip(ROUGE_VARIANTS, (1, 2, None), strict=True):
            assert (scores[kind].precision, scores[kind].recall) == pytest.approx(
                by_definition(prediction_units, reference_units, n)
            )


@pytest.mark.slow
def test_long_texts_score_correctly_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents gigabytes of memory, or a recursion error, for a long answer."""
    draw = random.Random(0)
    one, other = ("".join(draw.choice("甲乙丙丁戊己庚辛。") for _ in range(700)) for _ in range(2))
    long = compute_rouge(one, other, case="kept")
    monkeypatch.setattr(rouge_metric, "_MAX_TABLE_CELLS", 1 << 20)
    assert compute_rouge(one, other, case="kept") == long
    monkeypatch.undo()
    tracemalloc.start()
    figures = compute_rouge(one * 3, other * 3, case="kept")
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    assert 0.4 < figures["l"].f < 1


@pytest.mark.slow
def test_jieba_is_quiet_and_reads_no_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Prevents log lines in the output, and a dictionary from the shared temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "jieba.cache").write_bytes(b"not a cache")
    rouge_metric._jieba_segmenter.cache_clear()
    assert split_words("图像分割方法") == ["图像", "分割", "方法"]
    assert capfd.readouterr() == ("", "") and logging.getLogger("jieba").level >= logging.WARNING
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"not a cache"]


@pytest.mark.slow
def test_confidence_intervals_cover_the_mean() -> None:
    """Prevents an interval of examples instead of the mean, other draws, mixed-up columns."""
    draw = np.random.default_rng(3)
    values = np.stack([draw.normal(0.5, 0.1, 400), draw.normal(0.2, 0.02, 400)], 1).reshape(
        400, 2, 1
    )
    mean, low, high = bootstrap_mean_interval(values)
    assert mean == pytest.approx(values.mean(0))
    half = 1.96 * values.std(0) / 20
    near = 0.15 * half.max()
    assert low == pytest.approx(mean - half, abs=near) and high == pytest.approx(
        mean + half, abs=near
    )
    assert np.array_equal(bootstrap_mean_interval(values), bootstrap_mean_interval(values))
    assert bootstrap_mean_interval(np.array([0.25])).tolist() == [0.25] * 3


def test_table_columns_are_separated() -> None:
    """Prevents scores under the wrong name."""
    table = RougeTable.from_predictions(["小驼在", "河边的人"], ["小驼在河边", "河边的人"], "kept")
    first = table.example_scores(0)
    assert first["characters"]["rouge-2"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f": pytest.approx(2 / 3, abs=1e-6),
    }
    assert first["jieba words"]["rouge-1"]["precision"] == pytest.approx(
        compute_rouge("小驼在", "小驼在河边", split_words, case="kept")["1"].precision, abs=1e-6
    )
    recall = table.summarize_scores()["characters"]["rouge-1"]["recall"]
    assert (
        recall["mean"] == pytest.approx(0.8)
        and recall["low"] == pytest.approx(0.6)
        and recall["high"] == pytest.approx(1.0)
    )
    assert table.rank_examples() == [0, 1] and len(table.format_lines()) == 7


def test_baselines_match_hand_computed_values() -> None:
    """Prevents weaker baselines: a sentence that ends within a number, a wrong best."""
    article = " 精度达到3.5倍.本文提出一种方法！用于图像分割, 效果好。”完"
    assert split_sentences(article) == [
        "精度达到3.5倍.",
        "本文提出一种方法！",
        "用于图像分割, 效果好。",
        "”完",
    ]
    assert (
        first_20_characters(article, "", "kept") == article.strip()[:20]
        and len(first_20_characters(article, "", "kept")) == 20
    )
    assert first_sentence(article, "", "kept") == "精度达到3.5倍."
    assert first_sentence("", "", "kept") == ""
    assert (
        oracle_sentence(article, "图像分割的效果", "kept") == "用于图像分割, 效果好。"
        and oracle_sentence("", "标题", "kept") == ""
    )
    # The best sentence is that of the score in which it is counted.
    article, title = "iphone六发布了。苹果发布了新品。", "苹果 IPHONE"
    assert oracle_sentence(article, title, "kept") == "苹果发布了新品。"
    assert oracle_sentence(article, title, "lower") == "iphone六发布了。"
