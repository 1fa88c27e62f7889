"""Records with fields that no source can use are left out and counted by field."""

from collections import Counter
from pathlib import Path

import orjson
import pytest

from common.errors import UserError
from data.corpora import sample
from data.corpora.detect import detect_source
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import format_left_out, format_report
from data.readers.files import RawRecord
from data.records import BadRecord, Conversation, Document, SkippedRecord
from data.sources import SOURCES
from tests.helpers.native_corpora import ROW_BUILDERS, Row
from tests.helpers.prepare import prepare_source

TOKENIZER = sample.SMALL_TOKENIZER.resolve()
CONVERSATION_SOURCES = [name for name in SOURCES if SOURCES[name].kind == "conversations"]
QUESTION = {"role": "user", "content": "问"}
ANSWER = {"role": "assistant", "content": "答"}


def read(name: str, row: object, unlisted: Counter[str] | None = None) -> object:
    return SOURCES[name].try_parse(RawRecord("file", 1, orjson.dumps(row)), unlisted)


def reason(name: str, row: object) -> str:
    record = read(name, row)
    assert isinstance(record, SkippedRecord)
    return record.reason


@pytest.mark.parametrize("name", CONVERSATION_SOURCES)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reasoning_content", "先想一想。"),
        ("thinking", "先想一想。"),
        ("tools", '[{"name": "get_weather"}]'),
        ("toolCalls", [{"name": "get_weather"}]),
        ("functions", [{"name": "f"}]),
        ("images", ["a.png"]),
        ("audios", ["a.wav"]),
        ("rejected", "差"),
        ("kto_tag", False),
    ],
)
def test_unsupported_field_leaves_a_record_out(name: str, field: str, value: object) -> None:
    """Prevents a model from learning answers without what they were an answer to."""
    row = ROW_BUILDERS[name](0)
    assert reason(name, {**row, field: value}) == f"unsupported field {field}"
    # Tables give all records all fields.
    for empty in (None, "", " ", [], {}, "[ ]", "NaN", [None], [{"name": None, "path": ""}]):
        assert isinstance(read(name, {**row, field: empty}), Conversation)


@pytest.mark.parametrize("name", CONVERSATION_SOURCES)
def test_harmless_and_other_fields_cost_no_record(name: str) -> None:
    """Prevents records from being lost for their metadata, and unlisted text from being unseen."""
    row = {"id": "a0", "lang": "zh", "source": "论坛", **ROW_BUILDERS[name](0)}
    unlisted: Counter[str] = Counter()
    assert isinstance(read(name, {**row, "meta": {"a": 1}, "num_x": 3}, unlisted), Conversation)
    assert not unlisted
    row |= {"备注": "重要", "odd\n": [1], "trained": False}
    assert isinstance(read(name, row, unlisted), Conversation)
    assert unlisted == {"备注": 1, "odd\\n": 1, "trained": 1}


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        ({**ANSWER, "reasoning_content": "想"}, "field reasoning_content"),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
            "field tool_calls",
        ),
        (
            {"role": "assistant", "content": "", "function_call": {"name": "f"}},
            "field function_call",
        ),
        ({"role": "assistant", "content": [{"type": "image_url"}]}, "content image_url"),
        ({"role": "assistant", "content": [{"type": "thinking"}]}, "content thinking"),
        ({"role": "assistant", "content": [{"image": "a.png"}, {"text": "看"}]}, "content image"),
        ({"role": "tool", "content": "3"}, "role tool"),
        ({"role": "function-response", "content": "3"}, "role function-response"),
        ({"role": "function", "content": "3"}, "role function"),
        ({**ANSWER, "weight": 0.5}, "field weight"),
        (
            {**ANSWER, "train_detail": [{"begin_offset": 1, "end_offset": 2, "train": True}]},
            "field train_detail",
        ),
    ],
)
def test_unsupported_field_of_a_message_leaves_the_record_out(answer: Row, field: str) -> None:
    """Prevents tool calls, thoughts and images from being dropped, or counted as unreadable."""
    long_answer = {**answer, "content": "一二三"} if "train_detail" in answer else answer
    for name, list_name in (("openai", "messages"), ("sharegpt", "conversations")):
        row = {list_name: [QUESTION, long_answer, QUESTION, ANSWER]}
        assert reason(name, row) == f"unsupported {field}"


@pytest.mark.parametrize("role", ["observation", "function_call", "tool"])
def test_tool_roles_of_sharegpt_are_unsupported(role: str) -> None:
    """Prevents tool records of LLaMA-Factory from counting as unreadable."""
    row = {"conversations": [{"from": "human", "value": "问"}, {"from": role, "value": "{}"}]}
    assert reason("sharegpt", row) == f"unsupported role {role}"


def test_nothing_to_train_on_leaves_a_record_out() -> None:
    """Prevents a record that is marked as a whole from being trained on."""
    untrained = {**ANSWER, "weight": 0}
    assert reason("openai", {"messages": [QUESTION, untrained]}) == "no answer to train on"
    for name in CONVERSATION_SOURCES:
        row = ROW_BUILDERS[name](0)
        assert reason(name, {**row, "weight": 0}) == "no answer to train on"
        # Marks that are for parts of it, in a number that fits no shape.
        for mark in ("loss_mask", "train_detail"):
            assert reason(name, {**row, mark: [{}] * 9}) == f"unsupported field {mark}"
    # One answer in two messages of different marks.
    row = {"messages": [QUESTION, untrained, ANSWER]}
    assert reason("openai", row) == "answer to train on in part"


def test_mark_that_is_none_is_a_bad_record() -> None:
    """Prevents `"false"` from being taken for true."""
    record = read("openai", {"messages": [QUESTION, {**ANSWER, "train": "false"}]})
    assert isinstance(record, BadRecord) and "message 2 has 'train'" in record.reason


