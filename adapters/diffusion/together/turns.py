"""Whose turn it is to use the device, first come, first served."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turns:
    """A lock for ``with``; a thread that has it may take it again.

    Unlike ``threading.RLock`` it is given to whoever has waited longest: a thread that gives it up
    and takes it again at once, between two previews say, has let the others in.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[int] = deque()
        self._depth = 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            if not (self._depth and self._line[0] == me):
                self._line.append(me)
                self._changed.wait_for(lambda: not self._depth and self._line[0] == me)
            self._depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._depth -= 1
            if not self._depth:
                self._line.popleft()
                self._changed.notify_all()
