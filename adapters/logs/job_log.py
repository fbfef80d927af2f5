"""The log of the job in hand, kept and then put beside the job's other files."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from application.ports import BlobStore, Clock
from application.settlement import Settlement
from domain.events import Event
from domain.location import Location
from domain.task import TrainingTask

log = logging.getLogger(__name__)

MOST_BYTES = 1024 * 1024


class JobLog(logging.Handler):
    """Collects a job's lines and stores them when the worker puts the job down.

    A long log loses its middle: how a job began and how it ended matter most. A run in which
    nothing happened to the job leaves no log, as when another worker has it. Every run has
    its own file, so that attempts do not overwrite one another's.

    Args:
        place: where a job's log of that name lies, by task id and name.
        worker: this worker's name, for the file's name.
        most_bytes: of one file, about.
    """

    def __init__(
        self,
        blobs: BlobStore,
        place: Callable[[str, str], Location],
        clock: Clock,
        worker: str,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        super().__init__()
        self._blobs = blobs
        self._place = place
        self._clock = clock
        self._worker = worker
        self._half = most_bytes // 2
        self._lines_lock = threading.Lock()
        self._task_id: str | None = None
        self._name = ""
        self._forget()

    def _forget(self) -> None:
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._head_bytes = self._tail_bytes = self._dropped = 0
        self._eventful = False

    def taken_up(self, task: TrainingTask) -> None:
        """Collect from here on."""
        with self._lines_lock:
            self._forget()
            self._task_id = task.task_id
            worker = "".join(c if c.isalnum() or c in "-._" else "_" for c in self._worker)
            self._name = f"{self._clock.now():%Y%m%dT%H%M%SZ}_{worker[:64]}.jsonl"

    def __call__(self, event: Event) -> None:
        """Something happened: the log is worth keeping."""
        self._eventful = self._eventful or event.task_id == self._task_id

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line, if there is a job in hand."""
        if self._task_id is None:
            return
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        with self._lines_lock:
            self._keep(line)

    def _keep(self, line: str) -> None:
        size = len(line.encode(errors="replace")) + 1
        if not self._tail and self._head_bytes + size <= self._half:
            self._head.append(line)
            self._head_bytes += size
            return
        self._tail.append(line)
        self._tail_bytes += size
        while self._tail_bytes > self._half and len(self._tail) > 1:
            self._tail_bytes -= len(self._tail.popleft().encode(errors="replace")) + 1
            self._dropped += 1

    def put_down(self, _task: TrainingTask | None, _settlement: Settlement) -> None:
        """Store what was collected. Never raises: the job is over, and counts for more."""
        with self._lines_lock:
            task_id, self._task_id = self._task_id, None
            gap = [f'{{"message": "{self._dropped} lines left out"}}'] if self._dropped else []
            lines = [*self._head, *gap, *self._tail]
            keep = self._eventful and bool(lines)
            self._forget()
        if task_id is None or not keep:
            return
        data = "".join(f"{line}\n" for line in lines).encode(errors="replace")
        try:
            at = self._place(task_id, self._name)
            self._blobs.put(at, data, content_type="application/x-ndjson")
        except Exception as error:
            log.warning("the log of task %s was not stored: %s", task_id, error)
