"""Conversation sources: all text of a native record becomes turns, or the record is bad."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from common.errors import UserError
from data.corpora.detect import detect_source
from data.records import BadRecord, Conversation, Turn
from data.sources import SOURCES, find_source
from data.sources.base import SchemaError

SAMPLE = "assets/sample/sft"
MESSAGE = {"role": "user", "content": "问"}
HUMAN = {"from": "human", "value": "问"}
# Source → its files in the shipped sample and among the real ones.
SAMPLE_FILES = [
    ("redgpt", "redgpt/RedGPT-Dataset-V1-CN.json.gz"),
    ("redgpt", "redgpt/RedGPT-Dataset-V1-CN.test.json"),
    ("naturalconv", "naturalconv/dialog_release.json.gz"),
    ("naturalconv", "naturalconv/dialog_release.test.json"),
    ("belle-0.5m", "belle/train_0.5M_CN.json.gz"),
    ("belle-0.5m", "belle/train_0.5M_CN.test.json"),
    ("belle-0.8m", "belle/multiturn_chat_0.8M.json.gz"),
    ("belle-0.8m", "belle/multiturn_chat_0.8M.test.json"),
    ("deepctrl", "deepctrl/sft_data_zh.jsonl.gz"),
    ("deepctrl", "deepctrl/sft_data_zh.test.jsonl"),
    ("pclue", "pclue/pCLUE_train.json.gz"),
    ("pclue", "pclue/pCLUE_train.test.json"),
]
# With the reasons why real records are bad, and how many of them there are in what is read.
REAL_FILES: list[tuple[str, str, dict[str, int]]] = [
    ("redgpt", "sft/redgpt/RedGPT-Dataset-V1-CN.json.gz", {}),
    (
        "naturalconv",
        "sft/naturalconv/dialog_release.json.gz",
        {"field 'content' is empty: there are no utterances": 5},
    ),
    ("belle-0.5m", "sft/belle/train_0.5M_CN.json.gz", {"answer 1 of 1 is empty": 7}),
    ("belle-0.8m", "sft/belle/multiturn_chat_0.8M.json.gz", {}),
    ("deepctrl", "sft/deepctrl/sft_data_zh.jsonl.gz", {}),
    ("pclue", "sft/pclue/pCLUE_train_9.json", {}),
    ("alpaca", "sft/alpaca/alpaca_zh_demo.json", {}),
    (
        "sharegpt",
        "sft/sharegpt/sharegpt_zh_1K.jsonl",
        {"question 2 of 29 is empty": 1, "there is no answer, only a question": 1},
    ),
    (
        "alpaca",
        "malformed/alpaca_invalid.json",
        {"answer 1 of 1 is empty": 2, "there is a comma and no element": 1},
    ),
]


def parse(name: str, row: object) -> Conversation:
    records = find_source(name).parse(orjson.dumps(row))
    assert isinstance(records, Conversation)
    return records


def turns(name: str, row: object) -> list[tuple[str, str]]:
    return [(turn.question, turn.answer) for turn in parse(name, row).turns]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows by the standard parser, a comma before the last bracket removed."""
    text = (
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    ).decode()
    if text.startswith("["):
        return list(json.loads(text.rstrip()[:-1].rstrip().rstrip(",") + "]"))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def texts_of(row: dict[str, Any]) -> str:
    """Return all text of a native row in order, without white space and speakers' names."""
    if "dialogue" in row:
        texts = [row["reference"], row["dialogue"]]
    elif "content" in row:
        texts = row["content"]
    elif "conversations" in row:
        texts = [message["value"] for message in row["conversations"]]
        if row["conversations"][-1]["from"] == "human":
            texts.pop()
    else:
        texts = [text for pair in row.get("history", []) for text in pair]
        texts += [row[key] for key in ("instruction", "input", "output", "target") if key in row]
    return squeezed("\n".join(texts))


def squeezed(text: str) -> str:
    return re.sub(r"\s|human|assistant|[(（](?:用户|助手)[)）]|[:：]", "", text.lower())


