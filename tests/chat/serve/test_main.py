"""`python -m chat.serve` as a process."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import requests

from data.index.build import build_index
from data.index.options import IndexOptions
from data.prepare.source_args import SourceGroup
from tests.chat.conftest import BAI_REFERENCE, MAYOR_QUESTION
from tests.fault_injection.child import create_process
from tests.helpers.terminal import run_forked_command

# Returns the process and the file of its errors.
StartServer = Callable[..., tuple[BaseProcess, Path]]


@pytest.fixture
def start_server(tmp_path: Path, environment: dict[str, str]) -> Iterator[StartServer]:
    """Start servers for a checkpoint on a port, by default a free one."""
    processes: list[BaseProcess] = []

    def start(checkpoint: Path, *options: str, port: int = 0) -> tuple[BaseProcess, Path]:
        arguments = ["--checkpoint", str(checkpoint), "--device", "cpu", "--port", str(port)]
        errors = tmp_path / "errors"
        files = ("/dev/null", "/dev/null", str(errors))
        process = create_process(
            run_forked_command, "chat.serve", [*arguments, *options], environment, files
        )
        process.start()
        processes.append(process)
        return process, errors

    yield start
    for process in processes:
        process.kill()
        process.join()


def wait_for_url(process: BaseProcess, errors: Path) -> str:
    """Return the URL that the server prints once it listens."""
    while process.is_alive():
        text = errors.read_text(encoding="utf-8") if errors.exists() else ""
        if url_match := re.search(r"^(http://\S+/) ", text, re.MULTILINE):
            return url_match[1]
        time.sleep(0.01)
    raise AssertionError(errors.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal_number", "exit_code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_signal_stops_server_during_answer(
    start_server: StartServer, endless: Path, signal_number: int, exit_code: int
) -> None:
    """Prevents a server that ends only when its longest answer does, or with a traceback."""
    process, errors = start_server(endless, "--max_new_tokens", "15000", "--temperature", "0")
    url = wait_for_url(process, errors)
    body = {
        "model": endless.name,
        "messages": [{"role": "user", "content": "说个不停"}],
        "stream": True,
    }
    with requests.post(f"{url}v1/chat/completions", json=body, stream=True, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        assert process.pid is not None
        os.kill(process.pid, signal_number)
        *_, last_line = [line for line in lines if line]
    error = json.loads(last_line.removeprefix(b"data: "))["error"]
    assert "shutting down" in error["message"]
    process.join(30)
    stderr = errors.read_text(encoding="utf-8")
    assert process.exitcode == exit_code, stderr
    assert "Traceback" not in stderr and "Error" not in stderr, stderr


@pytest.mark.slow
def test_index_is_opened(start_server: StartServer, talker: Path, tmp_path: Path) -> None:
    """Prevents an index on disk that is not used, or whose name is not shown at the start."""
    documents = tmp_path / "towns.jsonl"
    documents.write_text(json.dumps({"text": BAI_REFERENCE}) + "\n", encoding="utf-8")
    build_index([SourceGroup("jsonl", (str(documents),))], IndexOptions(out=tmp_path / "indexed"))
    process, errors = start_server(talker, "--index", str(tmp_path / "indexed"))
    url = wait_for_url(process, errors)
    assert f"资料库：{tmp_path / 'indexed'}（1 段）" in errors.read_text(encoding="utf-8")
    found = requests.get(f"{url}v1/search", {"q": MAYOR_QUESTION}, timeout=60).json()["data"]
    assert [(each["text"], each["source"]) for each in found] == [(BAI_REFERENCE, "towns.jsonl:1")]


@pytest.mark.slow
def test_port_in_use_gives_one_line_error(start_server: StartServer, talker: Path) -> None:
    """Prevents a traceback, or a model that is loaded for nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process, errors = start_server(talker, port=port)
        process.join(60)
    stderr = errors.read_text(encoding="utf-8")
    assert process.exitcode == 2 and stderr.count("\n") == 1
    assert stderr.startswith(f"error: 127.0.0.1:{port} 已被占用")
