"""Interrupted measurements go on where they were."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from evaluate.partial_results import PartialResults, partial_results
from evaluate.result import EvalResult, report_result


def _double(asked: list[int]) -> object:
    def compute(items: Sequence[int]) -> list[int]:
        asked.extend(items)
        return [2 * item for item in items]

    return compute


def test_an_interrupted_measurement_goes_on(tmp_path: Path) -> None:
    """Questions that are computed again after an interruption, a torn line that hides another."""
    output = tmp_path / "result.json"
    partial = tmp_path / "result.json.partial"
    asked: list[int] = []

    def interrupt_after_two_chunks(items: Sequence[int]) -> list[int]:
        if len(asked) >= 4:
            raise KeyboardInterrupt
        asked.extend(items)
        return [2 * item for item in items]

    with pytest.raises(KeyboardInterrupt):
        partial_results(output, {"model": "a"}).compute(
            "test", range(9), interrupt_after_two_chunks, chunk_size=2
        )
    # A kill in the middle of a write.
    with partial.open("a") as file:
        file.write('{"key": "to')
    for expected_asked in ([4, 5, 6, 7, 8], []):
        asked = []
        results = PartialResults(partial, {"model": "a"})
        assert results.compute("test", range(9), _double(asked), chunk_size=2) == list(
            range(0, 18, 2)
        )
        assert asked == expected_asked
    # A damaged line is computed again.
    partial.write_text(partial.read_text().replace('"result": 4}', '"result": 5}'))
    asked = []
    results = PartialResults(partial, {"model": "a"})
    assert results.compute("test", range(9), _double(asked)) == list(range(0, 18, 2))
    assert asked == [2]
    # Of another model nothing is taken over, and its results are kept.
    asked = []
    partial_results(output, {"model": "b"}).compute("test", range(9), _double(asked))
    assert len(asked) == 9
    assert json.loads(partial.read_text().splitlines()[0]) == {"model": "b"}
    # Deleted once the results are written, not before: a disk may be full.
    result = EvalResult(["done"], {}, {})
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError):
        report_result(result, output, folder)
    assert partial.exists()
    report_result(result, output)
    assert not partial.exists()
    assert '{"model": "a"}' in partial.with_name(f"{partial.name}.old").read_text()


def test_equal_items_are_computed_once(tmp_path: Path) -> None:
    """Results of one name taken for those of another; the same question answered twice."""
    asked: list[int] = []
    results = PartialResults(None, {})
    assert results.compute("first", [3, 3, 1], _double(asked)) == [6, 6, 2]
    assert asked == [3, 1]
    results.compute("second", [3], _double(asked))
    assert asked == [3, 1, 3]
