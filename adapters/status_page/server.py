"""Serve the page on a daemon thread."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from adapters.common.loopback import is_loopback
from adapters.status_page.connections import (
    STALL_SECONDS,
    Connections,
    bounded_protocol,
    max_connections,
)
from domain.errors import UserError

log = logging.getLogger(__name__)

_START_SECONDS = 10.0
_BACKLOG = 64
"""Connections queued by the kernel and accepted in one pass of the event loop."""
_LOG_SECONDS = 60.0
"""Seconds between log lines about connections that cannot be accepted."""


class AddressTaken(UserError):
    """Listening at the address failed; the text says which and why."""


class StatusServer:
    """An app at an address, between ``start`` and ``stop``.

    Args:
        port: to listen on; 0 for any free one.
        stall_seconds: a connection without a completed request is closed after this time.
    """

    def __init__(
        self, app: ASGIApp, host: str, port: int, *, stall_seconds: float = STALL_SECONDS
    ) -> None:
        self._host = host
        self._port = port
        self._socket: socket.socket | None = None
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=bounded_protocol(Connections(max_connections()), stall_seconds),
                ws="none",
                lifespan="off",
                log_config=None,
                # It would log tokens in URLs.
                access_log=False,
                # Its warnings are about requests: any client could flood the log.
                log_level="error",
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="status page", daemon=True)

    def start(self) -> str:
        """Listen, and return the page's URL.

        On loopback a free port replaces one in use, so that a second worker can start on the
        machine. Elsewhere clients expect the configured port.

        Raises:
            AddressTaken: listening at the address failed.
        """
        try:
            self._socket = _listen(self._host, self._port)
        except OSError as error:
            where = f"{self._host}:{self._port}"
            if self._port == 0 or not is_loopback(self._host):
                raise AddressTaken(
                    f"STATUS_HOST, STATUS_PORT: {where}: {error.strerror or error}; change them"
                ) from None
            log.warning("port %d is in use; the status page uses another", self._port)
            self._socket = _listen(self._host, 0)
        name, port = self._socket.getsockname()[:2]
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started and self._thread.is_alive():
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"

    def stop(self) -> None:
        """Stop the server and close its socket."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout=3.0)
        if self._socket is not None:
            self._socket.close()

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def _serve(self) -> None:
        assert self._socket is not None  # the thread starts after the socket is set
        try:
            asyncio.run(self._serve_on(self._socket))
        except Exception:
            log.exception("the status page has stopped; the worker continues")

    async def _serve_on(self, listening: socket.socket) -> None:
        asyncio.get_running_loop().set_exception_handler(_ErrorLog())
        await self._server.serve(sockets=[listening])


class _ErrorLog:
    """The event loop's exception handler: logs at most one line a minute.

    asyncio reports each connection that it cannot accept: 64 a second while no file descriptor
    is free.
    """

    def __init__(self) -> None:
        self._quiet_until = 0.0

    def __call__(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _LOG_SECONDS
            reason = context.get("exception") or context["message"]
            log.warning("status page: a connection cannot be accepted: %s", reason)


def _listen(host: str, port: int) -> socket.socket:
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = addresses[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening
