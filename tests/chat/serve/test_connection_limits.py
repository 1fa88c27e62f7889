"""Connections that ask for nothing cost nothing."""

import asyncio
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from chat.serve import app, connection_limits
from chat.serve.connection_limits import (
    IDLE_TIMEOUT_SECONDS,
    MAX_CONNECTIONS,
    LimitedConnection,
    resolve_connection_limit,
)
from tests.helpers.server import ServerHandle, running_server

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"


class Hasty(LimitedConnection):
    """Little patience."""

    patience = 1.0


class Later(LimitedConnection):
    """Little patience, once a first request has come: a machine with other work may take long to send it."""

    @property
    def idle_timeout(self) -> float:  # type: ignore[override]
        return 3600.0 if self.cycle is None else Hasty.idle_timeout


class Few(LimitedConnection):
    """As many connections as a test opens, and patience without end."""

    most, patience = 3, 3600.0


@pytest.fixture(scope="module")
def few(endless: Path) -> Iterator[ServerHandle]:
    """A server that takes few connections, for a model that never ends."""
    with running_server(endless, rows=3, max_tokens=15_000, protocol_class=Few) as server:
        yield server


def connect(server: ServerHandle) -> socket.socket:
    """A connection on which nothing was sent; nobody waits for it for ever."""
    host, port = server.url.removeprefix("http://").rstrip("/").split(":")
    connection = socket.socket()
    connection.settimeout(60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    return connection


def answered(connection: socket.socket) -> bool:
    """Ask, and see whether an answer comes."""
    connection.sendall(HEAD + b"\r\n")
    said = b""
    while not said.endswith(b"}") and (more := connection.recv(1000)):
        said += more
    return said.startswith(b"HTTP/1.1 200") and said.endswith(b"}")


def closed(connection: socket.socket) -> bool:
    """Wait until the other side has closed; whether it did so without a word."""
    with connection:
        try:
            return connection.recv(1000) == b""
        except ConnectionResetError:
            return True


def test_idle_connections_do_not_block_new_ones(few: ServerHandle) -> None:
    """Connections that send nothing, as many as the process may have files, and a server that takes no other."""
    kept = connect(few)
    assert answered(kept), "between two requests it asks for nothing either"
    idle = [connect(few) for _ in range(40)]
    with connect(few) as newcomer:
        assert answered(newcomer)
        assert [closed(each) for each in (kept, *idle[:38])] == [True] * 39
        for each in idle[38:]:
            assert answered(each), "more were closed than had to be"
            each.close()


def test_active_answer_is_not_evicted(few: ServerHandle) -> None:
    """A connection in use closed for one that asks for nothing; one too many taken where all are in use."""
    request = few.request_body("说个不停", stream=True)
    streams = [few.post(request, stream=True) for _ in range(2)]
    lines = [each.iter_lines() for each in streams]
    idle = [connect(few) for _ in range(10)]
    assert [closed(each) for each in idle[:9]] == [True] * 9 and answered(idle[9])
    streams.append(few.post(request, stream=True))  # in the place of the last idle one
    lines.append(streams[2].iter_lines())
    assert closed(idle[9]) and closed(connect(few))
    assert all(next(each) and not next(each) and next(each) for each in lines)
    for each in streams:
        each.close()


def test_missing_bodies_do_not_block_new_connections(few: ServerHandle) -> None:
    """Heads of requests, as many as may be, each of which holds its connection, or a row, until its body is given up."""
    while few.engine.request_counts != (0, 0):  # those who asked before have gone
        time.sleep(0.01)
    with ExitStack() as kept:
        silent = [kept.enter_context(connect(few)) for _ in range(3)]
        for each in silent:
            each.sendall(POST % 99 + b"Expect: 100-continue\r\n\r\n")
            assert each.recv(1000).startswith(b"HTTP/1.1 100"), (
                "it has the head, and waits for the body"
            )
            each.sendall(b"{")
        assert few.engine.request_counts == (0, 0)
        with connect(few) as newcomer:
            assert answered(newcomer)
        assert closed(silent[0])


def test_missing_body_gets_error_response(
    few: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection closed without a word, as it is after the patience for whoever brings nothing."""
    assert app.BODY_TIMEOUT_SECONDS < IDLE_TIMEOUT_SECONDS
    monkeypatch.setattr(app, "BODY_TIMEOUT_SECONDS", 0.1)
    with connect(few) as connection:
        connection.sendall(POST % 99 + b"\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


class Deaf(Few):
    """Takes its clients for such as have not read the answer, and says when a request has come."""

    asked = threading.Semaphore(0)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.pause_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.has_whole_request.release()


def test_pipelining_client_that_does_not_read_is_dropped(talker: Path) -> None:
    """Requests whose answers can never be sent, each of which holds a connection for ever."""
    with running_server(talker, protocol_class=Deaf) as server, ExitStack() as kept:
        deaf = [kept.enter_context(connect(server)) for _ in range(3)]
        for each in deaf:
            assert answered(each) and Deaf.has_whole_request.acquire(timeout=60)
            each.sendall(HEAD + b"\r\n")
            assert Deaf.has_whole_request.acquire(timeout=60)
        with connect(server) as newcomer:
            assert answered(newcomer)
        assert closed(deaf[0])


@pytest.mark.parametrize(
    ("patience", "sent"),
    [(Hasty, b""), (Hasty, HEAD), (Later, HEAD)],
    ids=["nothing", "half", "next"],
)
def test_incomplete_request_head_times_out(
    talker: Path, patience: type[LimitedConnection], sent: bytes
) -> None:
    """A connection held open for ever by a byte now and then, before its first request or a later one."""
    with running_server(talker, protocol_class=patience) as server:
        connection = connect(server)
        assert patience is Hasty or answered(connection)
        connection.sendall(sent)
        assert closed(connection)


@pytest.mark.slow
def test_started_request_is_not_evicted(endless: Path) -> None:
    """An answer that takes longer than a head may, ended in the middle."""
    with (
        running_server(endless, max_tokens=15_000, protocol_class=Later) as server,
        server.post(server.request_body("说个不停", stream=True), stream=True) as answer,
    ):
        until, lines = time.monotonic() + 1.5 * Hasty.idle_timeout, answer.iter_lines()
        while time.monotonic() < until:
            assert next(lines, None) is not None


@pytest.mark.parametrize(
    ("files", "most"),
    [(1024, MAX_CONNECTIONS), (256, 32), (64, 8), (resource.RLIM_INFINITY, MAX_CONNECTIONS)],
)
def test_connection_limit_follows_file_descriptor_limit(
    monkeypatch: pytest.MonkeyPatch, files: int, most: int
) -> None:
    """A limit above what the process may open, which is none."""
    monkeypatch.setattr(connection_limits.resource, "getrlimit", lambda kind: (files, files))
    assert resolve_connection_limit() == most


class Noted(Later):
    """Says when it waits for its client to read, when it no longer does because that reads, when the answer is whole on this
    side, and when the connection is over."""

    waits, reads, whole, gone = (
        threading.Event(),
        threading.Event(),
        threading.Event(),
        threading.Event(),
    )

    def pause_writing(self) -> None:
        super().pause_writing()
        self.waits.set()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._idle_timer is None:
            self.reads.set()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.whole.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.gone.set()


class Full(Noted):
    """Waits for its client until all that it holds for it, 64 KB, is read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1 << 16, low=0)


class Patient(Noted):
    """The same with patience without end."""

    patience = 3600.0  # type: ignore[assignment]


@contextmanager
def slow(endless: Path, http: type[Noted]) -> Iterator[socket.socket]:
    """A client of an answer without an end that has not read so long that the server waits for it."""
    with asking(endless, http, tokens=15_000) as connection:
        assert Noted.waits.wait(60)
        yield connection


@contextmanager
def asking(endless: Path, http: type[Noted], tokens: int) -> Iterator[socket.socket]:
    """A client that has asked for an answer, and has not read yet."""
    for event in (Noted.waits, Noted.reads, Noted.whole, Noted.gone):
        event.clear()
    with (
        running_server(
            endless, max_tokens=tokens, protocol_class=http, send_buffer_bytes=4096
        ) as server,
        connect(server) as connection,
    ):
        body = json.dumps(server.request_body("说个不停", stream=True)).encode()
        connection.sendall(POST % len(body) + b"\r\n" + body)
        yield connection


@pytest.mark.slow
@pytest.mark.parametrize("more", [b"", HEAD], ids=["silent", "asking"])
def test_client_that_does_not_read_times_out(endless: Path, more: bytes) -> None:
    """A connection held for ever by a client that asks, may ask again, and never reads."""
    with slow(endless, Noted) as connection:
        connection.sendall(more)
        assert Noted.gone.wait(60)


@pytest.mark.slow
def test_resumed_reading_cancels_the_timeout(endless: Path) -> None:
    """An answer cut off because its client was slow before."""
    with slow(endless, Patient) as connection:
        while not Noted.reads.is_set():
            assert connection.recv(1 << 16)


@pytest.mark.slow
def test_slow_reader_is_not_dropped(endless: Path) -> None:
    """An answer cut off in the middle though its client reads it, as on a slow line."""
    with slow(endless, Full) as connection:
        for _ in range(25):
            assert connection.recv(2048) and not Noted.gone.is_set()
            time.sleep(0.1)
        assert not Noted.reads.is_set(), "it read so fast that it was not waited for"
        assert Noted.gone.wait(60)


@pytest.mark.slow
def test_complete_answer_is_flushed_before_close(endless: Path) -> None:
    """The last lines of an answer, of which this side has nothing more to do, lost to a client that reads slowly."""
    with asking(endless, Noted, tokens=230) as connection:
        assert Noted.whole.wait(60) and not Noted.waits.is_set()
        said = b""
        while not said.endswith(b"0\r\n\r\n") and (more := connection.recv(2048)):
            said += more
            time.sleep(0.1)
    assert b"[DONE]" in said and len(said) > 40_000
