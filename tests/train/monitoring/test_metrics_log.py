"""The metrics log as training reads it back."""

from pathlib import Path

import pytest

from common.metrics_file import read_metrics
from train.monitoring.metrics_log import InMemoryMetricsLog, MetricsLog, SelectionMetric

ROUGE = SelectionMetric("rouge", "rouge_1", higher_is_better=True)


def test_mixture_is_evaluated_once_per_step(tmp_path: Path) -> None:
    """Catch a best step by one set alone, and patience that counts sets, not evaluations."""
    log = MetricsLog(tmp_path, 0)
    for step, hard, easy in ((2, 0.25, 0.75), (4, 0.5, 0.7), (6, 0.4, 0.72)):
        log.write("rouge", step, rouge_1=hard, set="csl")
        log.write("rouge", step, rouge_1=easy, set="lcsts")
    assert [step for step, _ in log.metric_history(ROUGE)] == [2, 4, 6]
    assert log.metric_history(ROUGE)[0][1] == 0.5 and log.best_step(ROUGE) == 4
    log.close()


def test_interrupted_evaluation_is_logged_once(tmp_path: Path) -> None:
    """Catch two scores of one step after a kill in an evaluation, which would use up patience."""
    log = MetricsLog(tmp_path, 0)
    log.write("train", 2, loss=1.0)
    log.write("rouge", 2, rouge_1=0.5)
    log.write("evaluated", 2)
    log.write("train", 4, loss=0.9)
    log.write("rouge", 4, rouge_1=0.4)
    log.close()
    log = MetricsLog(tmp_path, 4)
    assert [(record["kind"], record["step"]) for record in read_metrics(tmp_path)] == [
        ("train", 2),
        ("rouge", 2),
        ("evaluated", 2),
        ("train", 4),
    ]
    log.write("rouge", 4, rouge_1=0.4)
    assert log.metric_history(ROUGE) == [(2, 0.5), (4, 0.4)]
    log.close()


@pytest.mark.slow
def test_only_evaluations_stay_in_memory(tmp_path: Path) -> None:
    """Catch memory, and time at each checkpoint, that grow with the steps of a run."""
    for log in (MetricsLog(tmp_path, 0), InMemoryMetricsLog()):
        log.write("rouge", 2, rouge_1=0.5)
        log.write("evaluated", 2)
        for step in range(3, 60):
            log.write("train", step, loss=1.0)
            log.write("skipped", step, loss="nan")
            log.write("spike", step, loss=9.0)
            log.write("sample", step, prompt="", text="一")
        assert (
            len(log._evaluation_records) == 2
            and log.has_record("evaluated", 2)
            and log.best_step(ROUGE) == 2
        )
        log.close()
    assert len(read_metrics(tmp_path)) == 2 + 57 * 4
    again = MetricsLog(tmp_path, 59)
    assert len(again._evaluation_records) == 2 and again.metric_history(ROUGE) == [(2, 0.5)]
    again.close()


def test_reopened_log_drops_records_after_resume_step(tmp_path: Path) -> None:
    """Catch doubled lines after a crash, and a last line that the crash cut short."""
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write("train", step, loss=1.0 / step)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "sample", "step": 3, "prompt": "", "text": "一\u2028二"}\n')
        file.write('{"kind": "evaluated", "step": 3}\n')
        file.flush()
        file.buffer.write('{"kind": "sample", "step": 3, "text": "小'.encode()[:-1])
    MetricsLog(tmp_path, 3).close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 3, 3]
    MetricsLog(tmp_path, 2).close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]