def write_excerpt(path: Path, folder: Path) -> Path:
    """Write an even share of the records of a large file, a few MB of them, byte for byte."""
    data = gzip.decompress(path.read_bytes())
    step = 1 + len(data) // 4_000_000
    if data.startswith(b"["):
        # One line, in which every element begins with the same key.
        border = b", " + data[1 : data.index(b":")]
        elements = data.strip()[1:-1].split(border)
        data = b"[" + border.join(elements[::step]) + b"]"
    else:
        data = b"".join(data.splitlines(keepends=True)[::step])
    excerpt = folder / path.name
    excerpt.write_bytes(gzip.compress(data, 1))
    return excerpt


def check(name: str, path: Path, reasons: dict[str, int], every: int = 1) -> None:
    """Compare the counts of a whole file, and the texts of every `every`-th record."""
    rows = rows_of(path)
    records = list(find_source(name).iter_records(path))
    bad = [record for record in records if isinstance(record, BadRecord)]
    counted = {
        reason: sum(record.reason == reason for record in bad)
        for reason in {record.reason for record in bad}
    }
    assert counted == reasons
    if "there is a comma and no element" in reasons:
        assert isinstance(records.pop(), BadRecord)
    assert len(records) == len(rows)
    for record, row in list(zip(records, rows, strict=True))[::every]:
        if isinstance(record, Conversation):
            texts = [
                record.reference,
                record.system,
                *(text for turn in record.turns for text in (turn.question, turn.answer)),
            ]
            assert squeezed("\n".join(texts)) == texts_of(row)
            lines = [text.split("\n") for text in texts if text]
            assert all(text[0].strip() and text[-1].strip() for text in lines)
            assert all(turn.answer.strip() for turn in record.turns)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), SAMPLE_FILES)
def test_sample_conversations_are_all_read(root: Path, name: str, file: str) -> None:
    """Prevents a conversation of the sample from being lost or altered."""
    path = root / SAMPLE / file
    assert detect_source([path]) == name
    check(name, path, {})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file", "reasons"), REAL_FILES)
