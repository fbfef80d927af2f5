"""A time limit for a whole HTTP exchange, however slowly bytes arrive."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection


class Deadline:
    """Cuts this thread's exchange off when its time is over.

    A read timeout restarts with each byte, so that a server that sends single bytes could block
    the caller forever.
    """

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._before: Token[Deadline | None] | None = None
        self.over = False
        self.sent = False
        """True once the whole request is sent; only then can the backend have processed it."""

    def __enter__(self) -> Deadline:
        self._before = _deadline.set(self)
        self._timer.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._timer.cancel()
        if self._before is not None:
            _deadline.reset(self._before)

    def watch(self, connection: socket.socket) -> None:
        """Note that the request is sent, and which connection to cut."""
        with self._lock:
            self.sent = True
            self._socket = connection
            if self.over:
                self._cut()

    def _end(self) -> None:
        with self._lock:
            self.over = True
            self._cut()

    def _cut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                # Not the TLS socket's own shutdown, which is not allowed during a read.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


_deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def _watch(connection: HTTPConnection) -> None:
    deadline = _deadline.get()
    if deadline is not None and connection.sock is not None:
        deadline.watch(connection.sock)


class _PlainConnection(HTTPConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override] # as urllib3's own
        _watch(self)
        return super().getresponse()


class _TlsConnection(HTTPSConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override] # as urllib3's own
        _watch(self)
        return super().getresponse()


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class BoundedAdapter(HTTPAdapter):
    """HTTP adapter whose exchanges the calling thread's ``Deadline`` can cut off."""

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        super().init_poolmanager(*arguments, **named)
        pools = {"http": _PlainPool, "https": _TlsPool}
        self.poolmanager.pool_classes_by_scheme = pools
