"""Lines in, text out, on a terminal or through pipes.

Answers and what a command was asked for go to stdout; everything else goes to stderr, so that a pipe gets only answers.
"""

import contextlib
import io
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from chat.errors import ConsoleError, describe_os_error

PROMPT, CONTINUATION_PROMPT = "你：", "……"
MAX_HISTORY_LINES = 1000
# A model can write any byte: a terminal must not take some of them for orders.
_CONTROL_REPLACEMENTS = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


class Console:
    """What the user types and sees. A `history` file that cannot be used is done without.

    ConsoleError from whatever reads or writes, where that cannot be done any more.
    """

    def __init__(self, history: Path) -> None:
        self.is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        self._history = history
        self._readline = _load_history(history) if self.is_interactive else None

    def read_message(self) -> str | None:
        """What the user says next, lines that end in a backslash joined to those after them; None at the end."""
        lines: list[str] = []
        while True:
            try:
                line = self._read_line(CONTINUATION_PROMPT if lines else PROMPT)
            except EOFError:
                return "\n".join(lines) if lines else None
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _read_line(self, prompt: str) -> str:
        readline = self._readline
        before = readline.get_current_history_length() if readline else 0
        with _translate_console_errors():
            line = input(prompt if self.is_interactive else "")
        if readline and (new := readline.get_current_history_length() - before) > 0:
            # Line by line, so that a closed window loses none and two chats at once keep both.
            with contextlib.suppress(OSError):
                if hasattr(readline, "append_history_file"):
                    readline.append_history_file(new, self._history)
                else:  # Python built with libedit
                    readline.write_history_file(self._history)
        return line

    def write(self, text: str) -> None:
        """A piece of an answer, at once."""
        with _translate_console_errors():
            sys.stdout.write(text.translate(_CONTROL_REPLACEMENTS))
            sys.stdout.flush()

    def write_line(self, text: str) -> None:
        """Lines that were asked for."""
        self.write(f"{text}\n")

    def write_note(self, text: str) -> None:
        """A line beside the answers."""
        with _translate_console_errors():
            sys.stderr.write(f"{text.translate(_CONTROL_REPLACEMENTS)}\n")
            sys.stderr.flush()


@contextlib.contextmanager
def _translate_console_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read our output has all it wanted
    except OSError as error:
        raise ConsoleError(
            f"终端断开了，或输入输出的文件读写不了（{describe_os_error(error)}）：对话到此为止，请换一处再运行"
        ) from None


def _load_history(file: Path) -> Any:
    """The readline module with the lines of earlier sittings, or None where Python was built without."""
    try:
        import readline
    except ImportError:
        return None
    readline.set_history_length(MAX_HISTORY_LINES)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        readline.read_history_file(file)
    return readline


@contextlib.contextmanager
def catch_sigint() -> Iterator[Event]:
    """Ctrl-C inside sets the event and does nothing else."""
    stop_event = Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stop_event.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop_event
    finally:
        signal.signal(signal.SIGINT, before)