def test_real_files_are_read_except_bad_records(
    shared: Path, tmp_path: Path, name: str, file: str, reasons: dict[str, int]
) -> None:
    """Prevents text of real files from being lost or doubled, and records from being miscounted."""
    path = shared / "data" / file
    assert detect_source([path]) == name
    if path.suffix == ".gz":
        path = write_excerpt(path, tmp_path)
    check(name, path, reasons, every=1 + path.stat().st_size // 500_000)


@pytest.mark.slow
def test_real_csv_is_rejected_and_not_detected_as_source(shared: Path) -> None:
    """Prevents the lines of a CSV file from becoming conversations."""
    path = shared / "data" / "malformed" / "dev_sft_sharegpt.csv"
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    records = list(SOURCES["sharegpt"].iter_records(path))
    assert len(records) == len(lines) and all(isinstance(record, BadRecord) for record in records)
    with pytest.raises(UserError, match="cannot tell which source"):
        detect_source([path])


# RedGPT


@pytest.mark.parametrize(
    "dialogue",
    [
        "Human: 问一\n\nAssistant: 答一\n\nHuman: 问二\n\nAssistant: 答二",
        "Human: 问一\nAssistant: 答一\nHuman: 问二\nAssistant: 答二\n",
        "Human：问一\n\nAssistant：答一\n\nHuman：问二\n\nAssistant：答二",
        "HUMAN: 问一\n\nASSISTANT: 答一\n\nHUMAN: 问二\n\nASSISTANT: 答二",
        "Human(用户): 问一\n\nAssistant(助手): 答一\n\n"
        "Human（用户）：问二\n\nAssistant（助手）：答二",
        "\n Human : 问一\r\n\r\nAssistant:答一\n\n\nHUMAN：问二\nAssistant: 答二",
        "Human: 问一\n\nAssistant: 答一\n\nHuman: 问二\n\nAssistant: 答二\n\nHuman: 没有人回答",
    ],
)
def test_redgpt_accepts_all_speaker_labels(dialogue: str) -> None:
    """Prevents turns of published files from being missed for the way they are written."""
    assert parse("redgpt", {"reference": "\n资料\n", "dialogue": dialogue}) == Conversation(
        (Turn("问一", "答一"), Turn("问二", "答二")), "资料"
    )


def test_speaker_label_inside_a_line_is_text() -> None:
    """Prevents a quoted speaker from splitting a turn."""
    reply = "意思是人。如 Human: 你好\n又如“Assistant: 您好”\nHumanity: 人性"
    dialogue = f"Human: Human: 是什么意思？\nAssistant: {reply}"
    assert turns("redgpt", {"reference": "r", "dialogue": dialogue}) == [
        ("Human: 是什么意思？", reply)
    ]


def test_a_reply_of_several_paragraphs_stays_one() -> None:
    """Prevents the second paragraph of a reply from being lost."""
    dialogue = "Human: 问\n\nAssistant: 一\n\n  二\n\n三\n\nHuman: 再问\n\nAssistant: 四"
    assert turns("redgpt", {"reference": "r", "dialogue": dialogue}) == [
        ("问", "一\n\n  二\n\n三"),
        ("再问", "四"),
    ]


# NaturalConv


def test_naturalconv_with_odd_turns_starts_with_assistant() -> None:
    """Prevents the last of an odd number of utterances from being dropped as a question."""
    row = {"dialog_id": "0_0", "document_id": 0, "content": ["甲", "乙\n", "丙", "丁"]}
    assert turns("naturalconv", row) == [("甲", "乙"), ("丙", "丁")]
    assert turns("naturalconv", {**row, "content": ["甲", "乙", "丙"]}) == [
        ("", "甲"),
        ("乙", "丙"),
    ]
    assert turns("naturalconv", {**row, "content": ["甲"]}) == [("", "甲")]


# Instructions


@pytest.mark.parametrize("name", ["belle-0.5m", "alpaca", "deepctrl"])
def test_instruction_and_input_are_both_used(name: str) -> None:
    """Prevents half of the question from being dropped."""
    row = {"instruction": "翻译成英文。\n", "input": "\n你好\n", "output": "\nHello\n \n"}
    assert turns(name, row) == [("翻译成英文。\n你好", "Hello")]
    assert turns(name, {**row, "instruction": ""}) == [("你好", "Hello")]
    assert (
        turns(name, {**row, "input": ""})
        == turns(name, {**row, "input": None})
        == [("翻译成英文。", "Hello")]
    )
    assert turns(name, {"instruction": "问", "output": "答"}) == [("问", "答")]


def test_belle_copies_with_renamed_keys_are_read() -> None:
    """Prevents copies of Belle with other keys from being refused."""
    assert turns("belle-0.5m", {"input": "问", "target": "答"}) == [("问", "答")]
    assert turns("belle-0.5m", {"instruction": "做", "input": "这", "target": "答"}) == [
        ("做\n这", "答")
    ]


def test_deepctrl_history_precedes_the_question() -> None:
    """Prevents earlier turns from being lost."""
    row = {
        "instruction": "继续",
        "input": "三",
        "output": "四",
        "history": [["一", "二"], ["甲", "乙"]],
    }
    assert turns("deepctrl", row) == [("一", "二"), ("甲", "乙"), ("继续\n三", "四")]
    assert turns("deepctrl", {**row, "history": None}) == turns("deepctrl", {**row, "history": []})


def test_alpaca_system_text_is_for_the_whole_conversation() -> None:
    """Prevents a system text from being lost, and from standing in the last question alone."""
    row = {"system": "\n你是老师。\n", "instruction": "问", "input": "", "output": "答"}
    turn, earlier_turn = Turn("问", "答"), Turn("一", "二")
    assert parse("alpaca", row) == Conversation((turn,), system="你是老师。")
    row_without_question = {"system": "问好。", "instruction": "", "output": "你好"}
    assert parse("alpaca", row_without_question) == Conversation(
        (Turn("", "你好"),), system="问好。"
    )
    row["history"] = [["一", "二"]]
    for name in ("alpaca", "deepctrl"):
        assert parse(name, row) == Conversation((earlier_turn, turn), system="你是老师。")


# Belle 0.8M


def belle(instruction: str, output: str = "答", given: str | None = "") -> dict[str, object]:
    return {"instruction": instruction, "input": given, "output": output}


def test_belle_instruction_contains_all_but_last_reply() -> None:
    """Prevents the turns of `instruction` from becoming one question."""
    row = belle("Human:一\nAssistant: 二\nHuman:三\n\n三乙\nAssistant:", "\n四\n")
    assert turns("belle-0.8m", row) == [("一", "二"), ("三\n\n三乙", "四")]


def test_belle_input_belongs_to_last_question() -> None:
    """Prevents `input` from being lost."""
    assert turns(
        "belle-0.8m", belle("Human:一\nAssistant:二\nHuman:三\nAssistant:", "四", "五")
    ) == [("一", "二"), ("三\n五", "四")]


@pytest.mark.parametrize(
    "reply", ["如 Human:你好", "Human:你好\nAssistant:您好\nHuman:再见", "Human: 甲\nHuman: 乙"]
)
def test_the_last_reply_is_text_whatever_it_contains(reply: str) -> None:
    """Prevents a dialogue inside the last reply from becoming turns."""
    assert turns("belle-0.8m", belle("Human:写一段对话。\nAssistant:", reply)) == [
        ("写一段对话。", reply)
    ]


@pytest.mark.parametrize(
    "reply",
    ["如 Human:你好", "Human:你好\nAssistant:您好", "如下。\nHuman:你好", "一\nAssistant:二"],
)
def test_an_earlier_reply_that_quotes_a_speaker_stays_whole(reply: str) -> None:
    """Prevents a quoted speaker from giving one speaker two turns in a row."""
    row = belle(f"Human:写一段对话。\nAssistant:{reply}\nHuman:谢谢\nAssistant:", "不客气")
    assert turns("belle-0.8m", row) == [("写一段对话。", reply), ("谢谢", "不客气")]


# Messages


def test_sharegpt_roles_and_repeated_speakers() -> None:
    """Prevents roles from being confused, and messages of one speaker from being lost."""
    texts = [
        ("system", "你是老师。"),
        ("human", "一"),
        ("user", "一乙"),
        ("gpt", "二"),
        ("assistant", "二乙"),
        ("human", "三"),
        ("gpt", "四"),
        ("human", "没有人回答"),
    ]
    row = {"conversations": [{"from": who, "value": text} for who, text in texts]}
    assert parse("sharegpt", row) == Conversation(
        (Turn("一\n一乙", "二\n二乙"), Turn("三", "四")), system="你是老师。"
    )
    row = {
        "system": "你是老师。",
        "conversations": [{"from": "human", "value": "一"}, {"from": "gpt", "value": "二"}],
    }
    assert parse("sharegpt", row) == Conversation((Turn("一", "二"),), system="你是老师。")
    row["conversations"].insert(0, {"from": "system", "value": "说中文。"})
    assert parse("sharegpt", row).system == "你是老师。\n说中文。"
    row["conversations"] = [MESSAGE, {"role": "assistant", "content": "答"}]
    assert parse("sharegpt", row) == Conversation((Turn("问", "答"),), system="你是老师。")


def test_leading_assistant_message_gets_empty_question() -> None:
    """Prevents a greeting of the assistant from shifting all turns."""
    row = {
        "conversations": [{"from": "gpt", "value": "你好"}, HUMAN, {"from": "gpt", "value": "答"}]
    }
    assert turns("sharegpt", row) == [("", "你好"), ("问", "答")]


@pytest.mark.parametrize("system_text", ["", " \n"])
def test_empty_system_text_is_no_question(system_text: str) -> None:
    """Prevents conversations that the assistant begins from being quarantined."""
    greeting = {"from": "gpt", "value": "你好"}
    row = {"conversations": [{"from": "system", "value": system_text}, greeting]}
    assert turns("sharegpt", row) == [("", "你好")]
    row = {"system": system_text, "conversations": [greeting]}
    assert turns("sharegpt", row) == [("", "你好")]
    for role in ("system", "developer"):
        messages = [
            {"role": role, "content": system_text},
            {"role": "assistant", "content": "你好"},
        ]
        assert turns("openai", {"messages": messages}) == [("", "你好")]


def test_openai_content_is_string_or_text_parts() -> None:
    """Prevents messages of several text parts from being refused."""
    parts = [{"type": "text", "text": "一"}, {"type": "output_text", "text": "二"}]
    texts = [
        ("developer", "说中文。"),
        ("user", parts),
        ("assistant", "三"),
        ("user", "四"),
        ("assistant", parts[:1]),
    ]
    row = {"messages": [{"role": role, "content": content} for role, content in texts]}
    assert parse("openai", row) == Conversation(
        (Turn("一\n二", "三"), Turn("四", "一")), system="说中文。"
    )


CODE = "    x = 1\n    return x"


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("openai", {"messages": [MESSAGE, {"role": "assistant", "content": f" \n{CODE}\n\n"}]}),
        ("sharegpt", {"conversations": [HUMAN, {"from": "gpt", "value": f"\r\n{CODE}\r\n\t"}]}),
        ("alpaca", {"instruction": "问", "output": f"{CODE}\n"}),
        ("naturalconv", {"content": ["问", f"{CODE}\n"]}),
        ("belle-0.8m", belle("Human:问\nAssistant:", f"\n{CODE}")),
        ("redgpt", {"reference": "r", "dialogue": f"Human: 问\nAssistant:\n{CODE}\n"}),
        ("redgpt", {"reference": "r", "dialogue": f"Human: 问\nAssistant: {CODE}\n"}),
        ("firefly", {"conversation": [{"human": "问", "assistant": f"{CODE}\n"}]}),
        ("ms-swift", {"query": "问", "response": f"\n{CODE}\n"}),
    ],
)
def test_first_line_of_an_answer_keeps_its_indentation(name: str, row: object) -> None:
    """Prevents an answer of code that does not run, and blank lines around it."""
    assert turns(name, row) == [("问", CODE)]


