"""Connections that ask for nothing must not use up the files that the process may open."""

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 256  # open connections
HEAD_SECONDS = 30.0
BACKLOG = 32  # asyncio takes as many in one turn of its loop, before it hears that they are too many

# Files for everything else, and for the turns, about five, from a connection's coming to the end of its closing.
_SPARE = 64 + 5 * BACKLOG


def most_connections() -> int:
    """`MOST`, or fewer where the process may not open that many files (RLIMIT_NOFILE)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(8, min(MOST, soft - _SPARE))


class Limited(H11Protocol):
    """HTTP/1.1 over at most `most` connections; those that do not bring a whole request head in time are closed.

    One connection more is closed at once: a listener whose process has no file left for it can neither take it nor
    refuse it, and asyncio tries and complains without end. uvicorn has no limit before a request has begun.
    """

    most = most_connections()
    head_seconds = HEAD_SECONDS
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, or close it."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Part of a head or a body."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._head is None and not self.transport.is_closing():
            self._wait_for_head()  # of the next request on this connection

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
