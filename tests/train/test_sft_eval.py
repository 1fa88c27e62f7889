"""Dev scores of fine-tuning are comparable with the scores of the test split."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.metrics_file import read_metrics
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import ShardSet
from data.sources.base import LetterCase
from evaluate.metrics.rouge import compute_rouge
from model.chat_template.template import Template
from model.decode.batch_generate import DecodedAnswer
from model.tokenizer.base import Tokenizer
from tests.helpers.random_llama import random_llama
from train import sft_eval
from train.monitoring.metrics_log import MetricsLog
from train.options import SftOptions
from train.run.mixture import MixtureSet
from train.sft_eval import AnswerEvaluator
from train.sft_run import build_dev_sets

TITLE = "iPhone 6 在香港发布"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sources", "case", "label"),
    [
        (("csl",), "lower", "lower-cased"),
        (("lcsts",), "kept", "case kept"),
        (("csl", "lcsts"), "lower", "lower-cased"),
    ],
)
def test_dev_rouge_is_counted_in_the_case_of_the_source(
    root: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sources: tuple[str, ...],
    case: LetterCase,
    label: str,
) -> None:
    """Prevents another letter case in training than in evaluate.rouge."""
    groups = []
    for source in sources:
        files = []
        for split in ("train", "dev"):
            article = f"{source} {split}：苹果公司的新手机今天在香港发布，早上就有人排队。"
            field = {"csl": "content", "lcsts": "text"}[source]
            path = tmp_path / f"{source}-{split}.jsonl"
            path.write_text(json.dumps({field: article, "summary": TITLE}), encoding="utf-8")
            files.append((str(path),))
        groups.append(SourceGroup(source, *files))
    prepare_groups(groups, tmp_path / "set", root / "assets/tokenizer", PrepareOptions(workers=1))

    def answer_in_lower_case(
        _model: object, prompts: list[list[int]], **_options: Any
    ) -> list[DecodedAnswer]:
        ids = tokenizer.encode(TITLE.lower())
        return [DecodedAnswer(ids, reached_stop_id=True) for _ in prompts]

    monkeypatch.setattr(sft_eval, "generate_batch", answer_in_lower_case)
    options = SftOptions()
    mixture = (MixtureSet("phones", ShardSet.open(tmp_path / "set"), 1.0),)
    dev_sets = build_dev_sets(options, mixture, tokenizer, Template())
    evaluator = AnswerEvaluator(options, tokenizer, Template(), dev_sets)
    model = random_llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=512)
    evaluator.evaluate(model, 1, MetricsLog(tmp_path, 0))
    [record] = [record for record in read_metrics(tmp_path) if record["kind"] == "rouge"]
    assert record["case"] == case and record["examples"] == len(sources)
    expected = compute_rouge(TITLE.lower(), TITLE, case=case)["1"].f
    assert record["rouge_1"] == pytest.approx(expected)
    assert f"ROUGE-1 F (characters, {label}) {expected:.4f}" in capsys.readouterr().out
