"""`python -m chat.serve` as a process of its own."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from chat.prompt import Conversation, Exchange
from chat.serve import options
from chat.serve.prompt import fit_prompt
from chat.serve.protocol import RequestConversation
from common.errors import UserError
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

Start = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture
def start(root: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Start a server on a free port; the process and its URL."""
    processes = []

    def begin(checkpoint: Path, *more: str) -> tuple["subprocess.Popen[str]", str]:
        options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--port", "0", *more]
        command = [sys.executable, "-m", "chat.serve", *options]
        processes.append(
            subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)
        )
        said = ""
        for line in processes[-1].stderr or ():
            said += line
            if found := re.match(r"(http://\S+/) ", line):
                return processes[-1], found[1]
        raise AssertionError(said)

    yield begin
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_signal_stops_server_during_answer(
    start: Start, endless: Path, number: int, code: int
) -> None:
    """A server that ends only when its longest answer does, or with a traceback."""
    process, url = start(endless, "--max_new_tokens", "15000", "--temperature", "0")
    body = {
        "model": endless.name,
        "messages": [{"role": "user", "content": "说个不停"}],
        "stream": True,
    }
    with requests.post(f"{url}v1/chat/completions", json=body, stream=True, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(number)
        rest = [line for line in lines if line]
    assert "shutting down" in json.loads(rest[-1].removeprefix(b"data: "))["error"]["message"]
    _, said = process.communicate(timeout=30)
    assert process.returncode == code and "Traceback" not in said and "Error" not in said, said


@pytest.mark.slow
def test_port_in_use_gives_one_line_error(
    root: Path, environment: dict[str, str], talker: Path
) -> None:
    """A traceback, or a model loaded for nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "chat.serve", "--checkpoint", str(talker), "--port", port],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: 127.0.0.1:{port} 已经有程序在用")


def test_invalid_options_are_rejected_before_loading() -> None:
    """A server on an address that only this machine reaches becoming one for all; keys that no client can send."""
    assert options.parse_serve_options([]).host == "127.0.0.1"
    for name, value in (
        ("port", "70000"),
        ("rows", "0"),
        ("api_key", ""),
        ("api_key", "密钥"),
        ("temperature", "9"),
    ):
        with pytest.raises(UserError, match=f"--{name}"):
            options.parse_serve_options([f"--{name}", value])


@pytest.mark.parametrize("room", [60, 90, 130, 230])
def test_server_prompt_matches_terminal_chat(tokenizer: Tokenizer, room: int) -> None:
    """Turns forgotten here that the terminal remembers, or the newest gone instead of the oldest."""
    turns = [(f"第{n}问，" + "很长" * (n % 4) + "？", f"这是第{n}个回答。") for n in range(12)]
    talk = Conversation("青禾镇在河边。", exchanges=[Exchange(*turn) for turn in turns])
    expected = talk.build_prompt(tokenizer, Template(), "为什么？", room)
    found = fit_prompt(
        tokenizer, Template(), RequestConversation("青禾镇在河边。", turns, "为什么？"), room
    )
    assert (found.ids, found.num_dropped_turns) == (
        expected.ids,
        expected.num_dropped_turns,
    ) and 0 < found.num_dropped_turns < 12
