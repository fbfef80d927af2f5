"""A TCP connection between a client and a server that a test can cut, pause or disconnect."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class Proxy:
    """Forwards every connection to its own port to the server at ``port`` of this machine."""

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._unplugged = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        # Otherwise a thread blocked in accept() keeps the port.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._flowing.set()

    def cut(self) -> None:
        """Break every connection; accept new ones."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for end in sockets:
            _shut(end)

    def unplug(self) -> None:
        """Break every connection, and each new one immediately."""
        self._unplugged = True
        self.cut()

    def plug_in(self) -> None:
        """Accept connections again."""
        self._unplugged = False

    def hold(self) -> None:
        """Pause both directions without breaking connections."""
        self._flowing.clear()

    def release(self) -> None:
        """Resume after ``hold``."""
        self._flowing.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._unplugged:
                    raise ConnectionAbortedError
                far = socket.create_connection(self._server)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._sockets |= {near, far}
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                target.sendall(data)
        _shut(source)
        _shut(target)
        with self._lock:
            self._sockets.discard(source)
        source.close()


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
