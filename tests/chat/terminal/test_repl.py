"""Questions and commands in, answers out, through pipes."""

import re
from pathlib import Path

import pytest

from tests.chat.conftest import BAI_REFERENCE, GU_REFERENCE, MAYOR_QUESTION, Chat, Process


@pytest.mark.slow
def test_piped_output_contains_only_answers(process: Process) -> None:
    """Prevents a prompt or an echo among the answers, and an answer after `/quit`."""
    result = process(f"\n  \n我叫书白。\n我叫什么？\n/quit\n{MAYOR_QUESTION}\n".encode())
    assert (result.returncode, result.stdout.decode()) == (0, "好的。\n书白\n")
    assert "模型：" in result.stderr.decode()


@pytest.mark.slow
def test_end_of_input_ends_chat(chat: Chat) -> None:
    """Prevents the loss of a last line without newline, and a stop at bytes that are not UTF-8."""
    stdin = f"{MAYOR_QUESTION}\n".encode() + b"\xff\xfe\xb0\n" + "/重置\n我叫什么？".encode()
    result = chat(stdin)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "我不知道。" and lines[-1] == "你没有说过。"


@pytest.mark.slow
def test_answer_uses_the_reference(chat: Chat, tmp_path: Path) -> None:
    """Prevents a reference that is announced but not used, cut, or that outlives `/资料 off`."""
    file = tmp_path / "资料.txt"
    file.write_text(GU_REFERENCE + "\n", encoding="utf-8-sig")
    lines = [
        "/资料",
        MAYOR_QUESTION,
        f"/资料 @{file}",
        MAYOR_QUESTION,
        "/reference",
        f"/reference {BAI_REFERENCE}",
        MAYOR_QUESTION,
        "/reset",
        MAYOR_QUESTION,
        "/资料 off",
        MAYOR_QUESTION,
    ]
    result = chat("\n".join(lines), "--reference", BAI_REFERENCE)
    assert result.code == 0 and result.out.splitlines() == [
        BAI_REFERENCE,
        "白云飞",
        "顾长河",
        GU_REFERENCE,
        "白云飞",
        "白云飞",
        "我不知道。",
    ], result.err
    # Training keeps the indentation of a paragraph, too.
    file.write_text(f"\n　　{GU_REFERENCE}\n", encoding="utf-8")
    lines = ["/资料", MAYOR_QUESTION]
    result = chat("\n".join(lines), "--reference_file", str(file))
    assert result.out == f"　　{GU_REFERENCE}\n顾长河\n"


@pytest.mark.slow
def test_unreadable_reference_keeps_the_conversation(chat: Chat, tmp_path: Path) -> None:
    """Prevents a reference that is dropped because its replacement cannot be read."""
    lines = [f"/资料 @{tmp_path}/没有", f"/资料 @{tmp_path}", MAYOR_QUESTION]
    result = chat("\n".join(lines), "--reference", BAI_REFERENCE)
    assert (result.code, result.out) == (0, "白云飞\n")
    assert result.err.count("无法读取（") == 2


@pytest.mark.slow
def test_question_can_be_multiline_and_start_with_slash(chat: Chat, tmp_path: Path) -> None:
    """Prevents the parts of a question from being asked apart, or taken for a command."""
    file = tmp_path / "对话.md"
    result = chat(f"第一行\\\n第二行\n/reset\n /帮助\n／保存 {file}\n第一行\\")
    text = file.read_text(encoding="utf-8")
    assert text.count("**人类：**") == 2
    assert "**人类：** 第一行\n第二行\n\n**助手：** 两行\n" in text
    assert "**人类：** /帮助\n" in text
    assert result.out.startswith("两行\n") and result.out.count("\n") == 3, result.out
    assert "行末加反斜杠" not in result.out


def test_settings_are_shown_and_changed(chat: Chat) -> None:
    """Prevents a setting that is shown as changed and is not."""
    lines = [
        "/temperature",
        "/温度 0.25",
        "/temperature",
        "/penalty 1.5",
        "/惩罚",
        "/top_p 0.5",
        "/show",
    ]
    result = chat("\n".join(lines))
    shown = [line.split("（")[0] for line in result.out.splitlines()]
    assert shown[:3] == ["temperature 0", "temperature 0.25", "repetition_penalty 1.5"]
    settings = {"temperature 0.25", "top_p 0.5", "top_k 0", "repetition_penalty 1.5", "资料：无"}
    assert settings <= set(shown)
    assert "temperature 已设为 0.25" in result.err and result.code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/top_k 3.5", "/top_k：应为 0 到 100000 之间的整数，而不是 3.5"),
        ("/top_p 7", "/top_p：应为 0 到 1 之间的数，而不是 7"),
        ("/penalty 无", "/penalty：应为 1 到 10 之间的数，而不是 无"),
        ("/temprature 1", "没有 /temprature 这个命令，可用的有：/help  /reference  /wiki"),
        ("/", "没有 / 这个命令"),
    ],
)
def test_wrong_command_is_explained(chat: Chat, line: str, error: str) -> None:
    """Prevents a wrong value that is taken, and an unknown command that is sent to the model."""
    result = chat(line)
    assert (result.code, result.out) == (0, "")
    assert result.err.splitlines()[-1].startswith(error)


