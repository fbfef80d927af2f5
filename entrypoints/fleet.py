"""One worker a GPU under one command: started together, watched, and stopped together."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from entrypoints.exit_codes import EXIT_FAILED, EXIT_USAGE, UsageError

log = logging.getLogger(__name__)

RESTART_SECONDS = 10.0
"""Between a worker's unwanted end and the next one on its GPU."""
LOOK_SECONDS = 0.2


def gpus_named(text: str, present: Callable[[], int]) -> tuple[str, ...]:
    """The GPUs of ``all``, or of numbers with commas.

    Raises:
        UsageError: there is none, or it is no list of numbers.
    """
    if text == "all":
        count = present()
        if not count:
            raise UsageError("--gpus all: the driver shows no GPU; give the container its GPUs")
        return tuple(str(index) for index in range(count))
    names = tuple(part.strip() for part in text.split(","))
    if not all(name.isdecimal() for name in names) or len(set(names)) < len(names):
        raise UsageError(f"--gpus {text}: give `all`, or different numbers such as 0,1")
    return names


@dataclass
class Fleet:
    """Workers, one on each GPU. Each has its own lease, metrics and log lines.

    A worker that ends by itself is started again after a pause; one that finds its settings
    wrong ends them all, for the others have the same.
    """

    gpus: Sequence[str]
    command: Sequence[str]
    environment_of: Callable[[str], Mapping[str, str]]
    """The whole environment of the worker on a GPU."""
    once: bool = False
    """Workers end when the queue is empty, and that is no reason to start another."""
    _workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _start_at: dict[str, float] = field(default_factory=dict)
    """Monotonic seconds at which the GPU gets its worker."""
    _ended: dict[str, int] = field(default_factory=dict)
    _asked: deque[int] = field(default_factory=deque)
    """Signals that were not yet passed on to the workers."""
    _stopping: bool = False

    def run(self) -> int:
        """Until a signal ends them; 0 when every worker ended as it should."""
        self._start_at = dict.fromkeys(self.gpus, time.monotonic())
        # Only noted by the handler: it may come between a worker's start and our knowing of it.
        before = {
            number: signal.signal(number, lambda number, _frame: self._asked.append(number))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            while len(self._ended) < len(self.gpus):
                self._look()
                time.sleep(LOOK_SECONDS)
        finally:
            for worker in self._workers.values():
                worker.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        codes = set(self._ended.values())
        if EXIT_USAGE in codes:
            return EXIT_USAGE
        return EXIT_FAILED if codes - {0} else 0

    def _look(self) -> None:
        for gpu, worker in list(self._workers.items()):
            if (code := worker.poll()) is not None:
                del self._workers[gpu]
                self._gone(gpu, code)
        for gpu, moment in list(self._start_at.items()):
            if not self._asked and time.monotonic() >= moment:
                self._start(gpu)
        while self._asked:
            self._asked.popleft()
            self._stop()

    def _start(self, gpu: str) -> None:
        del self._start_at[gpu]
        # In a session of its own: a terminal's Ctrl-C comes from us alone, and so comes once.
        self._workers[gpu] = subprocess.Popen(
            list(self.command), env=dict(self.environment_of(gpu)), start_new_session=True
        )
        log.info("the worker on GPU %s is process %d", gpu, self._workers[gpu].pid)

    def _gone(self, gpu: str, code: int) -> None:
        if self._stopping and code == -signal.SIGTERM:
            code = 0  # it had no job yet: it was still starting
        if code == EXIT_USAGE:
            self._stop()
        if self._stopping or (self.once and code == 0):
            self._ended[gpu] = code
            return
        log.warning(
            "the worker on GPU %s ended with %d; another starts in %.0f s",
            *(gpu, code, RESTART_SECONDS),
        )
        self._start_at[gpu] = time.monotonic() + RESTART_SECONDS

    def _stop(self) -> None:
        self._stopping = True
        self._ended.update(dict.fromkeys(self._start_at, 0))
        self._start_at.clear()
        for worker in self._workers.values():
            # Not SIGINT, whichever it was: Python takes that for an error while it starts, or
            # forgets it.
            worker.terminate()


def worker_command(arguments: Sequence[str]) -> list[str]:
    """The command that starts one worker of a fleet."""
    return [sys.executable, "-m", "entrypoints.worker", *arguments]
