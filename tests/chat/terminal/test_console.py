"""The chat on a terminal: a process on a pseudo-terminal, typed to key by key."""

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

from tests.chat.conftest import MAYOR, arguments

PATIENCE = 90.0  # seconds; the machine may be busy
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


class Terminal:
    """A process whose terminal is this object."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._end, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=self._belong,
        )
        os.close(theirs)
        self._seen = b""

    @staticmethod
    def _belong() -> None:
        """As a shell starts what it has in front. Tests that run behind one (make test &) were told to ignore Ctrl-C."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def type(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    def at_prompt(self, keys: str, prompt: str = "你：") -> None:
        """Type once the prompt has come: before it the line belongs to the terminal's own editing."""
        self.wait_for(prompt)
        self.type(keys)

    def interrupt_after(self, seen: str) -> None:
        """Press Ctrl-C once `seen` is on the screen and the process waits for a key.

        CPython's readline takes notice of a signal only while it waits: one that comes between its last echo and that lies
        until the line is done. No hand is that fast, a test is. So the kernel is asked whether the process sleeps.
        """
        self.wait_for(seen)
        until = time.monotonic() + PATIENCE
        state = Path(f"/proc/{self.process.pid}/stat")
        while state.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < until, "it never waited for a key"
            time.sleep(0.001)
        self.type(CTRL_C)

    def wait_for(self, words: str) -> str:
        """What came up to and with `words`, which must come; what follows is left for the next call."""
        until = time.monotonic() + PATIENCE
        while words.encode() not in self._seen:
            assert self._more(until), (
                f"{words!r} did not come: {self._seen.decode(errors='replace')!r}"
            )
        before, found, self._seen = self._seen.partition(words.encode())
        return (before + found).decode(errors="replace")

    def wait_for_more(self, count: int) -> None:
        """Wait until so many bytes more have come."""
        until = time.monotonic() + PATIENCE
        while len(self._seen) < count:
            assert self._more(until), f"only {self._seen!r} came"

    def wait_for_end(self) -> str:
        """What came until the process ended."""
        until = time.monotonic() + PATIENCE
        while self._more(until):
            pass
        self.process.wait(max(1.0, until - time.monotonic()))
        return self._seen.decode(errors="replace")

    def _more(self, until: float) -> bool:
        ready, _, _ = select.select([self._end], [], [], max(0.0, until - time.monotonic()))
        try:
            block = os.read(self._end, 1 << 16) if ready else b""
        except OSError:  # how Linux reports that the other end is closed
            block = b""
        self._seen += block
        return bool(block)

    def hang_up(self) -> None:
        """Be closed, as a window or a connection is."""
        os.dup2(os.open(os.devnull, os.O_RDWR), self._end)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)


Start = Callable[..., Terminal]


