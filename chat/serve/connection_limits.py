"""Limit the number of connections and the time that an idle one may stay open."""

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256
IDLE_TIMEOUT_SECONDS = 30.0
# asyncio accepts up to this many connections in one iteration of its event loop, and only then
# `connection_made` can refuse some of them.
BACKLOG = 32

# File descriptors for the program's own files, and for the connections that are accepted in the
# about five iterations of the event loop until one too many is closed.
_RESERVED_FILES = 64 + 5 * BACKLOG


def resolve_connection_limit() -> int:
    """Return MAX_CONNECTIONS, or less if the process may not open that many files."""
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft_limit == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(8, min(MAX_CONNECTIONS, soft_limit - _RESERVED_FILES))


class LimitedConnection(H11Protocol):
    """An HTTP/1.1 connection, of which at most `max_connections` are open at a time.

    A connection is idle while it waits for its client to send a whole request or to read its
    answer, and is closed after `idle_timeout` seconds of that. If there is one connection too many,
    the one that has been idle longest is closed, which is the new one itself if no other is idle.

    uvicorn's own settings do not replace this. `limit_concurrency` refuses a request only after
    its head is complete, so silent connections (slow loris) are neither counted in time nor
    closed; when they use up the process's files, asyncio can neither accept nor refuse the next
    one and logs an error in an endless loop. `timeout_keep_alive` begins after an answer, and
    nothing limits the time for a request or for a client that does not read.
    """

    max_connections = resolve_connection_limit()
    idle_timeout = IDLE_TIMEOUT_SECONDS
    _idle_timer: asyncio.TimerHandle | None = None  # set while the connection waits
    _num_unread_bytes = 0  # size of the write buffer when the timer was started

    @property
    def has_whole_request(self) -> bool:
        """Return whether a request, body included, has arrived and is not yet answered."""
        cycle = self.cycle
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, and close one if there are too many."""
        super().connection_made(transport)
        self._start_idle_timer()
        if len(self.connections) > self.max_connections:
            idle_connections = [
                (connection._idle_timer.when(), connection)
                for connection in self.connections
                if isinstance(connection, LimitedConnection) and connection._idle_timer is not None
            ]
            # There is at least one: the new connection itself.
            _, longest_idle = min(idle_connections, key=lambda entry: entry[0])
            longest_idle._abort_connection()

    def data_received(self, data: bytes) -> None:
        """Handle a part of a request's head or body."""
        previous_cycle = self.cycle
        had_whole_request = self.has_whole_request
        super().data_received(data)
        if self.flow.write_paused:
            return  # the client has not read the previous answer, and the timer runs for that
        if self.has_whole_request and not had_whole_request:
            self._cancel_idle_timer()
        elif self.cycle is not previous_cycle:
            self._start_idle_timer()  # the head has arrived, and the body may take as long again

    def on_response_complete(self) -> None:
        """Start the idle timer, unless the next request has arrived already."""
        super().on_response_complete()
        if not self.has_whole_request:
            self._start_idle_timer()

    def pause_writing(self) -> None:
        """Start the idle timer: the write buffer is full, and the client has to read."""
        super().pause_writing()
        self._start_idle_timer()

    def resume_writing(self) -> None:
        """Cancel the idle timer if a request is being answered: the client has read."""
        super().resume_writing()
        if self.has_whole_request:
            self._cancel_idle_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of a closed connection."""
        self._cancel_idle_timer()
        super().connection_lost(exc)

    def _start_idle_timer(self) -> None:
        """Start the timer, or start it again, that closes the connection if its client is idle."""
        self._cancel_idle_timer()
        self._num_unread_bytes = self.transport.get_write_buffer_size()
        self._idle_timer = self.loop.call_later(self.idle_timeout, self._on_idle_timeout)

    def _cancel_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _on_idle_timeout(self) -> None:
        """Close the connection, unless its client reads a long answer slowly."""
        # Nothing is written while the timer runs, so a smaller buffer means that the client reads,
        # if slowly.
        if self.transport.get_write_buffer_size() < self._num_unread_bytes:
            self._start_idle_timer()
        else:
            self._abort_connection()

    def _abort_connection(self) -> None:
        self._cancel_idle_timer()
        self.transport.abort()
