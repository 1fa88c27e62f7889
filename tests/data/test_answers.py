"""On real records of every source: the ids with a loss are the answers, each with its `<eos>`, and nothing else."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from data.batching.examples import RequestSampling, build_examples, encode_records
from data.readers.files import expand_inputs
from data.records import Conversation, Summary
from data.sources import find_source
from model.chat_template.template import Template
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer

SETS = {
    "redgpt": "sft/redgpt",
    "naturalconv": "sft/naturalconv",
    "belle-0.5m": "sft/belle/train_0.5M_CN.json.gz",
    "belle-0.8m": "sft/belle/multiturn_chat_0.8M.json.gz",
    "deepctrl": "sft/deepctrl",
    "pclue": "sft/pclue",
    "alpaca": "sft/alpaca",
    "sharegpt": "sft/sharegpt",
    "csl": "summary/csl_clge/test.tsv",
    "csl (authors)": "summary/csl_ts/dev.tsv",
    "lcsts": "summary/lcsts",
}
RECORDS = 120


@pytest.fixture(scope="session")
def real_tokenizer(shared: Path) -> Tokenizer:
    return load_tokenizer(shared / "tokenizer" / "llama-chinese-65k.model")


@pytest.mark.parametrize("name", SETS)
def test_loss_mask_is_exactly_the_answers(
    shared: Path, real_tokenizer: Tokenizer, name: str
) -> None:
    """A source whose questions are learned, or whose answers are not; an answer that does not learn to stop."""
    tokenizer = real_tokenizer
    source = find_source(name.split(" ")[0])
    read = (
        record
        for path in expand_inputs([str(shared / "data" / SETS[name])])
        for record in source.iter_records(path)
    )
    records = list(
        itertools.islice((r for r in read if isinstance(r, Conversation | Summary)), RECORDS)
    )
    assert len(records) >= 100
    length = 1 << 17
    examples = build_examples(
        source.kind,
        encode_records(records, tokenizer, Template()),
        length,
        tokenizer,
        Template(),
        RequestSampling(seed=0),
    )
    for index, record in enumerate(records):
        wanted = (
            [turn.answer for turn in record.turns]
            if isinstance(record, Conversation)
            else [record.title]
        )
        ids, scored = examples.example(index, 0)
        targets = ids[1:]
        # Stretches of scored targets, each ending with its <eos>.
        edges = np.flatnonzero(np.diff(np.concatenate([[0], scored.astype(np.int8), [0]])))
        answers = []
        for start, stop in edges.reshape(-1, 2):
            stretch = targets[start:stop]
            assert stretch[-1] == tokenizer.eos_id and tokenizer.eos_id not in stretch[:-1]
            answers.append(tokenizer.decode(stretch.tolist()))
        assert answers == [answer.replace("▁", " ") for answer in wanted]
        asked = tokenizer.decode(ids.tolist())
        parts = (
            [record.article]
            if isinstance(record, Summary)
            else [record.reference, *(t.question for t in record.turns)]
        )
        assert all(part.replace("▁", " ") in asked for part in parts)
