"""Titles that are asked for after some turns of a chat."""

import json
import random
from pathlib import Path

import pytest

from common.errors import UserError
from data.corpora import resolver
from data.corpora.resolver import resolve_shard_set
from data.corpora.sample import SAMPLE_SFT_FILES, SMALL_TOKENIZER
from data.kinds import conversations
from data.records import Conversation, Summary, Turn
from data.shards import SPLITS, ShardSet
from data.sources import find_source
from data.stored_records import StoredRecords

CHARACTERS = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜"
NUM_ARTICLES = 60
CHATS = [
    ["你好", "你好呀", "吃了吗", "吃过了", "再见", "再见", "真的", "真的", "还在吗", "不在"],
    ["今天下雨", "记得带伞", "长" * 300, "这个回答太长，不会有人看到"],
    ["字" * 201, "这个聊天从开头就太长"],
]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write summaries, of which one has a test passage, and chats, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    chance = random.Random(0)
    articles = ["".join(chance.choices(CHARACTERS, k=80)) for _ in range(NUM_ARTICLES)]
    lines = [f"第{number}篇的题目\t{article}。" for number, article in enumerate(articles)]
    Path("train.tsv").write_text("\n".join(["标题\t摘要", *lines]), encoding="utf-8")
    test = f"标题\t摘要\n别的题目\t{articles[7][20:60]}"
    Path("test.tsv").write_text(test, encoding="utf-8")
    chats = [
        {"dialog_id": str(number), "document_id": number, "content": content}
        for number, content in enumerate(CHATS)
    ]
    Path("chats.json").write_text(json.dumps(chats, ensure_ascii=False), encoding="utf-8")


def read(stored: StoredRecords, split: str) -> list[Conversation]:
    records = [stored.record(index) for index in range(len(stored))]
    assert all(isinstance(record, Conversation) for record in records), split
    return [record for record in records if isinstance(record, Conversation)]


def test_title_is_asked_for_after_the_beginning_of_a_chat() -> None:
    """Prevents chats without the article, chats that are trained on, and test passages."""
    shards = ShardSet.open(
        resolve_shard_set("after_chat(train.tsv,chats.json,test.tsv)", SMALL_TOKENIZER)
    )
    assert shards.kind is conversations.KIND
    assert shards.manifest["report"]["dropped"] == {"shares a passage with a test set": 1}
    records = [record for split in SPLITS for record in read(shards.load_records(split), split)]
    source = ShardSet.open(resolve_shard_set("train.tsv", SMALL_TOKENIZER))
    summaries = {
        stored.record(index).title: stored.record(index).article
        for stored in map(source.load_records, SPLITS)
        for index in range(len(stored))
    }
    assert len(records) == len(summaries) - 1 == NUM_ARTICLES - 1
    beginnings = [
        tuple(Turn(*content[start : start + 2], has_loss=False) for start in range(0, stop, 2))
        for content, num_turns in zip(CHATS, (4, 1, 0), strict=True)
        for stop in range(2, 2 * num_turns + 1, 2)
    ]
    used = set()
    for record in records:
        *chat, request = record.turns
        assert summaries[request.answer] in request.question and request.has_loss
        used.add(beginnings.index(tuple(chat)))
    assert used == set(range(5))
    assert len({record.turns[-1].question[:4] for record in records}) > 5
    assert len(shards.load_records("validation")) == len(source.load_records("validation")) > 0


def test_known_test_sets_are_left_out() -> None:
    """Prevents titles of a test set in the training data because nobody named its file."""
    [path] = SAMPLE_SFT_FILES["csl"].test
    record = next(iter(find_source("csl").iter_records(path)))
    assert isinstance(record, Summary)
    with Path("train.tsv").open("a", encoding="utf-8") as file:
        file.write(f"\n题目\t{record.article[20:60]}{CHARACTERS}")
    folder = resolve_shard_set("after_chat(train.tsv,chats.json)", SMALL_TOKENIZER)
    report = ShardSet.open(folder).manifest["report"]
    assert report["dropped"] == {"shares a passage with a test set": 1}


def test_chats_with_a_system_text_are_left_out() -> None:
    """Prevents answers that follow an instruction which the conversation does not have."""
    turns = [{"from": "human", "value": "你是谁"}, {"from": "gpt", "value": "我是一只猫"}]
    chats = [{"conversations": [{"from": "system", "value": "你是猫"}, *turns]}]
    chats.append({"conversations": [{**turns[0]}, {"from": "gpt", "value": "我是一个助手"}]})
    lines = [json.dumps(chat, ensure_ascii=False) for chat in chats]
    Path("chats.jsonl").write_text("\n".join(lines), encoding="utf-8")
    shards = ShardSet.open(resolve_shard_set("after_chat(train.tsv,chats.jsonl)", SMALL_TOKENIZER))
    records = read(shards.load_records("train"), "train")
    assert {record.turns[0].answer for record in records} == {"我是一个助手"}


def test_the_test_split_of_the_summaries_is_not_that_of_the_chats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents titles without a chat that are filed as the score of titles after one."""
    monkeypatch.setattr(resolver, "_find_test_files", lambda _name: ("csl", [Path("test.tsv")]))
    folder = resolve_shard_set("after_chat(train.tsv,chats.json)", SMALL_TOKENIZER)
    with pytest.raises(UserError, match="has no test split"):
        resolver.find_test_split(ShardSet.open(folder))
    folder = resolve_shard_set("decontaminated(train.tsv)", SMALL_TOKENIZER)
    assert resolver.find_test_split(ShardSet.open(folder)) == ("csl", [Path("test.tsv")])


def test_file_of_chats_that_cannot_be_read_is_refused() -> None:
    """Prevents requests that all follow the one chat of a damaged file that can be read."""
    good = json.dumps({"instruction": "你好", "output": "你好"}, ensure_ascii=False)
    Path("chats.jsonl").write_text("\n".join([good, "{", good[:-3]]), encoding="utf-8")
    with pytest.raises(UserError, match=r"2 of 3 records cannot be read.*another CHAT_FILE"):
        resolve_shard_set("after_chat(train.tsv,chats.jsonl)", SMALL_TOKENIZER)


def test_other_chats_make_another_set(capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents an old set after the file of chats was replaced."""
    name = "after_chat(train.tsv,chats.json)"
    outputs, numbers_of_turns = [], []
    for content in (CHATS[0], CHATS[0], CHATS[0][:2]):
        chats = [{"dialog_id": "1", "document_id": 1, "content": content}]
        Path("chats.json").write_text(json.dumps(chats, ensure_ascii=False), encoding="utf-8")
        capsys.readouterr()
        shards = ShardSet.open(resolve_shard_set(name, SMALL_TOKENIZER))
        outputs.append(f"{name}:" in capsys.readouterr().out)
        used = {record.turns[:-1] for record in read(shards.load_records("train"), "train")}
        numbers_of_turns.append(sorted(map(len, used)))
    assert outputs == [True, False, True]
    assert numbers_of_turns == [[1, 2, 3, 4], [1, 2, 3, 4], [1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "CHAT_FILE is no file of conversations"),
        (",none.json", "none.json is no file of conversations"),
        (",test.tsv", "test.tsv has summaries, not conversations"),
        (",chats.json,none.tsv", "none.tsv is no file"),
    ],
)
def test_wrong_arguments_are_named(arguments: str, message: str) -> None:
    """Prevents summaries in the place of chats, and a traceback for a typo."""
    with pytest.raises(UserError, match=message):
        resolve_shard_set(f"after_chat(train.tsv{arguments})", SMALL_TOKENIZER)