@pytest.mark.parametrize("text", ["　　段首空两格。", "\t甲\n乙", "行末  \n两个空格  "])
def test_white_space_of_a_line_stays(text: str) -> None:
    """Prevents a first or last line without its white space, in questions and passages too."""
    row = {"messages": [{**MESSAGE, "content": text}, {"role": "assistant", "content": text}]}
    assert turns("openai", row) == [(text, text)]
    row = {"reference": f"\n{text}\n", "dialogue": "Human: 问\nAssistant: 答"}
    assert parse("redgpt", row).reference == text


# Marks of answers that are not trained on


def marks(name: str, row: object) -> list[bool]:
    return [turn.has_loss for turn in parse(name, row).turns]


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"weight": 0.0}, False),
        ({"loss": False}, False),
        ({"loss": None}, True),
        ({"loss": True}, True),
        ({"loss_weight": 0}, False),
        ({"loss_scale": 0.0}, False),
        ({"train": False}, False),
        ({"training": False}, False),
        ({"trainable": False}, False),
        ({"loss_mask": 0}, False),
        ({"masked": True}, False),
        ({"masked": False}, True),
        ({"weight": 1, "train": False}, False),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}, False),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 2, "train": True}]}, True),
        ({"train_detail": []}, True),
        ({}, True),
    ],
)
def test_marked_answer_is_context_only(mark: dict[str, object], expected: bool) -> None:
    """Prevents an answer from being trained on that its record marks as wrong."""
    roles = [("user", {}), ("assistant", mark), ("user", {}), ("assistant", {"loss": True})]
    messages = [{"role": role, "content": "一二", **marks} for role, marks in roles]
    assert marks("openai", {"messages": messages}) == [expected, True]
    assert marks("sharegpt", {"conversations": messages}) == [expected, True]
    texts = [{"from": role, "value": "一二", **marks} for role, marks in roles]
    assert marks("sharegpt", {"conversations": texts}) == [expected, True]
    pairs = [{"human": "问", "assistant": "一二", **mark}, {"human": "问", "assistant": "答"}]
    assert marks("firefly", {"conversation": pairs}) == [expected, True]


