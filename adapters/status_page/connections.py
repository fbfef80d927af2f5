"""Limit the sockets of the status page's clients, and the time of their requests."""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256
MAX_PER_PEER = 128
"""Connections per client address: more than a browser opens, and more than arrive in one pass of
the event loop, so that a health check is served before newer connections can displace it."""
STALL_SECONDS = 15.0
"""Seconds after which a connection without a completed request is closed."""


class Connections:
    """The open connections, longest without a completed response first.

    A connection above a limit displaces the one that has gone longest without a completed
    response. A health check is served at once, so silent or slow connections cannot block it.

    Args:
        limit: total number of connections.
        per_peer: connections per client address.
    """

    def __init__(self, limit: int, per_peer: int = MAX_PER_PEER) -> None:
        self._limit = limit
        self._per_peer = per_peer
        self._open: dict[BoundedProtocol, str] = {}
        """Each connection's address; a dictionary keeps their order."""

    def add(self, connection: BoundedProtocol, peer: str) -> None:
        """Add a new connection; abort another one if there are too many."""
        from_peer = [other for other, address in self._open.items() if address == peer]
        if len(from_peer) >= self._per_peer:
            self.drop(from_peer[0])
        elif len(self._open) >= self._limit:
            self.drop(next(iter(self._open)))
        self._open[connection] = peer

    def served(self, connection: BoundedProtocol) -> None:
        """A response is complete: the connection is the last to be displaced."""
        if connection in self._open:
            self._open[connection] = self._open.pop(connection)

    def remove(self, connection: BoundedProtocol) -> None:
        """The connection is closed."""
        self._open.pop(connection, None)

    def drop(self, connection: BoundedProtocol) -> None:
        """Close the connection at once and discard unsent data."""
        self.remove(connection)
        connection.transport.abort()


class BoundedProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1, with a limit on connections and a deadline for every request."""

    open_connections: Connections
    stall_seconds: float
    _deadline: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self.open_connections.add(self, self.client[0] if self.client else "")
        self._start_deadline()

    def on_response_complete(self) -> None:
        """A response has been handed to the socket; the next request has the full time again."""
        super().on_response_complete()
        self.open_connections.served(self)
        self._deadline.cancel()
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._deadline.cancel()
        self.open_connections.remove(self)
        super().connection_lost(exc)

    def _start_deadline(self) -> None:
        # Abort, not close: closing would wait for a client that does not read.
        drop = self.open_connections.drop
        self._deadline = self.loop.call_later(self.stall_seconds, drop, self)


def bounded_protocol(connections: Connections, stall_seconds: float) -> type[asyncio.Protocol]:
    """The protocol class of one server, for uvicorn's ``http``."""

    class Protocol(BoundedProtocol):
        pass

    Protocol.open_connections = connections
    Protocol.stall_seconds = stall_seconds
    return Protocol


def max_connections() -> int:
    """How many connections to allow: a quarter of the process's descriptors at most."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(8, min(MAX_CONNECTIONS, descriptors // 4))
