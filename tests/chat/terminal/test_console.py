"""The chat on a terminal: a process on a pseudo-terminal that gets key by key."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chat.terminal.console import Console
from tests.chat.conftest import BAI_REFERENCE, MAYOR_QUESTION, chat_arguments
from tests.helpers.terminal import (
    BACKSPACE,
    CTRL_C,
    CTRL_D,
    TIMEOUT_SECONDS,
    UP,
    SetUp,
    Terminal,
)

StartChat = Callable[..., Terminal]
DIM, UNDERLINED = "\x1b[2m", "\x1b[4m"
ERASE_TO_END = "\x1b[K"


@pytest.fixture
def start_chat(environment: dict[str, str]) -> Iterator[StartChat]:
    """Start chats with a checkpoint, each on a terminal of its own."""
    terminals: list[Terminal] = []

    def start(checkpoint: Path, *options: str, set_up: SetUp | None = None) -> Terminal:
        arguments = chat_arguments(checkpoint, options)
        terminals.append(Terminal("chat", arguments, environment, set_up))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def assert_clean_exit(terminal: Terminal) -> None:
    output = terminal.wait_for_exit()
    assert terminal.process.exitcode == 0 and "Traceback" not in output, output


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_chat(
    start_chat: StartChat, endless: Path, tmp_path: Path
) -> None:
    """Prevents an endless answer that ends only with the conversation."""
    file = tmp_path / "对话.md"
    terminal = start_chat(endless, "--max_new_tokens", "100000")
    terminal.at_prompt("说个不停\r")
    terminal.wait_for("助手：")
    terminal.wait_for_bytes(200)
    terminal.type(CTRL_C)
    terminal.wait_for("已中断，已生成的部分保留在对话中")
    terminal.at_prompt(f"/save {file}\r")
    terminal.wait_for("已保存到")
    terminal.at_prompt("/quit\r")
    assert_clean_exit(terminal)
    text = file.read_text(encoding="utf-8")
    answer = text[text.index("**助手：**") :]
    assert text.count("**人类：**") == 1
    assert answer.rstrip().endswith("（已中断）") and len(answer) > 30


@pytest.mark.slow
def test_ctrl_c_at_the_prompt_clears_the_line(start_chat: StartChat, talker: Path) -> None:
    """Prevents one Ctrl-C from ending the chat, or from keeping the line it should discard."""
    terminal = start_chat(talker)
    terminal.at_prompt("写了一半的话")
    terminal.interrupt_after("写了一半的话")
    terminal.wait_for("再按一次 Ctrl-C 退出")
    terminal.at_prompt("我叫书白。\r")
    assert "写了一半的话" not in terminal.wait_for("助手：好的。")
    terminal.at_prompt("第一行\\\r")
    terminal.at_prompt("/重置", "……")
    terminal.interrupt_after("/重置")
    terminal.wait_for("再按一次")
    terminal.at_prompt("我叫什么？\r")
    terminal.wait_for("助手：书白")
    terminal.interrupt_after("你：")
    terminal.wait_for("再按一次")
    terminal.interrupt_after("你：")
    assert_clean_exit(terminal)


@pytest.mark.slow
def test_line_editing_and_history_across_sessions(start_chat: StartChat, talker: Path) -> None:
    """Prevents a chat without line editing, and lines that the next session cannot recall."""
    terminal = start_chat(talker)
    terminal.wait_for("你：")
    terminal.type_and_see("我叫书河。", echo="我叫书河。")
    for _ in range(2):
        terminal.type_and_see(BACKSPACE, echo=ERASE_TO_END)
    terminal.type_and_see("白。", echo="白。")
    terminal.type("\r")
    terminal.wait_for("助手：好的。")
    terminal.at_prompt("我叫什么？\r")
    terminal.wait_for("助手：书白")
    terminal.at_prompt(CTRL_D)
    assert_clean_exit(terminal)
    next_session = start_chat(talker)
    next_session.wait_for("你：")
    next_session.type_and_see(UP, echo="我叫什么？")
    next_session.type_and_see(UP, echo="书白。")
    next_session.type("\r")
    next_session.wait_for("助手：好的。")
    next_session.at_prompt(CTRL_D)
    assert_clean_exit(next_session)


@pytest.mark.slow
def test_copied_parts_are_underlined(start_chat: StartChat, talker: Path) -> None:
    """Prevents brackets where a terminal can underline, and escape codes in place of text."""
    terminal = start_chat(talker, "--reference", BAI_REFERENCE)
    terminal.at_prompt(f"{MAYOR_QUESTION}\r")
    terminal.wait_for(f"{DIM}（回答的 100% 出自资料）")
    terminal.at_prompt("/依据\r")
    assert "【" not in terminal.wait_for(f"{UNDERLINED}白云飞\x1b[24m")
    terminal.at_prompt(CTRL_D)
    assert_clean_exit(terminal)


def test_marks_are_brackets_in_a_pipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Prevents escape codes in a file, of the chat or of the model, and marks that drift."""
    Console(tmp_path / "history").write_marked("甲\x1b[1m乙丙。丁", [(5, 7), (8, 9)])
    assert capsys.readouterr().out == "甲\ufffd[1m【乙丙】。【丁】\n"