def test_documents_may_have_any_fields() -> None:
    """Prevents documents from being left out for fields that are not their text."""
    assert isinstance(read("jsonl", {"text": "文", "images": ["a"], "weight": 0}), Document)


@pytest.mark.slow
def test_left_out_records_are_counted_apart_and_reported(tmp_path: Path) -> None:
    """Prevents records with tools from failing a preparation, or from being lost without a word."""
    rows = [ROW_BUILDERS["sharegpt"](number) for number in range(10)]
    rows += [{**row, "tools": "[{}]"} for row in rows[:6]]
    rows += [{**rows[9], "notes": "备注"}]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    out = tmp_path / "out"
    report = prepare_source("sharegpt", [str(path)], out, TOKENIZER, PrepareOptions())
    assert report["dropped"] == {"exact_duplicate": 1, "unsupported field tools": 6}
    assert report["quarantined"] == 0 and report["kept"] == 10
    assert report["unlisted_fields"] == {"notes": 1}
    left_out, unlisted = format_left_out(report, out)
    assert left_out == (
        f"{out}: 7 of 17 records are left out: 1 exact duplicate, 6 unsupported field tools"
    )
    assert "notes (1)" in unlisted and "notes (1)" in format_report(report, out)
    path.write_bytes(b"\n".join(map(orjson.dumps, rows[10:16])))
    with pytest.raises(UserError, match=r"none of 6 records .*unsupported field tools 6"):
        prepare_source("sharegpt", [str(path)], tmp_path / "none", TOKENIZER, PrepareOptions())


# minimind's own files


def minimind(**fields: object) -> list[Row]:
    empty = {"reasoning_content": "", "tools": "", "tool_calls": ""}
    return [{**QUESTION, **empty}, {**ANSWER, **empty, **fields}]


@pytest.mark.parametrize(
    ("row", "source", "expected"),
    [
        ({"text": "春天的风从山那边吹过来。"}, "jsonl", Document),
        ({"conversations": [QUESTION, ANSWER]}, "sharegpt", Conversation),
        ({"conversations": minimind()}, "sharegpt", Conversation),
        (
            {"conversations": minimind(reasoning_content="想")},
            "sharegpt",
            "field reasoning_content",
        ),
        (
            {
                "conversations": [
                    {"role": "system", "content": "# Tools", "tools": '[{"type": "function"}]'},
                    QUESTION,
                    {"role": "assistant", "content": "", "tool_calls": '[{"name": "f"}]'},
                    {"role": "tool", "content": "3"},
                    ANSWER,
                ]
            },
            "sharegpt",
            "field tools",
        ),
    ],
)
def test_minimind_files_are_read(
    tmp_path: Path, row: Row, source: str, expected: type | str
) -> None:
    """Prevents files of minimind's users from being refused, or read without a part of them."""
    path = tmp_path / "sft_t2t.jsonl"
    path.write_bytes(orjson.dumps(row) + b"\n")
    assert detect_source([path]) == source
    (record,) = SOURCES[source].iter_records(path)
    if isinstance(expected, str):
        assert record == SkippedRecord(f"unsupported {expected}")
    else:
        assert isinstance(record, expected)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, ANSWER], "rejected_response": "差"},
        {"query": "问", "response": "答", "rejected_response": "差"},
        {"instruction": "问", "input": "", "output": ["好", "差"], "rejected": "差"},
    ],
)
def test_preference_file_of_another_schema_is_refused(tmp_path: Path, row: Row) -> None:
    """Prevents a rejected answer from being trained on, and words that do not say what to do."""
    path = tmp_path / "dpo.jsonl"
    path.write_bytes(orjson.dumps(row) + b"\n")
    with pytest.raises(UserError, match=r"\{prompt, chosen, rejected\} .*make dpo") as caught:
        detect_source([path])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["sharegpt", "openai"])
def test_pair_read_as_a_conversation_is_left_out(tmp_path: Path, name: str) -> None:
    """Prevents half of a pair from being trained on, and a refusal without the command for it."""
    path = tmp_path / "pairs.jsonl"
    field = "conversations" if name == "sharegpt" else "messages"
    row = {field: [QUESTION, ANSWER], "chosen": "好", "rejected": "差"}
    path.write_bytes(orjson.dumps(row) + b"\n")
    with pytest.raises(UserError, match=r"unsupported field .*make dpo"):
        prepare_source(name, [str(path)], tmp_path / "set", TOKENIZER, PrepareOptions(workers=1))


def test_other_conversation_shapes_are_read(tmp_path: Path) -> None:
    """Prevents files for Firefly and ms-swift from being refused."""
    path = tmp_path / "a.jsonl"
    rows: list[tuple[str, Row]] = [
        (
            "firefly",
            {
                "conversation_id": 1,
                "category": "闲聊",
                "conversation": [
                    {"human": "一", "assistant": "二"},
                    {"human": "三", "assistant": "四"},
                ],
            },
        ),
        ("ms-swift", {"query": "三", "response": "四", "history": [["一", "二"]]}),
    ]
    for name, row in rows:
        path.write_bytes(orjson.dumps(row) + b"\n")
        assert detect_source([path]) == name
        (record,) = SOURCES[name].iter_records(path)
        assert isinstance(record, Conversation)
        assert [(turn.question, turn.answer) for turn in record.turns] == [
            ("一", "二"),
            ("三", "四"),
        ]
        system = SOURCES[name].parse(orjson.dumps({"system": "你是老师。", **row}))
        assert isinstance(system, Conversation) and "你是老师。" in system.plain_text()
