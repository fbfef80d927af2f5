"""Images inspected in child processes: a file that crashes, fills or occupies its decoder costs
that image, and a stop is heard meanwhile.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from queue import Empty, LifoQueue
from threading import Condition
from typing import Any

from adapters.images.child import GO_AHEAD
from adapters.images.opening import MAX_DECODING_BYTES
from application.stop_signal import StopSignal
from domain.image import ImageFacts, ImageRefused, PreparedImage

PROCESSES = 4
"""Images decoded at a time, at most."""
MAX_SECONDS = 60.0
"""For one image. One of 100 megapixels takes two or three on an idle machine."""
POLL_SECONDS = 0.2
"""How often a stop is looked for."""

_LARGE = 64 * 1024**2
"""Bytes; a process that has decoded so large an image ends, for it may not give all back."""


class IsolatedInspector:
    """Port ``ImageInspector``. Any number of threads may share it.

    Args:
        memory: bytes that the images decoded at a time may take together.
        seconds: that each may take.
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
        try:
            return self._inspect(data, resolution, stop)
        except _ChildLost:
            # Once more: the system may have ended it for the memory that others took.
            try:
                return self._inspect(data, resolution, stop)
            except _ChildLost:
                raise ImageRefused(
                    "its decoder breaks down over it; please export it again"
                ) from None

    def _inspect(self, data: bytes, resolution: int, stop: StopSignal) -> PreparedImage:
        with self._child(stop) as child:
            child.send(str(resolution).encode(), data)
            needed = self._ask(child, stop)["decoding_bytes"]
            with self._memory.reserved(needed, stop):
                child.send(GO_AHEAD)
                facts = self._ask(child, stop)["facts"]
                pixels = child.receive(time.monotonic() + self._seconds, stop)
                if needed >= _LARGE:
                    child.end()
        return PreparedImage(ImageFacts(**facts | {"notes": tuple(facts["notes"])}), pixels)

    def _ask(self, child: _Child, stop: StopSignal) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(child.receive(time.monotonic() + self._seconds, stop))
        if "refused" in message:
            raise ImageRefused(message["refused"])
        return message

    @contextmanager
    def _child(self, stop: StopSignal) -> Iterator[_Child]:
        """One of the processes, for this image alone."""
        child = self._wait_for_idle(stop)
        try:
            child = child or _Child()
            yield child
        except ImageRefused:
            raise
        except BaseException:
            if child is not None:
                child.end()
            raise
        finally:
            self._idle.put(child if child is not None and child.is_alive else None)

    def _wait_for_idle(self, stop: StopSignal) -> _Child | None:
        while True:
            stop.check()
            try:
                return self._idle.get(timeout=POLL_SECONDS)
            except Empty:
                continue


class _ChildLost(Exception):
    """The process has ended in the middle of an image."""


class _Child:
    """One process and the line to it."""

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
                start_new_session=True,  # a Ctrl-C is the parent's to deal with
            )
        self._line = Connection(ours.detach())
        self.is_alive = True
        try:
            self._line.recv_bytes()
        except EOFError:
            raise RuntimeError("the process that decodes images does not start") from None

    def send(self, *messages: bytes) -> None:
        try:
            for message in messages:
                self._line.send_bytes(message)
        except OSError as error:
            raise _ChildLost from error

    def receive(self, deadline: float, stop: StopSignal) -> bytes:
        """The next message.

        Raises:
            ImageRefused: it does not come in time; the process is ended.
            Stopped: the work should end.
        """
        try:
            while not self._line.poll(POLL_SECONDS):
                stop.check()
                if time.monotonic() > deadline:
                    self.end()
                    raise ImageRefused("it takes too long to decode; please export it again")
            return self._line.recv_bytes()
        except (EOFError, OSError) as error:
            raise _ChildLost from error

    def end(self) -> None:
        self.is_alive = False
        self._line.close()
        self._process.kill()
        self._process.wait()


class _Budget:
    """Bytes that are shared out, and waited for."""

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
