"""One client's connection: uvicorn's, with a limit for the time that a request's head may take, so that a client that sends half of one holds no place.

Knows uvicorn and h11, no request. What follows the head has limits of its own: the body in http.py, the pause before a next request in uvicorn.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def connections(patience: float) -> type[asyncio.Protocol]:
    """The class of connections whose heads may take `patience` seconds each."""

    class Connection(H11Protocol):
        waits: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:  # the head is whole
                self._stop()
            elif self.waits is None:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self.waits = self.loop.call_later(patience, self.transport.close)

        def _stop(self) -> None:
            if self.waits is not None:
                self.waits.cancel()
                self.waits = None

    return Connection