@pytest.fixture
def start(root: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Start a chat with a checkpoint on a terminal."""
    terminals: list[Terminal] = []

    def begin(
        checkpoint: Path, *options: str, program: tuple[str, ...] = ("-m", "chat")
    ) -> Terminal:
        terminals.append(
            Terminal([sys.executable, *program, *arguments(checkpoint, options)], root, environment)
        )
        return terminals[-1]

    yield begin
    for terminal in terminals:
        terminal.close()


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_chat(
    start: Start, endless: Path, tmp_path: Path
) -> None:
    """An endless answer that can be ended only by losing the conversation."""
    file = tmp_path / "对话.md"
    terminal = start(endless, "--max_new_tokens", "100000")
    terminal.at_prompt("说个不停\r")
    terminal.wait_for("助手：")
    terminal.wait_for_more(200)
    terminal.type(CTRL_C)
    terminal.wait_for("已打断，说出的部分留在对话里")
    terminal.at_prompt(f"/save {file}\r")
    terminal.wait_for("已保存到")
    terminal.at_prompt("/quit\r")
    terminal.wait_for_end()
    assert terminal.process.returncode == 0
    text = file.read_text(encoding="utf-8")
    answer = text[text.index("**助手：**") :]
    assert (
        text.count("**人类：**") == 1 and answer.rstrip().endswith("（中断）") and len(answer) > 30
    )


@pytest.mark.slow
def test_line_editing_and_history_across_sessions(start: Start, talker: Path) -> None:
    """Ctrl-C at the prompt that ends the chat at once or keeps the line; lines that cannot be called back."""
    terminal = start(talker)
    terminal.at_prompt("写了一半的话")
    terminal.interrupt_after("写了一半的话")
    terminal.wait_for("再按一次 Ctrl-C 退出")
    terminal.at_prompt("我叫书白。\r")
    assert "写了一半的话" not in terminal.wait_for("助手：好的。")
    terminal.at_prompt("第一行\\\r")
    terminal.at_prompt("/重置", "……")
    terminal.interrupt_after("/重置")
    terminal.wait_for("再按一次")
    terminal.at_prompt("我叫书河。" + "\x7f\x7f\x7f" + "什么？\r")
    terminal.wait_for("助手：书白")
    terminal.interrupt_after("你：")
    terminal.wait_for("再按一次")
    terminal.interrupt_after("你：")
    terminal.wait_for_end()
    assert terminal.process.returncode == 0
    again = start(talker)
    again.at_prompt(UP * 3)
    again.wait_for("我叫书白。")
    again.type("\r")
    again.wait_for("助手：好的。")
    again.at_prompt(CTRL_D)
    assert "Traceback" not in again.wait_for_end() and again.process.returncode == 0


@pytest.mark.slow
def test_chat_works_without_readline(start: Start, talker: Path) -> None:
    """A chat that does not start where Python was built without line editing."""
    program = (
        "-c",
        "import sys; sys.modules['readline'] = None; import runpy; runpy.run_module('chat', run_name='__main__')",
    )
    terminal = start(talker, program=program)
    terminal.at_prompt(f"{MAYOR}\n")
    terminal.wait_for("助手：我不知道。")
    terminal.at_prompt(CTRL_D)
    assert "Traceback" not in terminal.wait_for_end() and terminal.process.returncode == 0


@pytest.mark.slow
def test_errors_are_shown_in_chinese_and_chat_continues(start: Start, talker: Path) -> None:
    """A mistake that ends the chat, or is said in English, or the prompt that does not come back after it."""
    terminal = start(talker)
    for mistake, said in (
        ("/资料 @没有", "没有：读不了（没有这个文件或目录）"),
        ("/save 对话.md", "没有什么可保存"),
        ("/温度 热", "要一个 0 到 5"),
        ("/维基 李白", "连不上维基百科：检查网络后再试"),
        ("/保村", "没有 /保村 这个命令"),
    ):
        terminal.at_prompt(f"{mistake}\r")
        terminal.wait_for(said)
    terminal.at_prompt(f"{MAYOR}\r")
    terminal.wait_for("助手：我不知道。")
    terminal.at_prompt(CTRL_D)
    assert "Traceback" not in terminal.wait_for_end() and terminal.process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [True, False], ids=["errors-in-a-file", "errors-on-it-too"])
def test_closed_terminal_ends_chat(
    start: Start, endless: Path, tmp_path: Path, elsewhere: bool
) -> None:
    """A chat under nohup that says that the disk is ill, tells it to a terminal that is gone, or answers nobody for ever."""
    file = tmp_path / "errors"
    errors = (
        f"os.dup2(os.open({str(file)!r}, os.O_CREAT | os.O_WRONLY), 2)" if elsewhere else "pass"
    )
    program = (
        "-c",
        f"import os, runpy, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {errors}; "
        "runpy.run_module('chat', run_name='__main__')",
    )
    terminal = start(endless, "--max_new_tokens", "100000", program=program)
    terminal.at_prompt("说个不停\r")
    terminal.wait_for("助手：")
    terminal.hang_up()
    assert terminal.process.wait(PATIENCE) == 2
    if elsewhere:
        *_, line = file.read_text(encoding="utf-8").splitlines()
        assert line.startswith("error: 终端断开了") and "（输入输出出错）" in line