def test_a_list_of_marks_belongs_to_the_messages() -> None:
    """Prevents marks beside the messages from being ignored."""
    messages = [MESSAGE, {"role": "assistant", "content": "答"}] * 2
    assert marks("openai", {"messages": messages, "loss_mask": [0, 0, 0, 1]}) == [False, True]
    texts = [HUMAN, {"from": "gpt", "value": "答"}] * 2
    assert marks("sharegpt", {"conversations": texts, "loss_mask": [0, 0, 0, 1]}) == [False, True]
    row = {"query": "问", "response": "答", "history": [["问", "答"]]}
    assert marks("ms-swift", {**row, "loss_mask": [0, 0, 0, 1]}) == [False, True]
    assert marks("alpaca", {**row, "loss_mask": [1, 1, 0, 0]}) == [True, False]
    pairs = [{"human": "问", "assistant": "答"}] * 2
    assert marks("firefly", {"conversation": pairs, "loss": [False, True]}) == [False, True]


# pCLUE


@pytest.mark.parametrize("choices", [{"answer_choices": ["是", "否"]}, {"answer_choices": ""}, {}])
def test_pclue_is_one_turn_with_any_choices(choices: dict[str, object]) -> None:
    """Prevents `answer_choices` from entering the text twice."""
    row = {"input": "对吗？选项：是，否\n答案：", "target": "是", "type": "nli", **choices}
    assert turns("pclue", row) == [("对吗？选项：是，否\n答案：", "是")]


