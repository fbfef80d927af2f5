"""Collect the log of each active job; store it with the job's files at the end."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from application.event_bus import MessageSettled, TaskReceived, WorkerEvent
from application.ports import Clock
from domain.events import Event

log = logging.getLogger(__name__)

MAX_BYTES = 1024 * 1024


class JobLog(logging.Handler):
    """Port ``EventSink``: collects each job's lines; stores them when its message is settled.

    A line belongs to the job whose task id ``LogContext`` has set; lines without one are skipped.
    May be used from any thread.

    Stores no log if nothing happened to the job, such as when another worker has it. Each run
    has its own file, so that attempts do not overwrite each other's.

    Args:
        put_log: stores a log: ``JobStore.put_log``.
        worker: this worker's name, for the file's name.
        max_bytes: approximate limit of a file.
    """

    def __init__(
        self,
        put_log: Callable[[str, str, bytes], None],
        clock: Clock,
        worker: str,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        super().__init__()
        self._put_log = put_log
        self._clock = clock
        self._worker = worker
        self._half = max_bytes // 2
        self._jobs: dict[str, _Lines] = {}
        self._jobs_lock = threading.Lock()

    def __call__(self, event: WorkerEvent) -> None:
        """Start, continue or store a job's log. Never raises."""
        match event:
            case TaskReceived(task_id=task_id):
                with self._jobs_lock:
                    self._jobs[task_id] = _Lines(self._file_name(), self._half)
            case MessageSettled(task_id=task_id):
                with self._jobs_lock:
                    lines = self._jobs.pop(task_id or "", None)
                if task_id and lines is not None:
                    self._store(task_id, lines)
            case Event():
                with self._jobs_lock:
                    if event.task_id in self._jobs:
                        self._jobs[event.task_id].eventful = True

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line if its job is active."""
        task_id = getattr(record, "task_id", None)
        if task_id is None:
            return
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        with self._jobs_lock:
            lines = self._jobs.get(task_id)
            if lines is not None:
                lines.keep(line)

    def _file_name(self) -> str:
        worker = "".join(c if c.isalnum() or c in "-._" else "_" for c in self._worker)
        return f"{self._clock.now():%Y%m%dT%H%M%SZ}_{worker[:64]}.jsonl"

    def _store(self, task_id: str, lines: _Lines) -> None:
        if not lines.eventful or not (kept := lines.all()):
            return
        data = "".join(f"{line}\n" for line in kept).encode(errors="replace")
        try:
            self._put_log(task_id, lines.name, data)
        except Exception as error:
            log.warning("the log of task %s was not stored: %s", task_id, error)


@dataclass
class _Lines:
    """The lines of one job. A long log loses its middle: start and end matter most."""

    name: str
    half: int
    """Maximum bytes of the start and of the end."""
    eventful: bool = False
    head: list[str] = field(default_factory=list)
    tail: deque[str] = field(default_factory=deque)
    head_bytes: int = 0
    tail_bytes: int = 0
    dropped: int = 0

    def keep(self, line: str) -> None:
        size = len(line.encode(errors="replace")) + 1
        if not self.tail and self.head_bytes + size <= self.half:
            self.head.append(line)
            self.head_bytes += size
            return
        self.tail.append(line)
        self.tail_bytes += size
        while self.tail_bytes > self.half and len(self.tail) > 1:
            self.tail_bytes -= len(self.tail.popleft().encode(errors="replace")) + 1
            self.dropped += 1

    def all(self) -> list[str]:
        gap = [f'{{"message": "{self.dropped} lines left out"}}'] if self.dropped else []
        return [*self.head, *gap, *self.tail]
