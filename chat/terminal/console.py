"""Input and output of the chat, on a terminal or through pipes.

Answers and the output of commands go to stdout; everything else goes to stderr, so that a pipe
receives only answers.
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from chat.errors import ConsoleError, describe_os_error

PROMPT, CONTINUATION_PROMPT = "你：", "……"
MAX_HISTORY_LINES = 1000
_DIM, _NOT_DIM = "\x1b[2m", "\x1b[22m"
_UNDERLINED, _NOT_UNDERLINED = "\x1b[4m", "\x1b[24m"
# A model can generate any character. Control characters, except for new lines and tabs, must not
# reach the terminal, where they are commands.
_CONTROL_REPLACEMENTS = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


class Console:
    """Read messages and write text, with line editing and a history file on a terminal.

    A history file that cannot be used is ignored. All methods raise ConsoleError once input or
    output fails, and BrokenPipeError if the reader of the output has closed its pipe.
    """

    def __init__(self, history_file: Path) -> None:
        self.is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._has_styles = self.is_interactive and os.environ.get("TERM", "dumb") != "dumb"
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        self._history_file = history_file
        self._readline = _load_history(history_file) if self.is_interactive else None

    def read_message(self) -> str | None:
        """Return the user's next message, or None at the end of the input.

        A backslash at the end of a line continues the message on the next line; the line break
        stays part of the message.
        """
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
        """Return a line, and save it to the history. Raises EOFError at the end of the input."""
        old_length = self._readline.get_current_history_length() if self._readline else 0
        with _translate_console_errors():
            line = input(prompt if self.is_interactive else "")
        if self._readline:
            # input() adds the line to the history, unless it is empty.
            num_new_lines = self._readline.get_current_history_length() - old_length
            _save_history(self._readline, self._history_file, num_new_lines)
        return line

    def write(self, text: str) -> None:
        """Write a piece of an answer to stdout, control characters replaced, and flush it."""
        with _translate_console_errors():
            sys.stdout.write(text.translate(_CONTROL_REPLACEMENTS))
            sys.stdout.flush()

    def write_line(self, text: str) -> None:
        """Write the output of a command to stdout."""
        self.write(f"{text}\n")

    def write_marked(self, text: str, spans: Sequence[tuple[int, int]]) -> None:
        """Write a line to stdout with some spans underlined, or in 【】 if that is no terminal."""
        marks = (_UNDERLINED, _NOT_UNDERLINED) if self._has_styles else ("【", "】")
        # Each control character is replaced by one character, so the spans stay right.
        text = text.translate(_CONTROL_REPLACEMENTS)
        pieces = []
        end = 0
        for start, stop in spans:
            pieces += [text[end:start], marks[0], text[start:stop], marks[1]]
            end = stop
        with _translate_console_errors():
            sys.stdout.write("".join([*pieces, text[end:], "\n"]))
            sys.stdout.flush()

    def write_note(self, text: str, *, is_dim: bool = False) -> None:
        """Write a notice or an error to stderr, control characters replaced."""
        text = text.translate(_CONTROL_REPLACEMENTS)
        if is_dim and self._has_styles and sys.stderr.isatty():
            text = f"{_DIM}{text}{_NOT_DIM}"
        with _translate_console_errors():
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


@contextlib.contextmanager
def _translate_console_errors() -> Iterator[None]:
    """Turn an OSError inside the block into a ConsoleError, except for a closed pipe."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of the output closed it on purpose, as `| head` does
    except OSError as error:
        raise ConsoleError(
            f"终端已断开，或输入输出无法读写（{describe_os_error(error)}）："
            "对话结束，请换一个终端或输出位置再运行"
        ) from None


def _load_history(file: Path) -> Any:
    """Return the readline module with the lines of `file` loaded, or None if Python lacks it."""
    try:
        import readline
    except ImportError:
        return None
    readline.set_history_length(MAX_HISTORY_LINES)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)  # questions are private
        readline.read_history_file(file)
    return readline


def _save_history(readline: Any, file: Path, num_new_lines: int) -> None:
    """Save the newest lines at once, so that a closed window or a second chat loses none."""
    if num_new_lines <= 0:
        return
    with contextlib.suppress(OSError):
        if hasattr(readline, "append_history_file"):
            readline.append_history_file(num_new_lines, file)
        else:  # Python built with libedit
            readline.write_history_file(file)


@contextlib.contextmanager
def catch_sigint() -> Iterator[Event]:
    """Yield an event that Ctrl-C sets inside the block, instead of raising KeyboardInterrupt."""
    stop_event = Event()

    def set_event(signal_number: int, frame: FrameType | None) -> None:
        stop_event.set()

    previous_handler = signal.signal(signal.SIGINT, set_event)
    try:
        yield stop_event
    finally:
        signal.signal(signal.SIGINT, previous_handler)
