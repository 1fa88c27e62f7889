"""Idle connections use up neither files nor places for other clients."""

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

GET_HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n"
)
ENDLESS_QUESTION = "说个不停"
NO_TIMEOUT = 3600.0


class ShortTimeout(LimitedConnection):
    """Idle connections are closed soon."""

    idle_timeout = 0.3


class ShortTimeoutAfterFirstHead(LimitedConnection):
    """The same, but only after the first head, which a busy machine may send late."""

    @property
    def idle_timeout(self) -> float:  # type: ignore[override]
        return NO_TIMEOUT if self.cycle is None else ShortTimeout.idle_timeout


class ThreeConnections(LimitedConnection):
    """Few connections without a timeout."""

    max_connections = 3
    idle_timeout = NO_TIMEOUT


@pytest.fixture(scope="module")
def small_server(endless: Path) -> Iterator[ServerHandle]:
    """A server with three connections for a model that never ends."""
    with running_server(
        endless, max_sequences=3, max_new_tokens=15_000, protocol_class=ThreeConnections
    ) as server:
        yield server


def connect(server: ServerHandle) -> socket.socket:
    """Return a connection on which nothing was sent, with a small receive buffer."""
    host, port = server.url.removeprefix("http://").rstrip("/").split(":")
    connection = socket.socket()
    connection.settimeout(60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    return connection


def gets_response(connection: socket.socket) -> bool:
    """Send a request; return whether a whole response comes back."""
    connection.sendall(GET_HEAD + b"\r\n")
    response = b""
    while not response.endswith(b"}") and (block := connection.recv(1000)):
        response += block
    return response.startswith(b"HTTP/1.1 200") and response.endswith(b"}")


def is_closed_silently(connection: socket.socket) -> bool:
    """Wait until the server sends something or closes; return whether it closed."""
    with connection:
        try:
            return connection.recv(1000) == b""
        except ConnectionResetError:
            return True


@pytest.mark.slow
def test_idle_connections_do_not_block_new_ones(small_server: ServerHandle) -> None:
    """Prevents silent connections from using up all places, and closing more than necessary."""
    between_requests = connect(small_server)
    assert gets_response(between_requests), "a connection between two requests is idle, too"
    idle = [connect(small_server) for _ in range(40)]
    with connect(small_server) as newcomer:
        assert gets_response(newcomer)
        oldest = [between_requests, *idle[:38]]
        assert [is_closed_silently(each) for each in oldest] == [True] * 39
        for connection in idle[38:]:
            assert gets_response(connection), "more connections were closed than necessary"
            connection.close()


@pytest.mark.slow
def test_active_answer_is_not_evicted(small_server: ServerHandle) -> None:
    """Prevents an answer cut off for an idle connection, and a fourth connection."""
    request = small_server.request_body(ENDLESS_QUESTION, stream=True)
    streams = [small_server.post(request, stream=True) for _ in range(2)]
    line_iterators = [stream.iter_lines() for stream in streams]
    idle = [connect(small_server) for _ in range(10)]
    assert [is_closed_silently(each) for each in idle[:9]] == [True] * 9
    assert gets_response(idle[9])
    streams.append(small_server.post(request, stream=True))  # replaces the last idle connection
    line_iterators.append(streams[2].iter_lines())
    assert is_closed_silently(idle[9]) and is_closed_silently(connect(small_server))
    for lines in line_iterators:
        assert next(lines) and not next(lines) and next(lines)
    for stream in streams:
        stream.close()


def test_missing_bodies_do_not_block_new_connections(small_server: ServerHandle) -> None:
    """Prevents heads without a body from holding a connection, or a place in the batch."""
    while small_server.engine.request_counts != (0, 0):  # requests of the tests before
        time.sleep(0.01)
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(small_server)) for _ in range(3)]
        for connection in silent:
            connection.sendall(POST_HEAD % 99 + b"Expect: 100-continue\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 100"), "the head has not arrived"
            connection.sendall(b"{")
        assert small_server.engine.request_counts == (0, 0)
        with connect(small_server) as newcomer:
            assert gets_response(newcomer)
        assert is_closed_silently(silent[0])


