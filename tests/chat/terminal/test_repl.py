"""The chat as a filter: questions in, answers out."""

import re
from pathlib import Path

import pytest

from tests.chat.conftest import ABOUT_BAI, ABOUT_GU, MAYOR, Chat, Process


@pytest.mark.slow
def test_piped_output_contains_only_answers(process: Process) -> None:
    """A prompt, a banner or an echo among the answers; questions after /quit answered; an exit code that is not 0."""
    done = process(f"\n  \n我叫书白。\n我叫什么？\n/quit\n{MAYOR}\n".encode())
    assert (done.returncode, done.stdout.decode()) == (0, "好的。\n书白\n")
    assert "模型：" in done.stderr.decode()


@pytest.mark.slow
def test_end_of_input_ends_chat(process: Process) -> None:
    """A last line without a newline that is lost, bytes that are no UTF-8 that end the program."""
    done = process(f"{MAYOR}\n".encode() + b"\xff\xfe\xb0\n" + "/重置\n我叫什么？".encode())
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "我不知道。" and lines[-1] == "你没有说过。"


def test_answer_uses_the_reference(chat: Chat, tmp_path: Path) -> None:
    """A reference that is announced but not in the prompt, or one that stays when it was changed or taken away."""
    file = tmp_path / "资料.txt"
    file.write_text(ABOUT_GU + "\n", encoding="utf-8-sig")
    said = [
        "/资料",
        MAYOR,
        f"/资料 @{file}",
        MAYOR,
        "/reference",
        f"/reference {ABOUT_BAI}",
        MAYOR,
        "/reset",
        MAYOR,
        "/资料 off",
        MAYOR,
        f"/资料 @{tmp_path}/没有",
        f"/资料 @{tmp_path}",
        MAYOR,
    ]
    done = chat("\n".join(said), "--reference", ABOUT_BAI)
    expected = [ABOUT_BAI, "白云飞", "顾长河", ABOUT_GU, "白云飞", "白云飞", "我不知道。"]
    assert done.out.splitlines()[:7] == expected, done.err
    assert done.err.count("读不了（") == 2 and done.code == 0
    assert chat(MAYOR, "--reference_file", str(file)).out == "顾长河\n"


def test_question_can_be_multiline_and_start_with_slash(chat: Chat, tmp_path: Path) -> None:
    """A line that goes on taken for a question of its own; a question taken for a command."""
    file = tmp_path / "对话.md"
    done = chat(f"第一行\\\n第二行\n/reset\n /帮助\n／保存 {file}\n第一行\\")
    text = file.read_text(encoding="utf-8")
    assert text.count("**人类：**") == 2
    assert "**人类：** 第一行\n第二行\n\n**助手：** 两行\n" in text and "**人类：** /帮助\n" in text
    assert (
        done.out.startswith("两行\n") and "以反斜杠" not in done.out and done.out.count("\n") == 3
    ), done.out


def test_settings_are_shown_changed_and_validated(chat: Chat) -> None:
    """A setting that is shown changed and is not, a wrong value taken, an unknown command sent to the model."""
    said = [
        "/temperature",
        "/温度 0.25",
        "/temperature",
        "/penalty 1.5",
        "/惩罚",
        "/top_p 0.5",
        "/top_k 3.5",
        "/top_p 7",
        "/penalty 无",
        "/temprature 1",
        "/show",
        "/帮助",
    ]
    done = chat("\n".join(said))
    shown = done.out.splitlines()
    assert [line.split("（")[0] for line in shown[:3]] == [
        "temperature 0",
        "temperature 0.25",
        "repetition_penalty 1.5",
    ]
    for line in (
        "top_p 0.5",
        "top_k 0",
        "temperature 0.25",
        "repetition_penalty 1.5",
        "资料：没有",
    ):
        assert re.search(rf"^{re.escape(line)}", done.out, re.MULTILINE), line
    for words in (
        "/top_k 3.5：要一个 0 到 100000 之间的整数",
        "/top_p 7：要一个 0 到 1 之间的数",
        "/penalty 无：要一个",
        "没有 /temprature 这个命令；有：/help  /reference  /wiki",
    ):
        assert words in done.err
    for name in (
        "/help",
        "/资料",
        "/wiki",
        "/temperature",
        "/top_p",
        "/penalty",
        "/重置",
        "/save",
        "/show",
        "/退出",
    ):
        assert name in done.out
    assert done.code == 0


def test_transcript_contains_the_conversation(chat: Chat, tmp_path: Path) -> None:
    """A conversation lost by /reset, another's file overwritten, a broken half of a file left behind."""
    folder = tmp_path / "saved"
    other = folder / "另.md"
    folder.mkdir()
    other.write_text("别人的", encoding="utf-8")
    said = [
        "/save 先",
        "我叫书白。",
        "我叫什么？",
        f"/save {folder}/对话.md",
        f"/资料 {ABOUT_BAI}",
        MAYOR,
        f"/保存 {folder}/对话.md",
        f"/save {other}",
        f"/save {folder}",
        "/save",
        f"/save {other}/里面.md",
    ]
    done = chat("\n".join(said))
    text = (folder / "对话.md").read_text(encoding="utf-8")
    order = [
        "## 对话 1",
        "**人类：** 我叫书白。",
        "**助手：** 好的。",
        "**人类：** 我叫什么？",
        "**助手：** 书白",
        "## 对话 2",
        f"> {ABOUT_BAI}",
        f"**人类：** {MAYOR}",
        "**助手：** 白云飞",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places) and "中断" not in text
    assert other.read_text(encoding="utf-8") == "别人的" and sorted(
        p.name for p in folder.iterdir()
    ) == ["另.md", "对话.md"]
    for words in ("没有什么可保存", "已经存在", "请给一个文件名", "写不了"):
        assert words in done.err, words


@pytest.mark.slow
def test_full_context_drops_oldest_turns_with_notice(chat: Chat) -> None:
    """A long chat that stops answering, or forgets in silence."""
    done = chat(
        "我叫书白。\n" * 40
        + "/show\n/资料 "
        + "这句话很长。" * 100
        + f"{ABOUT_BAI}\n{MAYOR}\n"
        + "问" * 600
        + "\n"
    )
    assert done.code == 0 and "Traceback" not in done.err
    forgotten = sum(map(int, re.findall(r"忘掉最早的 (\d+) 轮对话", done.err)))
    assert (
        re.search(rf"对话：40 轮，记得最近 {40 - forgotten} 轮", done.out) and 10 < forgotten < 39
    )
    assert re.search(r"资料太长：共 611 字，只读了前 \d+ 字", done.err) and "问题太长" in done.err


def test_pretrained_only_model_is_reported(chat: Chat, endless: Path) -> None:
    """Nonsense from a pretrained model without a word why, an answer cut at its limit that looks whole."""
    done = chat("你好\n", "--checkpoint", str(endless), "--max_new_tokens", "12")
    assert (
        "make sft" in done.err and "--max_new_tokens 的 12 个词元" in done.err and len(done.out) > 3
    )
