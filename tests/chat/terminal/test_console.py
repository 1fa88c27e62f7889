"""The chat on a terminal: a process on a pseudo-terminal that gets key by key."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chat.conftest import MAYOR_QUESTION, chat_arguments

TIMEOUT_SECONDS = 90.0  # the machine may be busy
CTRL_C = "\x03"
CTRL_D = "\x04"
BACKSPACE = "\x7f"
UP = "\x1b[A"


class Terminal:
    """The controlling side of a process's terminal."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._descriptor, process_side = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "TERM": "xterm"},
            stdin=process_side,
            stdout=process_side,
            stderr=process_side,
            start_new_session=True,
            preexec_fn=self._set_up_process,
        )
        os.close(process_side)
        self._output = b""

    @staticmethod
    def _set_up_process() -> None:
        """Do what a shell does for its foreground process.

        Tests that run in the background (`make test &`) inherit that SIGINT is ignored.
        """
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def at_prompt(self, keys: str, prompt: str = "你：") -> None:
        """Type after the prompt; before it readline does not edit the line yet."""
        self.wait_for(prompt)
        self.type(keys)

    def interrupt_after(self, text: str) -> None:
        """Press Ctrl-C once `text` is on the screen and the process waits for a key.

        CPython's readline handles a signal only while it waits; one that arrives between an echo
        and that has no effect until the line ends. A test is fast enough to hit that moment, so it
        asks the kernel whether the process sleeps.
        """
        self.wait_for(text)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        stat_file = Path(f"/proc/{self.process.pid}/stat")
        while stat_file.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline, "the process never waited for a key"
            time.sleep(0.001)
        self.type(CTRL_C)

    def wait_for(self, text: str) -> str:
        """Wait for `text`; return the output up to and with it and leave the rest unread."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while text.encode() not in self._output:
            assert self._read_more(deadline), (
                f"{text!r} is missing: {self._output.decode(errors='replace')!r}"
            )
        before, match, self._output = self._output.partition(text.encode())
        return (before + match).decode(errors="replace")

    def wait_for_bytes(self, count: int) -> None:
        """Wait for `count` bytes of output and leave them unread."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(self._output) < count:
            assert self._read_more(deadline), f"only {self._output!r} arrived"

    def wait_for_exit(self) -> str:
        """Wait for the process to end; return the rest of its output."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self._read_more(deadline):
            pass
        self.process.wait(max(1.0, deadline - time.monotonic()))
        return self._output.decode(errors="replace")

    def _read_more(self, deadline: float) -> bool:
        """Read a block of output; return False at its end and after the deadline."""
        timeout = max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([self._descriptor], [], [], timeout)
        try:
            block = os.read(self._descriptor, 1 << 16) if ready else b""
        except OSError:  # how Linux reports that the process has closed the terminal
            block = b""
        self._output += block
        return bool(block)

    def hang_up(self) -> None:
        """Close the terminal, as closing a window or losing a connection does."""
        os.dup2(os.open(os.devnull, os.O_RDWR), self._descriptor)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._descriptor)


StartChat = Callable[..., Terminal]


@pytest.fixture
def start_chat(root: Path, environment: dict[str, str]) -> Iterator[StartChat]:
    """Start chats with a checkpoint, each on a terminal of its own."""
    terminals: list[Terminal] = []

    def start(
        checkpoint: Path, *options: str, program: tuple[str, ...] = ("-m", "chat")
    ) -> Terminal:
        command = [sys.executable, *program, *chat_arguments(checkpoint, options)]
        terminals.append(Terminal(command, root, environment))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def assert_clean_exit(terminal: Terminal) -> None:
    output = terminal.wait_for_exit()
    assert terminal.process.returncode == 0 and "Traceback" not in output, output


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
    terminal.at_prompt("我叫书河。" + BACKSPACE * 2 + "白。\r")
    terminal.wait_for("助手：好的。")
    terminal.at_prompt("我叫什么？\r")
    terminal.wait_for("助手：书白")
    terminal.at_prompt(CTRL_D)
    assert_clean_exit(terminal)
    next_session = start_chat(talker)
    next_session.at_prompt(UP * 2 + "\r")
    next_session.wait_for("助手：好的。")
    next_session.at_prompt(CTRL_D)
    assert_clean_exit(next_session)


@pytest.mark.slow
def test_chat_works_without_readline(start_chat: StartChat, talker: Path) -> None:
    """Prevents a failure to start where Python was built without readline."""
    code = (
        "import runpy, sys; sys.modules['readline'] = None; "
        "runpy.run_module('chat', run_name='__main__')"
    )
    terminal = start_chat(talker, program=("-c", code))
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


@pytest.mark.slow
@pytest.mark.parametrize("log_errors", [True, False], ids=["stderr-in-a-file", "stderr-closed"])
def test_closed_terminal_ends_chat(
    start_chat: StartChat, endless: Path, tmp_path: Path, log_errors: bool
) -> None:
    """Prevents a chat under nohup that answers nobody for ever, or that blames the disk."""
    log_file = tmp_path / "errors"
    redirect = "pass"
    if log_errors:
        redirect = f"os.dup2(os.open({str(log_file)!r}, os.O_CREAT | os.O_WRONLY), 2)"
    code = (
        f"import os, runpy, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {redirect}; "
        "runpy.run_module('chat', run_name='__main__')"
    )
    terminal = start_chat(endless, "--max_new_tokens", "100000", program=("-c", code))
    terminal.at_prompt("说个不停\r")
    terminal.wait_for("助手：")
    terminal.hang_up()
    assert terminal.process.wait(TIMEOUT_SECONDS) == 2
    if log_errors:
        *_, line = log_file.read_text(encoding="utf-8").splitlines()
        assert line.startswith("error: 终端已断开") and "（输入输出错误）" in line