# Bad records


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        (
            "redgpt",
            {"reference": "r", "dialogue": "你好。\nHuman: 问\nAssistant: 答"},
            "does not begin with Human:.*你好",
        ),
        ("redgpt", {"reference": "r", "dialogue": ""}, "does not begin"),
        (
            "redgpt",
            {"reference": " ", "dialogue": "Human: 问\nAssistant: 答"},
            "'reference' is empty",
        ),
        ("redgpt", {"dialogue": "Human: 问\nAssistant: 答"}, "no field 'reference'"),
        ("redgpt", {"reference": "r", "dialogue": "Human: 问"}, "no answer, only a question"),
        (
            "redgpt",
            {"reference": "r", "dialogue": "Human: 问\nAssistant:\nHuman: 问\nAssistant: 答"},
            "answer 1 of 2 is empty",
        ),
        ("redgpt", {"reference": "r", "dialogue": ["Human: 问"]}, "'dialogue' is list"),
        ("naturalconv", {"content": []}, "there are no utterances"),
        ("naturalconv", {"content": "问"}, "is str, not a list"),
        ("naturalconv", {"content": ["问", 3]}, "utterance 2 is int"),
        ("naturalconv", {"content": ["问", " "]}, "answer 1 of 1 is empty"),
        ("naturalconv", {"content": ["问", "答", " ", "答"]}, "question 2 of 2 is empty"),
        ("belle-0.5m", {"instruction": "问", "input": ""}, "no field 'output'"),
        ("belle-0.5m", {"instruction": "问", "output": " \n"}, "answer 1 of 1 is empty"),
        (
            "belle-0.5m",
            {"instruction": " ", "input": "", "output": "答"},
            "question 1 of 1 is empty",
        ),
        (
            "belle-0.5m",
            {"prompt": "问", "output": "答"},
            "no field 'instruction' or 'input'; there are: prompt, output",
        ),
        ("belle-0.5m", {"instruction": 3, "output": "答"}, "'instruction' is int"),
        ("belle-0.8m", belle("没有名字"), "does not begin with Human:"),
        ("belle-0.8m", belle("Human:一\nAssistant:二"), "ends with a reply"),
        ("belle-0.8m", belle("Human:一\nAssistant:", " "), "answer 1 of 1 is empty"),
        (
            "deepctrl",
            {"input": "问", "output": "答", "history": [["一"]]},
            "history 1 is not a pair",
        ),
        ("deepctrl", {"input": "问", "output": "答", "history": "[]"}, "'history' is str"),
        (
            "deepctrl",
            {"input": "问", "output": "答", "history": [["一", ""]]},
            "answer 1 of 2 is empty",
        ),
        ("pclue", {"input": "问", "target": ""}, "answer 1 of 1 is empty"),
        ("pclue", {"input": "问"}, "no field 'target'"),
        ("sharegpt", {"conversations": []}, "there are no messages"),
        ("sharegpt", {"conversations": None}, "is NoneType, not a list"),
        ("sharegpt", {"conversations": ["问"]}, "message 1 is str"),
        ("sharegpt", {"conversations": [HUMAN]}, "no answer, only a question"),
        (
            "sharegpt",
            {"conversations": [HUMAN, {"from": "gpt", "value": ""}]},
            "answer 1 of 1 is empty",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": 3}]},
            "message 1 has no text in 'value'",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "bing", "value": "x"}]},
            "message 1 is from 'bing'",
        ),
        (
            "openai",
            {"messages": [MESSAGE, {"role": "bing", "content": "3"}]},
            "message 2 is from 'bing'",
        ),
        (
            "openai",
            {"messages": [MESSAGE, {"role": "assistant", "content": None}]},
            "message 2 has no text in 'content'",
        ),
        (
            "openai",
            {"messages": [{"role": "user", "content": [{"type": "odd"}]}]},
            "not text \\('odd'\\)",
        ),
        ("openai", {"messages": [{"role": ["user"], "content": "x"}]}, "message 1 is from"),
        ("openai", {"messages": [MESSAGE]}, "no answer, only a question"),
        (
            "openai",
            {"messages": [MESSAGE, {"role": "system", "content": "说中文。"}, MESSAGE]},
            "a system message stands after the first question",
        ),
        ("openai", {"messages": {"role": "user"}}, "is dict, not a list"),
    ],
)
def test_missing_or_invalid_field_is_named(name: str, row: object, reason: str) -> None:
    """Prevents a reason in the quarantine that does not name the fault."""
    with pytest.raises(SchemaError, match=reason):
        find_source(name).parse(orjson.dumps(row))


