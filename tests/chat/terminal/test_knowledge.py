"""Chats with an index: passages for questions, `/查`, `/收录`, and what answers copy."""

from pathlib import Path

import pytest
import torch

from chat import load_model
from chat.passage_lookup import PassageLookup
from chat.terminal.session import Conversation, Session
from model.decode.prefix_cache import PrefixCache
from model.decode.sampling import Sampling
from tests.chat.conftest import (
    BAI_REFERENCE,
    GU_REFERENCE,
    LAKE_TEXT,
    MAYOR_QUESTION,
    Chat,
)

LAKE_QUESTION = "西湖上有什么桥？"
NO_INDEX = "没有资料库：请先用 make index 建立，再在启动时加上 --index 目录"


@pytest.mark.slow
def test_each_question_gets_its_passage(chat: Chat, index: Path) -> None:
    """Prevents a passage that is announced and not used, and one that outlives its question."""
    lines = [MAYOR_QUESTION, "/资料", "我叫书白。", "我叫什么？", "/资料", LAKE_QUESTION, "/资料"]
    result = chat("\n".join(lines), "--index", str(index))
    assert result.code == 0, result.err
    answers = result.out.splitlines()
    assert answers[:5] == [
        "白云飞",
        BAI_REFERENCE,
        "好的。",
        "书白",
        "当前没有资料，每个问题自动查找",
    ]
    assert answers[-2:] == ["西湖", LAKE_TEXT]
    notes = [line for line in result.err.splitlines() if line.startswith("资料：")]
    assert len(notes) == 4
    assert notes[0].startswith(f"资料：{BAI_REFERENCE}（得分 ") and notes[0].endswith("，镇志:1）")
    assert all("没有找到" in note and "没有依据" in note for note in notes[1:3])
    assert notes[3].startswith(f"资料：西湖｜{LAKE_TEXT}（得分 ")


def test_refused_question_changes_no_passage(chat: Chat, index: Path) -> None:
    """Prevents a follow-up that is answered from the passage of a question that was too long."""
    lines = [MAYOR_QUESTION, LAKE_QUESTION * 50, "为什么？", "/资料"]
    result = chat("\n".join(lines), "--index", str(index))
    assert "问题太长" in result.err
    assert "资料：沿用上一段（青禾镇的镇长是白云飞。……）" in result.err
    assert result.out.splitlines()[-1] == BAI_REFERENCE


@pytest.mark.slow
def test_automatic_passages_end_with_a_given_one(chat: Chat, index: Path) -> None:
    """Prevents a reference of the user that the next question's passage replaces."""
    lines = [
        MAYOR_QUESTION,
        "/资料 自动",
        MAYOR_QUESTION,
        "/资料 off",
        MAYOR_QUESTION,
        "/reference auto",
        f"/资料 {GU_REFERENCE}",
        MAYOR_QUESTION,
        "/资料 自动",
        MAYOR_QUESTION,
        "/重置",
        MAYOR_QUESTION,
    ]
    result = chat("\n".join(lines), "--index", str(index), "--reference", GU_REFERENCE)
    assert result.out.split() == ["顾长河", "白云飞", "我不知道。", "顾长河", "白云飞", "白云飞"]
    assert result.err.count("不再自动查找") == 3
    assert "对话重新开始，每个问题仍自动查找资料" in result.err


def test_chat_without_index_says_how(chat: Chat, tmp_path: Path) -> None:
    """Prevents commands that do nothing, or a traceback, where there is no index."""
    result = chat("/资料 自动\n/查 西湖\n/收录\n")
    assert (result.code, result.out) == (0, "")
    assert result.err.splitlines()[-3:] == [NO_INDEX] * 3
    # Refused before the model is loaded.
    result = chat("", "--index", str(tmp_path), "--checkpoint", "nowhere")
    assert result.code == 2 and result.err.count("\n") == 1
    assert result.err.startswith(f"error: {tmp_path} 中没有可用的资料库：请先运行 make index")


def test_search_prints_passages_and_asks_nothing(chat: Chat, index: Path) -> None:
    """Prevents an answer of the model, and a reference, from a mere look-up."""
    result = chat("/查 断桥\n/search 镇长\n/查 龘\n/查\n/资料\n", "--index", str(index))
    lines = result.out.splitlines()
    assert lines[0].startswith(f"1. 西湖｜{LAKE_TEXT}（得分 ") and lines[0].endswith("，游记:2）")
    assert lines[1].startswith(f"1. {BAI_REFERENCE}（得分 ")
    assert lines[2:] == ["当前没有资料，每个问题自动查找"]
    assert result.err.splitlines()[-2:] == [
        "资料库中没有含有这些词的段落",
        "请给出要查的词，例如 /查 西湖 断桥",
    ]


def test_excerpt_shows_what_was_searched(chat: Chat, index: Path, tmp_path: Path) -> None:
    """Prevents excerpts that are the beginnings of long passages, without the words."""
    text = "天气很好。" * 20 + "断桥边的荷花开了。" + "天气很好。" * 20
    file = tmp_path / "长.txt"
    file.write_text(text, encoding="utf-8")
    result = chat(f"/资料 @{file}\n/收录\n/查 荷花\n", "--index", str(index))
    first = result.out.splitlines()[0]
    assert first.startswith("1. …") and "断桥边的荷花开了。" in first and first.count("天气") < 15


