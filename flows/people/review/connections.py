"""Connections with a time limit: uvicorn itself does not limit how long a request may take to arrive."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 10.0  # from connecting, or the last response, to a complete request
MAX_WAITING = 200  # connections without a request; a process may open about 1000 files


class Impatient(H11Protocol):
    """A connection that is closed if no complete request arrives in time, or if too many others are waiting as well."""

    _timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for a request; close another connection if too many are waiting."""
        super().connection_made(transport)
        self._expect()
        waiting = [c for c in self.connections if isinstance(c, Impatient) and c.waits()]
        if len(waiting) > MAX_WAITING:
            min(waiting, key=Impatient._merit).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Restart the timer for a request that begins after a pause."""
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._timer.cancel()
            self._expect()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of one that was answered before it was read."""
        self._timer.cancel()
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._timer.cancel()
        super().connection_lost(exc)

    def waits(self) -> bool:
        """Whether there is no complete request to answer."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing()

    def _merit(self) -> tuple[bool, float]:
        # A client that got a response and sends nothing may be a reviewer who is reading.
        return self.conn.their_state is h11.IDLE and self.cycle is not None, self._timer.when()

    def _expect(self) -> None:
        self._timer = self.loop.call_later(REQUEST_SECONDS, self._expire)

    def _expire(self) -> None:
        if self.waits():
            self.transport.abort()
