"""Connections that ask for nothing must not use up the files that the process may open, nor keep others out."""

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256  # open connections
IDLE_TIMEOUT_SECONDS = 30.0  # seconds
BACKLOG = (
    32  # asyncio takes as many in one turn of its loop, before it hears that they are too many
)

# Files for everything else, and for the turns, about five, from a connection's coming to the end of its closing.
_RESERVED_FILES = 64 + 5 * BACKLOG


def resolve_connection_limit() -> int:
    """`MOST`, or fewer where the process may not open that many files (RLIMIT_NOFILE)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        MAX_CONNECTIONS
        if soft == resource.RLIM_INFINITY
        else max(8, min(MAX_CONNECTIONS, soft - _RESERVED_FILES))
    )


class LimitedConnection(H11Protocol):
    """HTTP/1.1 over at most `max_connections` connections; those that do not go on within `idle_timeout` seconds are closed.

    Those bring no whole request, or read nothing of what they asked for. One connection more takes the place of the one
    that has been waited for longest, and is closed itself where no other is waited for: a listener whose process has no
    file left for it can neither take it nor refuse it, and asyncio tries and complains without end. uvicorn has no limit
    before a request is whole, and none for who does not read.
    """

    max_connections = resolve_connection_limit()
    idle_timeout = IDLE_TIMEOUT_SECONDS
    _idle_timer: asyncio.TimerHandle | None = None
    _num_unread_bytes = 0  # bytes of an answer, when the wait began

    @property
    def has_whole_request(self) -> bool:
        """Whether there is a whole request, with its body, to be answered."""
        return (
            self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
        )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, and close one where they are too many."""
        super().connection_made(transport)
        self._start_idle_timer()
        if len(self.connections) > self.max_connections:
            waiting = [
                (each._idle_timer.when(), each)
                for each in self.connections
                if isinstance(each, LimitedConnection) and each._idle_timer is not None
            ]
            min(waiting, key=lambda one: one[0])[1]._abort_connection()

    def data_received(self, data: bytes) -> None:
        """Part of a head or a body."""
        before, asked = self.cycle, self.has_whole_request
        super().data_received(data)
        if self.flow.write_paused:
            return  # it has yet to read the answer before: it is waited for that
        if self.has_whole_request and not asked:
            self._cancel_idle_timer()
        elif self.cycle is not before:
            self._start_idle_timer()  # a head has come, and its body has as long again

    def on_response_complete(self) -> None:
        """A request is answered; the next may have come already."""
        super().on_response_complete()
        if not self.has_whole_request:
            self._start_idle_timer()

    def pause_writing(self) -> None:
        """The other side does not read as fast as we write."""
        super().pause_writing()
        self._start_idle_timer()

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        if self.has_whole_request:
            self._cancel_idle_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._cancel_idle_timer()
        super().connection_lost(exc)

    def _start_idle_timer(self) -> None:
        self._cancel_idle_timer()
        self._num_unread_bytes = self.transport.get_write_buffer_size()
        self._idle_timer = self.loop.call_later(self.idle_timeout, self._on_idle_timeout)

    def _cancel_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _on_idle_timeout(self) -> None:
        # Nothing is added while it is waited for: less is there only if it has read.
        if self.transport.get_write_buffer_size() < self._num_unread_bytes:
            self._start_idle_timer()
        else:
            self._abort_connection()

    def _abort_connection(self) -> None:
        self._cancel_idle_timer()
        self.transport.abort()
