"""Evaluation during pretraining."""

from pathlib import Path
from typing import Any

import pytest

from data.shards import ShardSet
from model.llama import Llama
from tests.helpers.training import build_spec
from train.monitoring.metrics_log import InMemoryMetricsLog
from train.options import PretrainOptions
from train.pretrain_eval import TextEvaluator


class RecordingLog(InMemoryMetricsLog):
    """Keeps every record."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict[str, Any]] = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        """See `MetricsLog`."""
        self.records.append({"kind": kind, "step": step, **values})


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [64, 10**6])
def test_validation_is_a_prefix_and_the_final_score_is_all(
    tmp_path: Path, shard_set: Path, tokens: int
) -> None:
    """Catch a final loss on the first tokens alone, and a second score of the same tokens."""
    shards = ShardSet.open(shard_set)
    split = shards.load_text("validation")
    tokenizer = shards.load_tokenizer()
    options = PretrainOptions.model_validate(
        {"evaluation": {"tokens": tokens, "sample_tokens": 2, "prompts": ("", "从前")}}
    )
    evaluator = TextEvaluator(options, tokenizer, [split])
    model = Llama(build_spec(tmp_path, shard_set).model_config).init_weights(0).eval()
    log = RecordingLog()
    evaluator.evaluate(model, 3, log)
    evaluator.evaluate_all(model, 3, log)
    kinds = [record["kind"] for record in log.records]
    num_tokens = [record["tokens"] for record in log.records if "tokens" in record]
    if tokens < split.num_tokens:
        assert kinds == ["validation", "sample", "sample", "final"]
        assert num_tokens == [tokens - 1, split.num_tokens - 1]
    else:
        assert kinds == ["validation", "sample", "sample"]
        assert num_tokens == [split.num_tokens - 1]


def test_set_without_validation_split_has_no_data(shard_set: Path) -> None:
    """Catch a run that waits for a first validation loss which never comes."""
    shards = ShardSet.open(shard_set)
    tokenizer = shards.load_tokenizer()
    empty = shards.load_text("test")
    assert not TextEvaluator(PretrainOptions(), tokenizer, [empty]).has_data
    both = [empty, shards.load_text("validation")]
    assert TextEvaluator(PretrainOptions(), tokenizer, both).has_data
