"""A time limit for whole HTTP exchanges, however slowly bytes move."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from application.ports import BlobUnavailable

MIN_BYTES_PER_SECOND = 100_000
"""Lowest accepted transfer rate of a blob."""


class Deadline:
    """Cuts this thread's connections off when the time is over.

    A read timeout restarts with each byte, and so does the timeout of a write over TLS. A server
    that moves single bytes could block the caller forever.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """The whole limit, with its extensions."""
        self._began = math.inf
        self._timer = threading.Timer(0, self._end)
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._before: Token[Deadline | None] | None = None
        self.over = False
        self.sent = False
        """True once the whole request is sent; only then can the server have processed it."""

    def __enter__(self) -> Deadline:
        self._before = _deadline.set(self)
        self._began = time.monotonic()
        self._start()
        return self

    def __exit__(self, *_exception: object) -> None:
        with self._lock:
            self._timer.cancel()
            self._socket = None
        if self._before is not None:
            _deadline.reset(self._before)

    @property
    def left(self) -> float:
        """Seconds left; never 0, which would make a socket non-blocking."""
        return max(0.001, self._began + self.seconds - time.monotonic())

    def extend(self, size: int) -> None:
        """Allow the time to receive ``size`` bytes, unless the time is over."""
        with self._lock:
            self.seconds += size / MIN_BYTES_PER_SECOND
            self._timer.cancel()
            if not self.over:
                self._start()

    def watch(self, connection: socket.socket) -> None:
        """Remember the connection to cut off."""
        with self._lock:
            self._socket = connection
            if self.over:
                self._cut()

    def _start(self) -> None:
        self._timer = threading.Timer(self.left, self._end)
        self._timer.daemon = True
        self._timer.start()

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


@contextmanager
def blob_deadline(seconds: float, what: str, size: int = 0) -> Iterator[Deadline]:
    """Limit one call to a blob store.

    Args:
        what: the call and its target: ``reading s3://bucket/key``.
        size: bytes to send.

    Raises:
        BlobUnavailable: the time was over. Even a call that ended normally then counts as failed:
            a response that was cut off in its headers looks like one without a body.
    """
    with Deadline(seconds + size / MIN_BYTES_PER_SECOND) as deadline:
        try:
            yield deadline
        except Exception:
            if not deadline.over:
                raise
    if deadline.over:
        raise BlobUnavailable(f"{what}: not finished within {deadline.seconds:.0f} s")


class Watched(HTTPConnection):
    """urllib3's connection, which the calling thread's ``Deadline`` cuts off."""

    def send(self, data: Any) -> None:
        """Send within the deadline; urllib3 itself would apply the connect timeout."""
        deadline = _deadline.get()
        if deadline is not None:
            if self.sock is None:
                self.connect()  # as http.client's own send
            deadline.watch(self.sock)
            self.sock.settimeout(deadline.left + 1)  # the deadline itself ends first
        super().send(data)

    def getresponse(self) -> HTTPResponse:  # type: ignore[override] # as urllib3's own
        """Read the status and the headers."""
        deadline = _deadline.get()
        if deadline is not None:
            deadline.sent = True
        return super().getresponse()


class _TlsConnection(Watched, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = Watched


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class BoundedAdapter(HTTPAdapter):
    """Adapter of ``requests`` whose exchanges a ``Deadline`` can cut off."""

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        super().init_poolmanager(*arguments, **named)
        pools = {"http": _PlainPool, "https": _TlsPool}
        self.poolmanager.pool_classes_by_scheme = pools
