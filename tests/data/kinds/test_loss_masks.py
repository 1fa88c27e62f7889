"""On real records of every source, the ids with a loss are the answers and their `<eos>`."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from data.kinds import find_kind
from data.readers.files import expand_inputs
from data.records import Conversation, Record, Summary
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
NUM_RECORDS = 120


@pytest.fixture(scope="session")
def real_tokenizer(shared: Path) -> Tokenizer:
    return load_tokenizer(shared / "tokenizer" / "llama-chinese-65k.model")


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_loss_mask_is_exactly_the_answers(
    shared: Path, real_tokenizer: Tokenizer, name: str
) -> None:
    """Prevents a loss on questions, no loss on an answer, and answers that never stop."""
    tokenizer = real_tokenizer
    source = find_source(name.split(" ")[0])
    all_records = (
        record
        for path in expand_inputs([str(shared / "data" / SETS[name])])
        for record in source.iter_records(path)
    )
    usable = (record for record in all_records if isinstance(record, Record))
    records = list(itertools.islice(usable, NUM_RECORDS))
    assert len(records) >= 100
    kind = find_kind(source.kind)
    sequences = kind.encode_records(tokenizer, Template(), records)
    examples = kind.examples(sequences, 1 << 17, tokenizer, Template(), 0)
    for index, record in enumerate(records):
        questions, answers = questions_and_answers(record)
        ids, loss_mask = examples.example(index, 0)
        assert answers_of(ids[1:], loss_mask, tokenizer) == [
            answer.replace("▁", " ") for answer in answers
        ]
        text = tokenizer.decode(ids.tolist())
        assert all(question.replace("▁", " ") in text for question in questions)


def questions_and_answers(record: Record) -> tuple[list[str], list[str]]:
    if isinstance(record, Summary):
        return [record.article], [record.title]
    assert isinstance(record, Conversation)
    questions = [record.reference, *(turn.question for turn in record.turns)]
    return questions, [turn.answer for turn in record.turns]


def answers_of(targets: np.ndarray, loss_mask: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """Return the text of each stretch of targets with a loss; check that it ends with `<eos>`."""
    padded = np.concatenate([[0], loss_mask.astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(padded))
    answers = []
    for start, stop in edges.reshape(-1, 2):
        stretch = targets[start:stop]
        assert stretch[-1] == tokenizer.eos_id and tokenizer.eos_id not in stretch[:-1]
        answers.append(tokenizer.decode(stretch.tolist()))
    return answers
