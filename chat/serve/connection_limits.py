"""Connections that ask for nothing must not use up the files that the process may open, nor keep others out."""

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 256  # open connections
PATIENCE = 30.0  # seconds
BACKLOG = 32  # asyncio takes as many in one turn of its loop, before it hears that they are too many

# Files for everything else, and for the turns, about five, from a connection's coming to the end of its closing.
_SPARE = 64 + 5 * BACKLOG


def most_connections() -> int:
    """`MOST`, or fewer where the process may not open that many files (RLIMIT_NOFILE)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(8, min(MOST, soft - _SPARE))


class Limited(H11Protocol):
    """HTTP/1.1 over at most `most` connections; those that do not go on within `patience` seconds are closed.

    Those bring no whole request, or read nothing of what they asked for. One connection more takes the place of the one
    that has been waited for longest, and is closed itself where no other is waited for: a listener whose process has no
    file left for it can neither take it nor refuse it, and asyncio tries and complains without end. uvicorn has no limit
    before a request is whole, and none for who does not read.
    """

    most = most_connections()
    patience = PATIENCE
    _timer: asyncio.TimerHandle | None = None
    _unread = 0  # bytes of an answer, when the wait began

    @property
    def asked(self) -> bool:
        """Whether there is a whole request, with its body, to be answered."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, and close one where they are too many."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.most:
            waiting = [(each._timer.when(), each) for each in self.connections
                       if isinstance(each, Limited) and each._timer is not None]
            min(waiting, key=lambda one: one[0])[1]._close()

    def data_received(self, data: bytes) -> None:
        """Part of a head or a body."""
        before, asked = self.cycle, self.asked
        super().data_received(data)
        if self.flow.write_paused:
            return  # it has yet to read the answer before: it is waited for that
        if self.asked and not asked:
            self._stop_waiting()
        elif self.cycle is not before:
            self._wait()  # a head has come, and its body has as long again

    def on_response_complete(self) -> None:
        """A request is answered; the next may have come already."""
        super().on_response_complete()
        if not self.asked:
            self._wait()

    def pause_writing(self) -> None:
        """The other side does not read as fast as we write."""
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        if self.asked:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop_waiting()
        self._unread = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(self.patience, self._lose_patience)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lose_patience(self) -> None:
        # Nothing is added while it is waited for: less is there only if it has read.
        if self.transport.get_write_buffer_size() < self._unread:
            self._wait()
        else:
            self._close()

    def _close(self) -> None:
        self._stop_waiting()
        self.transport.abort()