@pytest.mark.slow
def test_reference_is_added_to_the_index(chat: Chat, index: Path) -> None:
    """Prevents an addition that is not found in the same chat, or that is stored twice."""
    lines = [
        "/收录",
        f"/资料 {GU_REFERENCE}顾长河爱钓鱼。",
        "/收录",
        "/收录",
        "/查 钓鱼",
        "/资料 自动",
        "顾长河爱钓鱼吗？",
        "/add",
    ]
    result = chat("\n".join(lines), "--index", str(index))
    assert "当前没有资料：请先用 /维基 关键词" in result.err
    assert "已加入资料库：1 段；现在共 3 段" in result.err
    assert "资料库中已有这份资料；现在共 3 段" in result.err
    assert result.out.startswith(f"1. {GU_REFERENCE}顾长河爱钓鱼。（得分 ")
    assert f"资料：{GU_REFERENCE}顾长河爱钓鱼。（得分 " in result.err
    assert result.err.splitlines()[-1] == "当前的资料就是从资料库中找到的，不必再收录"
    assert len(PassageLookup.open(index)) == 3


@pytest.mark.slow
def test_copied_parts_are_shown(chat: Chat, tmp_path: Path) -> None:
    """Prevents a share without its passage, and marks at other places than what was copied."""
    file = tmp_path / "对话.md"
    lines = [
        "/依据",
        MAYOR_QUESTION,
        "/依据",
        f"/资料 {BAI_REFERENCE}",
        "/依据",
        MAYOR_QUESTION,
        "/依据",
        "/依据 开",
        MAYOR_QUESTION,
        "/依据 也许",
        f"/保存 {file}",
    ]
    result = chat("\n".join(lines))
    assert result.out.split() == ["我不知道。", "白云飞", "【白云飞】", "白云飞", "【白云飞】"]
    assert result.err.count("还没有根据资料的回答") == 2
    assert result.err.count("上一个回答没有可对照的资料") == 1
    assert result.err.count("（回答的 100% 出自资料）") == 2
    assert "/依据：应为 开 或 关，而不是 也许" in result.err
    text = file.read_text(encoding="utf-8")
    assert text.count("（回答的 100% 出自资料）") == 2
    assert "出自" not in text[: text.index("## 对话 2")]


@pytest.mark.slow
def test_transcript_has_the_passage_of_each_question(
    chat: Chat, index: Path, tmp_path: Path
) -> None:
    """Prevents answers beside the passage of another question."""
    file = tmp_path / "对话.md"
    lines = [MAYOR_QUESTION, "是吗？", LAKE_QUESTION, "我叫书白。", f"/保存 {file}"]
    result = chat("\n".join(lines), "--index", str(index))
    assert "资料：沿用上一段（青禾镇的镇长是白云飞。……）" in result.err
    text = file.read_text(encoding="utf-8")
    parts = [
        "## 对话 1",
        "镇志:1，得分 ",
        f"> {BAI_REFERENCE}",
        f"**人类：** {MAYOR_QUESTION}",
        "**人类：** 是吗？",
        "## 对话 2",
        "游记:2，得分 ",
        f"> 西湖\n> {LAKE_TEXT}",
        f"**人类：** {LAKE_QUESTION}",
        "## 对话 3",
        "**人类：** 我叫书白。",
    ]
    positions = [text.index(part) for part in parts]
    assert positions == sorted(positions) and text.count("资料（") == 2


@pytest.mark.slow
def test_new_passage_starts_a_new_prompt(talker: Path, index: Path) -> None:
    """Prevents turns about other passages in a prompt, and keys of their ids in its cache."""
    loaded_model = load_model.load_chat_model(talker, torch.device("cpu"), "fp32")
    sampling = Sampling(temperature=1.0)
    cached, uncached = (Session(loaded_model, sampling, 20, 0) for _ in range(2))
    questions = [MAYOR_QUESTION, "为什么？", LAKE_QUESTION, "它呢？", "我叫书白。", MAYOR_QUESTION]
    num_exchanges = []
    for question in questions:
        for session in (cached, uncached):
            session.lookup = PassageLookup.open(index)
            session.look_up(question)
        prompt = cached.build_prompt(question)
        assert prompt == uncached.build_prompt(question)
        conversation = cached.conversation
        expected = loaded_model.template.encode_prompt(
            loaded_model.tokenizer, conversation.visible_turns, question, conversation.reference
        )
        assert prompt.ids == expected
        uncached._prefix_cache = PrefixCache(loaded_model.model, loaded_model.context_length)
        answer, other = ("".join(each.stream_answer(prompt)) for each in (cached, uncached))
        assert answer == other
        for session in (cached, uncached):
            session.add_exchange(question, answer, is_interrupted=False)
        num_exchanges.append(len(cached.conversation.exchanges))
    assert num_exchanges == [1, 2, 1, 2, 1, 1]
    references = [conversation.reference for conversation in cached.conversations]
    assert references == [BAI_REFERENCE, f"西湖\n{LAKE_TEXT}", "", BAI_REFERENCE]


def test_share_is_of_what_the_model_saw(talker: Path) -> None:
    """Prevents an answer that counts as copied from the end of a reference that was cut off."""
    loaded_model = load_model.load_chat_model(talker, torch.device("cpu"), "fp32")
    session = Session(loaded_model, Sampling(temperature=0), 20, 0)
    session.start_conversation(Conversation("这句话很长。" * 100 + BAI_REFERENCE))
    session.build_prompt(MAYOR_QUESTION)
    session.add_exchange(MAYOR_QUESTION, "青禾镇的镇长是白云飞", is_interrupted=False)
    session.add_exchange(MAYOR_QUESTION, "这句话很长。", is_interrupted=False)
    assert [each.copied_share for each in session.conversation.exchanges] == [0, 1]
