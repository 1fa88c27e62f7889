"""`python -m chat.serve` as a process."""

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

StartServer = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture
def start_server(root: Path, environment: dict[str, str]) -> Iterator[StartServer]:
    """Start servers on free ports; a call returns the process and its URL."""
    processes = []

    def start(checkpoint: Path, *options: str) -> tuple["subprocess.Popen[str]", str]:
        arguments = ["--checkpoint", str(checkpoint), "--device", "cpu", "--port", "0", *options]
        command = [sys.executable, "-m", "chat.serve", *arguments]
        process = subprocess.Popen(
            command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        output = ""
        for line in process.stderr or ():
            output += line
            if url_match := re.match(r"(http://\S+/) ", line):
                return process, url_match[1]
        raise AssertionError(output)

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal_number", "exit_code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_signal_stops_server_during_answer(
    start_server: StartServer, endless: Path, signal_number: int, exit_code: int
) -> None:
    """Prevents a server that ends only when its longest answer does, or with a traceback."""
    process, url = start_server(endless, "--max_new_tokens", "15000", "--temperature", "0")
    body = {
        "model": endless.name,
        "messages": [{"role": "user", "content": "说个不停"}],
        "stream": True,
    }
    with requests.post(f"{url}v1/chat/completions", json=body, stream=True, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal_number)
        *_, last_line = [line for line in lines if line]
    error = json.loads(last_line.removeprefix(b"data: "))["error"]
    assert "shutting down" in error["message"]
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == exit_code
    assert "Traceback" not in stderr and "Error" not in stderr, stderr


@pytest.mark.slow
def test_port_in_use_gives_one_line_error(
    root: Path, environment: dict[str, str], talker: Path
) -> None:
    """Prevents a traceback, or a model that is loaded for nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        result = subprocess.run(
            [sys.executable, "-m", "chat.serve", "--checkpoint", str(talker), "--port", port],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: 127.0.0.1:{port} 已被占用")
