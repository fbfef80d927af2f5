"""Serves the page beside the work, on a thread that ends with the process."""

from __future__ import annotations

import logging
import socket
import threading
import time

import uvicorn
from starlette.types import ASGIApp

from adapters.status_page.binding import is_loopback
from domain.mistake import Mistake

log = logging.getLogger(__name__)

_START_SECONDS = 10.0


class AddressTaken(Mistake):
    """Nothing can listen at the address; the text says which and why."""


class StatusServer:
    """An app at an address, between ``start`` and ``stop``.

    Args:
        port: to listen on; 0 for any that is free.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._socket: socket.socket | None = None
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                # It would write tokens that come in an address.
                access_log=False,
                log_level="warning",
                server_header=False,
                proxy_headers=False,
                limit_concurrency=100,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="status page", daemon=True)

    def start(self) -> str:
        """Listen, and return the page's URL.

        On loopback a port that is taken is replaced by a free one: a second worker on a
        machine is no error. An address that others look for must be the one that was asked for.

        Raises:
            AddressTaken: the address cannot be listened on.
        """
        try:
            self._socket = _listen(self._host, self._port)
        except OSError as error:
            where = f"{self._host}:{self._port}"
            if self._port == 0 or not is_loopback(self._host):
                raise AddressTaken(
                    f"STATUS_HOST, STATUS_PORT: {where}: {error.strerror or error}; give another"
                ) from None
            log.warning("port %d is taken; the status page has another", self._port)
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
        """Close the address."""
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
        assert self._socket is not None  # the thread is started after it
        try:
            self._server.run(sockets=[self._socket])
        except Exception:
            log.exception("the status page has ended; the work goes on")


def _listen(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(64)
    except OSError:
        listening.close()
        raise
    return listening