@pytest.mark.parametrize(
    "name", sorted({name for name, _ in SAMPLE_FILES} | {"alpaca", "sharegpt", "openai"})
)
def test_sources_declare_their_record_kind(name: str) -> None:
    """Prevents conversations from being prepared as another kind of record."""
    source = SOURCES[name]
    assert (source.name, source.kind) == (name, "conversations") and source.description


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def _write(data: bytes) -> Path:
        (tmp_path / "file").write_bytes(data)
        return tmp_path / "file"

    return _write


@pytest.mark.parametrize("name", [name for name, file in SAMPLE_FILES if ".test." in file])
def test_bad_lines_do_not_end_a_file(root: Path, write: Callable[[bytes], Path], name: str) -> None:
    """Prevents a bad line from costing the lines around it."""
    file = next(file for source, file in SAMPLE_FILES if source == name and ".test." in file)
    rows = rows_of(root / SAMPLE / file)[:3]
    first, second, third = (json.dumps(row, ensure_ascii=False).encode() for row in rows)
    expected = [parse(name, row) for row in rows]
    records = list(
        find_source(name).iter_records(
            write(b"\n".join([first, second[:-9], b"\xff", b"null", second, b"{}", third]))
        )
    )
    assert [record for record in records if isinstance(record, Conversation)] == expected
    assert [record.line for record in records if isinstance(record, BadRecord)] == [2, 3, 4, 6]
