"""Preference pairs in the schemas of others: the question, both answers, and nothing else."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from common.errors import UserError
from data.corpora import sample
from data.corpora.detect import detect_source
from data.prepare.options import PrepareOptions
from data.readers.files import RawRecord
from data.records import BadRecord, Preference, SkippedRecord, Turn
from data.sources import SOURCES
from tests.helpers.prepare import prepare_source

Row = dict[str, Any]
PLAIN = Preference((), "问", "好", "差")
CONTEXT = Turn("一", "二", has_loss=False)
LONG = Preference((CONTEXT,), "三", "好的，四", "好的，五", system="你是老师。")


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def human(text: str) -> Row:
    return {"from": "human", "value": text}


def gpt(text: str) -> Row:
    return {"from": "gpt", "value": text}


def read(row: object) -> object:
    return SOURCES["preferences"].try_parse(RawRecord("file", 1, orjson.dumps(row)))


HISTORY = [user("一"), assistant("二"), user("三")]
SYSTEM = {"role": "system", "content": "你是老师。"}
HH_PROMPT = "\n\nHuman: 一\n\nAssistant: 二\n\nHuman: 三\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # TRL: explicit prompts, as texts and as messages
        ({"prompt": "问", "chosen": "好", "rejected": "差"}, PLAIN),
        (
            {"prompt": [user("问")], "chosen": [assistant("好")], "rejected": [assistant("差")]},
            PLAIN,
        ),
        (
            {
                "prompt": [SYSTEM, *HISTORY],
                "chosen": assistant("好的，四"),
                "rejected": "好的，五",
            },
            LONG,
        ),
        # implicit prompts, also minimind's: what both answers begin with belongs to both
        (
            {"chosen": [user("问"), assistant("好")], "rejected": [user("问"), assistant("差")]},
            PLAIN,
        ),
        (
            {
                "chosen": [SYSTEM, *HISTORY, assistant("好的，四")],
                "rejected": [SYSTEM, *HISTORY, assistant("好的，五")],
            },
            LONG,
        ),
        # UltraFeedback, binarized: the question once more, and scores
        (
            {
                "prompt": "问",
                "prompt_id": "a1",
                "messages": [user("问"), assistant("好")],
                "chosen": [user("问"), assistant("好")],
                "rejected": [user("问"), assistant("差")],
                "score_chosen": 8.5,
                "score_rejected": 7,
            },
            PLAIN,
        ),
        # LLaMA-Factory: ShareGPT with messages and with texts
        ({"conversations": [human("问")], "chosen": gpt("好"), "rejected": gpt("差")}, PLAIN),
        (
            {
                "conversations": [human("一"), gpt("二"), human("三")],
                "system": "你是老师。",
                "chosen": "好的，四",
                "rejected": "好的，五",
            },
            LONG,
        ),
        ({"messages": [user("问")], "chosen": "好", "rejected": "差"}, PLAIN),
        # Alpaca
        ({"instruction": "问", "input": "", "chosen": "好", "rejected": "差"}, PLAIN),
        (
            {"instruction": "一", "input": "二", "chosen": "好", "rejected": "差"},
            Preference((), "一\n二", "好", "差"),
        ),
        (
            {
                "instruction": "三",
                "history": [["一", "二"]],
                "system": "你是老师。",
                "output": ["好的，四", "好的，五"],
            },
            LONG,
        ),
        # hh-rlhf, whole and with an explicit prompt
        (
            {
                "chosen": "\n\nHuman: 一\n\nAssistant: 二\n\nHuman: 三\n\nAssistant: 四",
                "rejected": "\n\nHuman: 一\n\nAssistant: 二\n\nHuman: 三\n\nAssistant: 五",
            },
            Preference((CONTEXT,), "三", "四", "五"),
        ),
        (
            {"prompt": HH_PROMPT, "chosen": " 四", "rejected": " 五\n第二行\n\n第二段"},
            Preference((CONTEXT,), "三", "四", "五\n第二行\n\n第二段"),
        ),
        # An answer may quote the marks.
        (
            {"prompt": "问", "chosen": "例：\n\nHuman: 一\n\nAssistant: 二", "rejected": "差"},
            Preference((), "问", "例：\n\nHuman: 一\n\nAssistant: 二", "差"),
        ),
        # pairs that `evaluate.preferences` writes about passages
        (
            {
                "prompt": [user("问")],
                "passage": "资料",
                "chosen": "好",
                "rejected": "差",
                "rejected_is_cut": True,
            },
            Preference((), "问", "好", "差", "资料", rejected_is_cut=True),
        ),
        # The assistant speaks first.
        (
            {"prompt": [assistant("您好"), user("问")], "chosen": "好", "rejected": "差"},
            Preference((Turn("", "您好", has_loss=False),), "问", "好", "差"),
        ),
    ],
)
def test_every_schema_gives_question_and_answers(
    tmp_path: Path, row: Row, expected: Preference
) -> None:
    """Prevents an answer without its question, and a question or an answer that loses text."""
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(orjson.dumps(row) + b"\n")
    assert detect_source([path]) == "preferences"
    assert read(row) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "问", "chosen": "好 ", "rejected": "好\n"}, "equal answers"),
        ({"prompt": "问", "chosen": "好", "rejected": " \n"}, "empty answer"),
        ({"prompt": "问", "chosen": [assistant("")], "rejected": "差"}, "empty answer"),
        (
            {
                "prompt": "问",
                "chosen": "好",
                "rejected": "差",
                "score_chosen": 3,
                "score_rejected": 3,
            },
            "tie: equal scores",
        ),
        (
            {
                "prompt": "问",
                "chosen": "好",
                "rejected": "差",
                "chosen-rating": 1,
                "rejected-rating": 2,
            },
            "rejected scored above chosen",
        ),
        (
            {
                "chosen": [user("问"), assistant("好")],
                "rejected": [user("问？"), assistant("差")],
            },
            "conversations that differ before the last answer",
        ),
        (
            {
                "chosen": [SYSTEM, user("问"), assistant("好")],
                "rejected": [user("问"), assistant("差")],
            },
            "conversations that differ before the last answer",
        ),
        (
            {
                "chosen": [*HISTORY, assistant("好")],
                "rejected": [user("一"), assistant("差")],
            },
            "conversations that differ before the last answer",
        ),
        (
            {"chosen": HH_PROMPT + " 四", "rejected": HH_PROMPT.replace("二", "貳") + " 五"},
            "conversations that differ before the last answer",
        ),
        (
            {"prompt": "问", "chosen": {**assistant("好"), "weight": 0}, "rejected": "差"},
            "no answer to train on",
        ),
        (
            {"prompt": "问", "chosen": "好", "rejected": "差", "tools": "[1]"},
            "unsupported field tools",
        ),
        (
            {
                "prompt": "问",
                "chosen": [{**assistant("好"), "reasoning_content": "想"}],
                "rejected": "差",
            },
            "unsupported field reasoning_content",
        ),
        (
            {
                "conversations": [human("问"), {"from": "observation", "value": "1"}],
                "chosen": gpt("好"),
                "rejected": gpt("差"),
            },
            "unsupported role observation",
        ),
    ],
)
def test_pair_that_says_nothing_is_left_out_and_counted(row: Row, reason: str) -> None:
    """Prevents training on noise: answers that are equal, empty, or to other questions."""
    assert read(row) == SkippedRecord(reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "好", "rejected": "差"}, "without a question: give it as 'prompt'"),
        ({"prompt": "问", "chosen": "好"}, "there is no 'rejected'"),
        (
            {"prompt": "问", "chosen": "好", "rejected": "差", "rejected_is_cut": 2},
            "'rejected_is_cut' is neither true nor false",
        ),
        ({"prompt": "问", "completion": "好", "label": True}, "one answer with a label; .*pair"),
        ({"messages": [user("问"), assistant("好")], "kto_tag": False}, "one answer with a label"),
        ({"prompt": " ", "chosen": "好", "rejected": "差"}, "question 1 of 1 is empty"),
        ({"prompt": 7, "chosen": "好", "rejected": "差"}, "'prompt' is neither text nor messages"),
        ({"prompt": [], "chosen": "好", "rejected": "差"}, "'prompt' is neither text nor messages"),
        ({"prompt": "问", "chosen": ["好"], "rejected": "差"}, "'chosen': message 1 is str"),
        (
            {"prompt": "问", "chosen": {"a": 1}, "rejected": "差"},
            "'chosen': message 1 is from None",
        ),
        (
            {"prompt": HISTORY[:2], "chosen": "好", "rejected": "差"},
            "'prompt' does not end with a question",
        ),
        (
            {"prompt": "问", "instruction": "问", "chosen": "好", "rejected": "差"},
            "several prompts: prompt, instruction",
        ),
        (
            {"prompt": "问", "conversations": [human("问")], "chosen": "好", "rejected": "差"},
            "several prompts: prompt, conversations",
        ),
        (
            {"chosen": [user("问"), assistant("好")], "rejected": [assistant("差")]},
            "only one of 'chosen' and 'rejected' includes the question",
        ),
        (
            {"chosen": [user("问"), assistant("好"), user("？")], "rejected": [user("问")]},
            "'chosen' does not end with an answer",
        ),
        (
            {"chosen": [SYSTEM, assistant("好")], "rejected": [SYSTEM, assistant("差")]},
            "no question before the answer in 'chosen'",
        ),
        (
            {
                "prompt": "别的",
                "chosen": [user("问"), assistant("好")],
                "rejected": [user("问"), assistant("差")],
            },
            "'prompt' is not in the conversations",
        ),
        (
            {
                "prompt": "问",
                "chosen": "好",
                "rejected": "差",
                "score_chosen": "8",
                "score_rejected": 1,
            },
            "score_chosen and score_rejected are not numbers",
        ),
        (
            {"prompt": [user("一"), assistant(""), user("二")], "chosen": "好", "rejected": "差"},
            "answer 1 of 2 is empty",
        ),
    ],
)
def test_record_that_is_no_pair_is_bad(row: Row, reason: str) -> None:
    """Prevents a guess at what the question is, and a reason without what to do about it."""
    record = read(row)
    assert isinstance(record, BadRecord)
    assert re.search(reason, record.reason), record.reason


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "问", "completion": "答", "label": False},
        {"messages": [user("问"), assistant("答")], "kto_tag": True},
        {"query": "问", "response": "答", "kto_tag": False},
    ],
)
def test_unpaired_labels_are_refused_with_the_cure(tmp_path: Path, row: Row) -> None:
    """Prevents a bad answer from being trained on, and a refusal that leaves the user alone."""
    path = tmp_path / "kto.jsonl"
    path.write_bytes(orjson.dumps(row) + b"\n")
    with pytest.raises(UserError, match=r"not pairs; .*\{prompt, chosen, rejected\}") as caught:
        detect_source([path])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "count"), [("dpo_zh_500.jsonl", 500), ("dpo_zh_demo.json", 300)])
def test_real_pairs_are_all_read(shared: Path, name: str, count: int) -> None:
    """Prevents losing real pairs, their system texts, or the end of an answer."""
    path = shared / "data" / "preference" / name
    assert detect_source([path]) == "preferences"
    records = list(SOURCES["preferences"].iter_records(path))
    assert Counter(type(record) for record in records) == {Preference: count}
    text = path.read_text(encoding="utf-8")
    rows = orjson.loads(text) if text.startswith("[") else map(orjson.loads, text.splitlines())
    for row, record in zip(rows, records, strict=True):
        assert isinstance(record, Preference)
        answers = [
            row[key] if isinstance(row[key], str) else row[key]["value"]
            for key in ("chosen", "rejected")
        ]
        assert [record.chosen, record.rejected] == [answer.strip() for answer in answers]
        *system, question = row["conversations"]
        assert record.system == "".join(message["value"] for message in system).strip()
        assert record.question == question["value"].strip()


def test_pairs_are_prepared_with_counts_of_what_is_left_out(tmp_path: Path) -> None:
    """Prevents pairs that are left out without a word, and a set that training cannot open."""
    rows = [
        {"prompt": f"第{number}问", "chosen": f"第{number}答", "rejected": "不知道"}
        for number in range(20)
    ]
    rows += [{**rows[0], "rejected": rows[0]["chosen"]}, rows[1], {**rows[2], "rejected": ""}]
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    tokenizer = sample.SMALL_TOKENIZER.resolve()
    options = PrepareOptions(workers=1)
    report = prepare_source("preferences", [str(path)], tmp_path / "set", tokenizer, options)
    assert report["kind"] == "preferences" and report["kept"] == 20
    assert report["dropped"] == {"empty answer": 1, "equal answers": 1, "exact_duplicate": 1}
