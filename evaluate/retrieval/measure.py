"""Measure recall and mean reciprocal rank of an index, and of the same passages by other tokens."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.errors import UserError
from common.progress import progress_bar
from data.corpora.sample import SMALL_TOKENIZER
from data.index.build import write_index
from data.index.passage_index import Hit, PassageIndex, UnknownQueryError
from data.index.passages import Passage, split_windows
from evaluate.metrics.proportion import Proportion
from evaluate.result import EvalResult, Row, report_result
from evaluate.retrieval.options import OtherTokens, RetrievalOptions
from evaluate.retrieval.other_tokens import load_tokenize
from evaluate.retrieval.questions import ParagraphQuestion, read_questions

RECALL_RANKS = (1, 5, 20)
RECIPROCAL_RANKS = 10
METRICS = (*(f"R@{rank}" for rank in RECALL_RANKS), f"MRR@{RECIPROCAL_RANKS}")
JUDGEMENTS: dict[str, Callable[[ParagraphQuestion, Hit], bool]] = {
    "the passage holds the answer": ParagraphQuestion.is_answered_by,
    "the passage is of the right paragraph": ParagraphQuestion.is_about,
}
_LABELS = {
    "characters": "characters and pairs",
    "jieba": "words of jieba",
    "pieces": "pieces of --tokenizer",
}


@dataclass
class SearchResults:
    """What all questions found by tokens of one kind."""

    seconds: list[float] = field(default_factory=list)
    """Time of each search."""
    first_hits: list[Hit | None] = field(default_factory=list)
    """The best passage of each question, None if no passage has a token of it."""
    ranks: dict[str, list[int | None]] = field(
        default_factory=lambda: {judgement: [] for judgement in JUDGEMENTS}
    )
    """By judgement: the rank of the first right passage for each question, from 1, or None."""

    def scores(self, judgement: str) -> dict[str, Proportion]:
        """Return recall at each of RECALL_RANKS, and the mean reciprocal rank."""
        ranks = self.ranks[judgement]
        found = np.array([rank for rank in ranks if rank is not None])
        counts = [int((found <= limit).sum()) for limit in RECALL_RANKS]
        sum_of_reciprocals = float((1 / found[found <= RECIPROCAL_RANKS]).sum())
        return {
            name: Proportion(count, len(ranks))
            for name, count in zip(METRICS, [*counts, sum_of_reciprocals], strict=True)
        }

    def milliseconds(self) -> dict[str, float]:
        """Return the median and the 95th percentile of the time of a search."""
        median, slow = np.percentile(self.seconds, [50, 95]) * 1000
        return {"median": round(float(median), 2), "p95": round(float(slow), 2)}


def run_retrieval(options: RetrievalOptions) -> None:
    """Measure an index; report the result."""
    report_result(evaluate_retrieval(options), options.json_file, options.predictions)


def evaluate_retrieval(options: RetrievalOptions) -> EvalResult:
    """Search for the passages of all questions, by the tokens of the index and by other ones.

    Raises UserError if the paragraph of no question is in the index.
    """
    index = PassageIndex.open(options.index)
    questions = read_questions(options.input, options.limit)
    num_missing = sum(not index.contains_document(question.paragraph) for question in questions)
    if num_missing == len(questions):
        raise UserError(
            f"--index {options.index}: has none of the paragraphs of --input "
            f"{' '.join(options.input)}: add them with python -m data.index --source squad"
        )
    results = {"characters": _search_all(index, questions, "characters")}
    for tokens in options.compare:
        results[tokens] = _search_by(tokens, index, questions, options.tokenizer or SMALL_TOKENIZER)
    windows = [len(split_windows(question.paragraph, index.windows)) for question in questions]
    metrics = {
        "questions": len(questions),
        "passages": len(index),
        "not_indexed": num_missing,
        "random_paragraph": sum(windows) / len(windows) / len(index),
        "tokens": {tokens: _to_json(result) for tokens, result in results.items()},
    }
    rows = [
        _prediction(question, hit, rank)
        for question, hit, rank in zip(
            questions,
            results["characters"].first_hits,
            results["characters"].ranks["the passage holds the answer"],
            strict=True,
        )
    ]
    return EvalResult(
        _format_lines(metrics, results),
        metrics,
        {"index": str(options.index), "fingerprint": index.fingerprint},
        rows,
    )


def _search_by(
    tokens: OtherTokens,
    index: PassageIndex,
    questions: Sequence[ParagraphQuestion],
    tokenizer: Path,
) -> SearchResults:
    """Search the passages of an index by other tokens, in files that are deleted afterwards."""
    tokenize = load_tokenize(tokens, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        with progress_bar(f"indexing {_LABELS[tokens]}", len(index), "passages") as bar:
            passages = _count_passages(index, bar)
            other = write_index(passages, Path(folder), index.windows, tokenize)
        return _search_all(other, questions, tokens)


def _count_passages(index: PassageIndex, bar: "tqdm[Any]") -> Iterator[Passage]:
    """Yield all passages of an index, and show how many."""
    for passage in index.passages():
        yield passage
        bar.update()


def _search_all(
    index: PassageIndex, questions: Sequence[ParagraphQuestion], tokens: str
) -> SearchResults:
    """Search for the passages of each question, and judge them."""
    results = SearchResults()
    with progress_bar(f"searching {_LABELS[tokens]}", len(questions), "questions") as bar:
        for question in questions:
            start_time = time.perf_counter()
            try:
                hits = index.search(question.question, max(RECALL_RANKS))
            except UnknownQueryError:
                hits = []
            results.seconds.append(time.perf_counter() - start_time)
            results.first_hits.append(hits[0] if hits else None)
            for judgement, is_right in JUDGEMENTS.items():
                right_ranks = (rank for rank, hit in enumerate(hits, 1) if is_right(question, hit))
                results.ranks[judgement].append(next(right_ranks, None))
            bar.update()
    return results


def _prediction(question: ParagraphQuestion, hit: Hit | None, rank: int | None) -> Row:
    """Return a line of `--predictions`; the rank is that of the first passage with the answer."""
    return {
        "question": question.question,
        "reference": question.answers[0],
        "prediction": hit.text if hit else "",
        "title": hit.title if hit else "",
        "source": hit.source if hit else "",
        "score": hit.score if hit else 0.0,
        "rank": rank,
    }


def _to_json(results: SearchResults) -> dict[str, Any]:
    """Return the figures of one kind of tokens for `--json`."""
    return {
        "unknown": results.first_hits.count(None),
        "milliseconds": results.milliseconds(),
        **{
            key: {name: score.to_json() for name, score in results.scores(judgement).items()}
            for key, judgement in zip(("answer", "paragraph"), JUDGEMENTS, strict=True)
        },
    }


def _format_lines(metrics: dict[str, Any], results: dict[str, SearchResults]) -> list[str]:
    """Return the lines to print."""
    lines = [f"{metrics['questions']:,} questions, {metrics['passages']:,} passages in the index"]
    if metrics["not_indexed"]:
        lines.append(f"their paragraph is not in the index: {metrics['not_indexed']:,} questions")
    for judgement in JUDGEMENTS:
        lines += ["", f"{judgement:39}" + "".join(f"{name:>24}" for name in METRICS)]
        for tokens, result in results.items():
            cells = "".join(f"{score!s:>24}" for score in result.scores(judgement).values())
            lines.append(f"  {_LABELS[tokens]:37}{cells}")
    random_share = metrics["random_paragraph"]
    lines.append(f"  a random passage{' ' * 23}{f'{random_share:.2%}':>22}")
    lines.append("")
    for tokens, result in results.items():
        times = result.milliseconds()
        unknown = result.first_hits.count(None)
        lines.append(
            f"by {_LABELS[tokens]}: {times['median']:.1f} ms a search, 95 % within "
            f"{times['p95']:.1f} ms; no known token: {unknown:,} questions"
        )
    return lines