def hide_readline() -> None:
    """Let `import readline` fail, as where Python was built without it."""
    sys.modules["readline"] = None  # type: ignore[assignment]


@pytest.mark.slow
def test_chat_works_without_readline(start_chat: StartChat, talker: Path) -> None:
    """Prevents a failure to start where Python was built without readline."""
    terminal = start_chat(talker, set_up=hide_readline)
    terminal.at_prompt(f"{MAYOR_QUESTION}\n")
    terminal.wait_for("助手：我不知道。")
    terminal.at_prompt(CTRL_D)
    assert_clean_exit(terminal)


@pytest.mark.slow
def test_errors_are_shown_in_chinese_and_chat_continues(
    start_chat: StartChat, talker: Path
) -> None:
    """Prevents an error that ends the chat, is in English, or leaves no prompt behind."""
    terminal = start_chat(talker)
    for line, error in (
        ("/资料 @没有", "没有：无法读取（没有这个文件或目录）"),
        ("/save 对话.md", "还没有可以保存的对话"),
        ("/温度 热", "应为 0 到 5"),
        ("/维基 李白", "无法连接维基百科：请检查网络后重试"),
        ("/保村", "没有 /保村 这个命令"),
    ):
        terminal.at_prompt(f"{line}\r")
        terminal.wait_for(error)
    terminal.at_prompt(f"{MAYOR_QUESTION}\r")
    terminal.wait_for("助手：我不知道。")
    terminal.at_prompt(CTRL_D)
    assert_clean_exit(terminal)


@dataclass(frozen=True)
class Nohup:
    """Ignore the hang-up of the terminal, and write errors into a file if there is one."""

    log_file: Path | None

    def __call__(self) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if self.log_file is not None:
            os.dup2(os.open(self.log_file, os.O_CREAT | os.O_WRONLY), 2)


@pytest.mark.slow
@pytest.mark.parametrize("log_errors", [True, False], ids=["stderr-in-a-file", "stderr-closed"])
def test_closed_terminal_ends_chat(
    start_chat: StartChat, endless: Path, tmp_path: Path, log_errors: bool
) -> None:
    """Prevents a chat under nohup that answers nobody for ever, or that blames the disk."""
    log_file = tmp_path / "errors"
    terminal = start_chat(
        endless, "--max_new_tokens", "100000", set_up=Nohup(log_file if log_errors else None)
    )
    terminal.at_prompt("说个不停\r")
    terminal.wait_for("助手：")
    terminal.hang_up()
    terminal.process.join(TIMEOUT_SECONDS)
    assert terminal.process.exitcode == 2
    if log_errors:
        *_, line = log_file.read_text(encoding="utf-8").splitlines()
        assert line.startswith("error: 终端已断开") and "（输入输出错误）" in line