def test_help_lists_all_commands(chat: Chat) -> None:
    """Prevents a command that nobody can find."""
    commands = {line.split()[0] for line in chat("/帮助").out.splitlines()}
    assert commands >= {
        "/help",
        "/reference",
        "/wiki",
        "/search",
        "/add",
        "/copied",
        "/example",
        "/temperature",
        "/top_p",
        "/top_k",
        "/penalty",
        "/no_repeat_ngram",
        "/reset",
        "/save",
        "/show",
        "/quit",
    }


@pytest.mark.slow
def test_transcript_contains_all_conversations(chat: Chat, tmp_path: Path) -> None:
    """Prevents the loss of the conversations before `/reset` and before a new reference."""
    file = tmp_path / "对话.md"
    lines = [
        "我叫书白。",
        "我叫什么？",
        f"/save {file}",
        f"/资料 {BAI_REFERENCE}",
        MAYOR_QUESTION,
        f"/保存 {file}",
    ]
    chat("\n".join(lines))
    text = file.read_text(encoding="utf-8")
    parts = [
        "## 对话 1",
        "**人类：** 我叫书白。",
        "**助手：** 好的。",
        "**人类：** 我叫什么？",
        "**助手：** 书白",
        "## 对话 2",
        f"> {BAI_REFERENCE}",
        f"**人类：** {MAYOR_QUESTION}",
        "**助手：** 白云飞",
    ]
    positions = [text.index(part) for part in parts]
    assert positions == sorted(positions) and "中断" not in text


@pytest.mark.slow
def test_save_overwrites_only_its_own_file(chat: Chat, tmp_path: Path) -> None:
    """Prevents the loss of another file, and half a transcript that is left behind."""
    folder = tmp_path / "saved"
    folder.mkdir()
    other_file = folder / "另.md"
    other_file.write_text("别人的", encoding="utf-8")
    lines = [
        "/save 先",
        MAYOR_QUESTION,
        f"/save {other_file}",
        f"/save {folder}",
        "/save",
        f"/save {other_file}/里面.md",
    ]
    result = chat("\n".join(lines))
    errors = result.err.splitlines()[-5:]
    expected = ["没有可以保存的对话", "已存在", "已存在", "请给出文件名", "无法写入"]
    for error, expected_text in zip(errors, expected, strict=True):
        assert expected_text in error
    assert other_file.read_text(encoding="utf-8") == "别人的"
    assert [path.name for path in folder.iterdir()] == ["另.md"]


@pytest.mark.slow
def test_full_context_drops_oldest_turns_with_notice(chat: Chat) -> None:
    """Prevents a long chat that stops answering, or that forgets silently."""
    long_reference = "这句话很长。" * 100 + BAI_REFERENCE
    lines = [
        *(["我叫书白。"] * 40),
        "/show",
        f"/资料 {long_reference}",
        MAYOR_QUESTION,
        "问" * 600,
    ]
    result = chat("\n".join(lines))
    assert result.code == 0 and "Traceback" not in result.err
    num_forgotten = sum(map(int, re.findall(r"忘记了最早的 (\d+) 轮对话", result.err)))
    assert 10 < num_forgotten < 39
    assert f"对话：共 40 轮，模型能看到最近 {40 - num_forgotten} 轮" in result.out
    assert re.search(r"资料太长：共 611 字，只用了前 \d+ 字", result.err)
    assert "问题太长" in result.err


@pytest.mark.slow
def test_pretrained_only_model_is_reported(chat: Chat, endless: Path) -> None:
    """Prevents nonsense without a word why, and a cut answer that looks complete."""
    result = chat("你好\n", "--checkpoint", str(endless), "--max_new_tokens", "12")
    assert "make sft" in result.err and len(result.out) > 3
    assert "已达到 --max_new_tokens 的上限 12 个词元" in result.err
