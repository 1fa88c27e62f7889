"""Recall and mean reciprocal rank of an index."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from data.index.build import build_index
from data.index.options import IndexOptions
from data.index.passage_index import Hit
from data.prepare.source_args import SourceGroup
from evaluate.retrieval.measure import SearchResults, evaluate_retrieval
from evaluate.retrieval.options import RetrievalOptions
from evaluate.retrieval.questions import ParagraphQuestion

CITIES = {"杭州": "西湖", "南京": "玄武湖", "武汉": "东湖", "昆明": "滇池"}


def write_squad(path: Path) -> Path:
    """Write a paragraph with two questions for each city; the second has no answer."""
    paragraphs = [
        {
            "context": f"{city}是一座城市。城里的湖叫{lake}，游人很多。",
            "qas": [
                {"id": f"{city}1", "question": f"{city}的湖叫什么？", "answers": [{"text": lake}]},
                {"id": f"{city}2", "question": "？", "answers": [], "is_impossible": True},
            ],
        }
        for city, lake in CITIES.items()
    ]
    data = {"data": [{"title": "城市", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(data, ensure_ascii=False), "utf-8")
    return path


def index_squad(out: Path, *files: Path) -> Path:
    """Build an index of the paragraphs of files."""
    build_index([SourceGroup("squad", tuple(map(str, files)))], IndexOptions(out=out))
    return out


def evaluate(index: Path, file: Path, **options: Any) -> dict[str, Any]:
    """Return the figures of the command."""
    return evaluate_retrieval(RetrievalOptions(index=index, input=(str(file),), **options)).metrics


def test_scores_follow_from_the_ranks() -> None:
    """Prevents an off-by-one at the limits of recall, and reciprocals below the tenth rank."""
    results = SearchResults()
    ranks = [1, 2, 5, 6, 10, 11, 20, None]
    judgement = "the passage holds the answer"
    results.ranks[judgement] = ranks
    scores = results.scores(judgement)
    assert [scores[name].count for name in ("R@1", "R@5", "R@20")] == [1, 3, 7]
    assert scores["MRR@10"].count == pytest.approx(1 + 1 / 2 + 1 / 5 + 1 / 6 + 1 / 10)
    assert all(score.total == 8 for score in scores.values())


def test_right_is_judged_twice() -> None:
    """Prevents an answer in another paragraph from counting as the right paragraph, and vice versa.

    The passage is a window of the paragraph; white space does not matter.
    """
    question = ParagraphQuestion("哪个湖？", ("玄武湖", "西湖"), "城里的湖叫西湖。\n游人很多。")
    for text, holds, is_right in (
        ("城里的湖叫西 湖。", True, True),
        ("游人很多。", False, True),
        ("西湖在杭州。", True, False),
        ("没有湖。", False, False),
    ):
        hit = Hit("西湖", text, 1.0, "a:1", 0.5)
        assert (question.is_answered_by(hit), question.is_about(hit)) == (holds, is_right)


@pytest.mark.slow
def test_questions_find_their_paragraphs(tmp_path: Path) -> None:
    """Prevents figures of other questions, and other tokens that search other passages."""
    file = write_squad(tmp_path / "dev.json")
    index = index_squad(tmp_path / "index", file)
    metrics = evaluate(index, file)
    assert (metrics["questions"], metrics["passages"], metrics["not_indexed"]) == (4, 4, 0)
    assert metrics["random_paragraph"] == 0.25
    assert list(metrics["tokens"]) == ["characters", "jieba", "pieces"]
    for figures in metrics["tokens"].values():
        for judgement in ("answer", "paragraph"):
            assert figures[judgement]["R@1"]["rate"] == 1.0
        assert figures["unknown"] == 0
    assert evaluate(index, file, limit=2, compare=())["questions"] == 2


def test_question_of_unknown_words_counts_as_missed(tmp_path: Path) -> None:
    """Prevents questions that find nothing from being left out of the share."""
    file = write_squad(tmp_path / "dev.json")
    index = index_squad(tmp_path / "index", file)
    data = json.loads(file.read_text("utf-8"))
    data["data"][0]["paragraphs"][0]["qas"][0]["question"] = "Which lake?"
    file.write_text(json.dumps(data, ensure_ascii=False), "utf-8")
    figures = evaluate(index, file, compare=())["tokens"]["characters"]
    assert (figures["unknown"], figures["answer"]["R@20"]["rate"]) == (1, 0.75)


def test_index_without_the_paragraphs_is_refused(tmp_path: Path) -> None:
    """Prevents a share of 0 % that says nothing of the search."""
    index = index_squad(tmp_path / "index", write_squad(tmp_path / "dev.json"))
    other = tmp_path / "other.json"
    other.write_text(
        json.dumps(
            {
                "data": [
                    {
                        "paragraphs": [
                            {
                                "context": "别的",
                                "qas": [{"id": "1", "question": "问", "answers": [{"text": "别"}]}],
                            }
                        ]
                    }
                ]
            }
        ),
        "utf-8",
    )
    with pytest.raises(UserError, match="has none of the paragraphs of --input"):
        evaluate(index, other)
    both = evaluate_retrieval(
        RetrievalOptions(index=index, input=(str(tmp_path / "dev.json"), str(other)), compare=())
    )
    assert both.metrics["not_indexed"] == 1
    assert any("their paragraph is not in the index: 1 questions" in line for line in both.lines)


@pytest.mark.slow
def test_real_questions_find_their_paragraphs(tmp_path: Path, shared: Path) -> None:
    """Prevents tokens or a formula that find less than the figures of docs/evaluation.md."""
    file = shared / "data" / "eval" / "DRCD_dev_half.json"
    index = index_squad(tmp_path / "index", file)
    figures = evaluate(index, file, compare=())["tokens"]["characters"]
    assert figures["answer"]["R@1"]["rate"] >= 0.93
    assert figures["paragraph"]["R@1"]["rate"] >= 0.945
