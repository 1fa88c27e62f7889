"""Connections that ask for nothing cost nothing."""

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from chat.serve import connections
from chat.serve.connections import MOST, Limited, most_connections
from tests.chat.serving import Served, served

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


class Few(Limited):
    """Limits that a test reaches."""

    most, head_seconds = 3, 1.0


@pytest.fixture(scope="module")
def server(talker: Path) -> Iterator[Served]:
    """A server that takes few connections and has little patience."""
    with served(talker, http=Few) as server:
        yield server


def connect(server: Served) -> socket.socket:
    """A connection on which nothing was sent; nobody waits for it for ever."""
    host, port = server.url.removeprefix("http://").rstrip("/").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def closed(connection: socket.socket) -> bool:
    """Wait until the other side has closed; whether it did so without a word."""
    with connection:
        try:
            return connection.recv(1000) == b""
        except ConnectionResetError:
            return True


def test_idle_connections_keep_the_server_busy_for_a_while_only(server: Served) -> None:
    """Connections that send nothing, as many as the process may have files, and a server that takes no other."""
    idle = [connect(server) for _ in range(40)]
    assert [closed(each) for each in idle[3:]] == [True] * 37
    assert [closed(each) for each in idle[:3]] == [True] * 3
    assert requests.get(f"{server.url}health", timeout=30).status_code == 200


@pytest.mark.parametrize("before", [b"", HEAD + b"\r\n"], ids=["first", "next"])
def test_half_a_head_is_not_waited_for(server: Served, before: bytes) -> None:
    """A connection held open for ever by a byte now and then, before its first request or a later one."""
    connection = connect(server)
    if before:
        connection.sendall(before)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    connection.sendall(HEAD)
    assert closed(connection)


def test_a_request_that_has_begun_is_not_cut_off(endless: Path) -> None:
    """An answer that takes longer than a head may, ended in the middle."""
    class Hasty(Limited):
        head_seconds = 0.05

    with served(endless, tokens=300, http=Hasty) as server:
        found = server.post(server.ask("说个不停")).json()
    assert found["usage"]["completion_tokens"] == 300


@pytest.mark.parametrize(("files", "most"), [(1024, MOST), (256, 32), (64, 8), (resource.RLIM_INFINITY, MOST)])
def test_few_files_make_few_connections(monkeypatch: pytest.MonkeyPatch, files: int, most: int) -> None:
    """A limit above what the process may open, which is none."""
    monkeypatch.setattr(connections.resource, "getrlimit", lambda kind: (files, files))
    assert most_connections() == most
