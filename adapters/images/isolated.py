"""Inspect images in child processes.

If a file crashes its decoder, or takes too much memory or time, only that image fails. Waiting
threads check for a stop signal.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from queue import Empty, LifoQueue
from threading import Condition
from typing import Any

from adapters.images.child import GO_AHEAD
from adapters.images.opening import MAX_DECODING_BYTES, WORKING_BYTES
from application.stop_signal import StopSignal
from domain.image import ImageFacts, ImageRejected, PreparedImage

PROCESSES = 4
"""Maximum images decoded at a time."""
MAX_SECONDS = 60.0
"""Time limit per image. 100 megapixels take 2 to 3 s on an idle machine."""
POLL_SECONDS = 0.2
"""Interval of checks for a stop."""

_LARGE = WORKING_BYTES + 64 * 1024**2
"""Bytes. A process that has decoded an image this large ends: it may not free all its memory."""


class IsolatedInspector:
    """Port ``ImageInspector``. Any number of threads may share it.

    Args:
        memory: bytes that concurrently decoded images may take together.
        seconds: time limit per image.
    """

    def __init__(
        self,
        *,
        processes: int = PROCESSES,
        memory: int = MAX_DECODING_BYTES,
        seconds: float = MAX_SECONDS,
    ) -> None:
        self._memory = _Budget(memory)
        self._seconds = seconds
        self._idle: LifoQueue[_Child | None] = LifoQueue()
        for _ in range(processes):
            self._idle.put(None)

    def inspect(self, data: bytes, resolution: int, stop: StopSignal) -> PreparedImage:
        """See ``ImageInspector``."""
        for _ in range(2):  # the system may have killed it because others used the memory
            with suppress(_ChildLost), self._child(stop) as child:
                child.send(str(resolution).encode(), data)
                needed = self._reply(child, stop)["decoding_bytes"]
                with self._memory.reserved(needed, stop):
                    child.send(GO_AHEAD)
                    facts = self._reply(child, stop)["facts"]
                    pixels = child.receive(time.monotonic() + self._seconds, stop)
                    if needed >= _LARGE:
                        child.end()
                facts["notes"] = tuple(facts["notes"])
                return PreparedImage(ImageFacts(**facts), pixels)
        raise ImageRejected("the decoder crashed on it; please export it again")

    def _reply(self, child: _Child, stop: StopSignal) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(child.receive(time.monotonic() + self._seconds, stop))
        if "rejected" in message:
            raise ImageRejected(message["rejected"])
        return message

    @contextmanager
    def _child(self, stop: StopSignal) -> Iterator[_Child]:
        """A child process, reserved for one image."""
        while True:
            stop.check()
            with suppress(Empty):
                child = self._idle.get(timeout=POLL_SECONDS)
                break
        try:
            child = child or _Child()
            yield child
        except ImageRejected:
            raise
        except BaseException:
            if child is not None:
                child.end()
            raise
        finally:
            self._idle.put(child if child is not None and child.is_alive else None)


class _ChildLost(Exception):
    """The process has ended unexpectedly."""


class _Child:
    """A child process and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    f"import sys; sys.path[:] = {sys.path!r}\n"
                    f"from adapters.images.child import main; main({theirs.fileno()})",
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # the parent handles Ctrl-C
            )
        self._connection = Connection(ours.detach())
        self.is_alive = True
        try:
            self._connection.recv_bytes()
        except EOFError:
            raise RuntimeError("the image decoding process does not start") from None

    def send(self, *messages: bytes) -> None:
        try:
            for message in messages:
                self._connection.send_bytes(message)
        except OSError as error:
            raise _ChildLost from error

    def receive(self, deadline: float, stop: StopSignal) -> bytes:
        """The next message.

        Raises:
            ImageRejected: no message in time; the process is killed.
            Stopped: the stop signal is set.
            _ChildLost: the process has ended.
        """
        try:
            while not self._connection.poll(POLL_SECONDS):
                stop.check()
                if time.monotonic() > deadline:
                    self.end()
                    raise ImageRejected("it takes too long to decode; please export it again")
            return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise _ChildLost from error

    def end(self) -> None:
        self.is_alive = False
        self._connection.close()
        self._process.kill()
        self._process.wait()


class _Budget:
    """A memory budget in bytes. Threads wait until their share is free."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._changed = Condition()

    @contextmanager
    def reserved(self, size: int, stop: StopSignal) -> Iterator[None]:
        size = min(size, self._total)
        with self._changed:
            while size > self._free:
                stop.check()
                self._changed.wait(POLL_SECONDS)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()