@pytest.mark.slow
def test_missing_body_gets_error_response(
    small_server: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a connection that is closed without an error because its timeout is shorter."""
    assert app.BODY_TIMEOUT_SECONDS < IDLE_TIMEOUT_SECONDS
    monkeypatch.setattr(app, "BODY_TIMEOUT_SECONDS", 0.1)
    with connect(small_server) as connection:
        connection.sendall(POST_HEAD % 99 + b"\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


class UnreadResponses(ThreeConnections):
    """Treats every response as not read, and counts the received blocks."""

    received = threading.Semaphore(0)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.pause_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.received.release()


@pytest.mark.slow
def test_pipelining_client_that_does_not_read_is_dropped(talker: Path) -> None:
    """Prevents requests whose answers can never be sent from holding connections for ever."""
    with running_server(talker, protocol_class=UnreadResponses) as server, ExitStack() as stack:
        pipelining = [stack.enter_context(connect(server)) for _ in range(3)]
        for connection in pipelining:
            assert gets_response(connection) and UnreadResponses.received.acquire(timeout=60)
            connection.sendall(GET_HEAD + b"\r\n")
            assert UnreadResponses.received.acquire(timeout=60)
        with connect(server) as newcomer:
            assert gets_response(newcomer)
        assert is_closed_silently(pipelining[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol_class", "sent"),
    [(ShortTimeout, b""), (ShortTimeout, GET_HEAD), (ShortTimeoutAfterFirstHead, GET_HEAD)],
    ids=["silent", "half-a-head", "half-a-second-head"],
)
def test_incomplete_request_head_times_out(
    talker: Path, protocol_class: type[LimitedConnection], sent: bytes
) -> None:
    """Prevents slow loris: connections held open by heads that never end."""
    with running_server(talker, protocol_class=protocol_class) as server:
        connection = connect(server)
        assert protocol_class is ShortTimeout or gets_response(connection)
        connection.sendall(sent)
        assert is_closed_silently(connection)


@pytest.mark.slow
def test_long_answer_does_not_time_out(endless: Path) -> None:
    """Prevents the end of an answer that takes longer than an idle connection may."""
    with (
        running_server(
            endless, max_new_tokens=15_000, protocol_class=ShortTimeoutAfterFirstHead
        ) as server,
        server.post(server.request_body(ENDLESS_QUESTION, stream=True), stream=True) as response,
    ):
        deadline = time.monotonic() + 3 * ShortTimeout.idle_timeout
        lines = response.iter_lines()
        while time.monotonic() < deadline:
            assert next(lines, None) is not None


@pytest.mark.parametrize(
    ("max_files", "max_connections"),
    [(1024, MAX_CONNECTIONS), (256, 32), (64, 8), (resource.RLIM_INFINITY, MAX_CONNECTIONS)],
)
def test_connection_limit_follows_file_descriptor_limit(
    monkeypatch: pytest.MonkeyPatch, max_files: int, max_connections: int
) -> None:
    """Prevents a limit above the number of files that the process may open."""
    monkeypatch.setattr(
        connection_limits.resource, "getrlimit", lambda kind: (max_files, max_files)
    )
    assert resolve_connection_limit() == max_connections


class ObservedConnection(LimitedConnection):
    """Sets events at four moments, and times out after a second, but only after the first head.

    The server waits for the client to read, the client has read, the response is complete on the
    server's side, and the connection is closed.
    """

    idle_timeout_after_head = 1.0
    is_waiting = threading.Event()
    has_resumed = threading.Event()
    is_complete = threading.Event()
    is_lost = threading.Event()

    @property
    def idle_timeout(self) -> float:  # type: ignore[override]
        return NO_TIMEOUT if self.cycle is None else self.idle_timeout_after_head

    @classmethod
    def clear_events(cls) -> None:
        for event in (cls.is_waiting, cls.has_resumed, cls.is_complete, cls.is_lost):
            event.clear()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.is_waiting.set()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._idle_timer is None:
            self.has_resumed.set()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.is_complete.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.is_lost.set()


class ResumesWhenEmpty(ObservedConnection):
    """Waits until the client has read the whole write buffer of 64 KB."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1 << 16, low=0)


class WithoutTimeout(ObservedConnection):
    """Never times out."""

    idle_timeout = NO_TIMEOUT  # type: ignore[assignment]


@contextmanager
def unread_answer(
    endless: Path, protocol_class: type[ObservedConnection], num_tokens: int
) -> Iterator[socket.socket]:
    """Yield a connection on which an answer was requested and nothing is read yet."""
    ObservedConnection.clear_events()
    with (
        running_server(
            endless,
            max_new_tokens=num_tokens,
            protocol_class=protocol_class,
            send_buffer_bytes=4096,
        ) as server,
        connect(server) as connection,
    ):
        body = json.dumps(server.request_body(ENDLESS_QUESTION, stream=True)).encode()
        connection.sendall(POST_HEAD % len(body) + b"\r\n" + body)
        yield connection


@contextmanager
def blocked_answer(
    endless: Path, protocol_class: type[ObservedConnection]
) -> Iterator[socket.socket]:
    """Yield the same for a long answer, once the server waits for the client to read.

    The answer is twice as long as the write buffer of 64 KB.
    """
    with unread_answer(endless, protocol_class, num_tokens=700) as connection:
        assert ObservedConnection.is_waiting.wait(60)
        yield connection


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", GET_HEAD], ids=["silent", "sending"])
def test_client_that_does_not_read_times_out(endless: Path, sent: bytes) -> None:
    """Prevents a connection held for ever by a client that sends, perhaps, but never reads."""
    with blocked_answer(endless, ObservedConnection) as connection:
        connection.sendall(sent)
        assert ObservedConnection.is_lost.wait(60)


@pytest.mark.slow
def test_resumed_reading_cancels_the_timeout(endless: Path) -> None:
    """Prevents an answer cut off because its client was slow earlier."""
    with blocked_answer(endless, WithoutTimeout) as connection:
        while not ObservedConnection.has_resumed.is_set():
            assert connection.recv(1 << 16)


@pytest.mark.slow
def test_slow_reader_is_not_dropped(endless: Path) -> None:
    """Prevents an answer cut off although its client reads, as on a slow line."""
    with blocked_answer(endless, ResumesWhenEmpty) as connection:
        for _ in range(15):
            assert connection.recv(2048) and not ObservedConnection.is_lost.is_set()
            time.sleep(0.1)
        assert not ObservedConnection.has_resumed.is_set(), "it read too fast to be waited for"
        assert ObservedConnection.is_lost.wait(60)


@pytest.mark.slow
def test_complete_answer_is_flushed_before_close(endless: Path) -> None:
    """Prevents the loss of the last lines for a client that reads slowly."""
    with unread_answer(endless, ObservedConnection, num_tokens=230) as connection:
        assert ObservedConnection.is_complete.wait(60)
        assert not ObservedConnection.is_waiting.is_set()
        response = b""
        while not response.endswith(b"0\r\n\r\n") and (block := connection.recv(3000)):
            response += block
            time.sleep(0.1)
    assert b"[DONE]" in response and len(response) > 40_000
