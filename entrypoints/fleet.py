"""Run one worker per GPU under one command: start, restart and stop them."""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from entrypoints.exit_codes import EXIT_FAILED, EXIT_USAGE
from entrypoints.shutdown import signals_handled

log = logging.getLogger(__name__)

RESTART_SECONDS = 10.0
"""Seconds between a worker's unexpected exit and its restart."""
POLL_SECONDS = 0.2
"""Seconds between two checks of workers and signals."""


@dataclass
class Fleet:
    """One worker process per GPU, each with its own leases, metrics and log lines.

    A worker that exits unexpectedly is restarted after a pause. A wrong setting at a first start
    stops all workers, because they share the settings; at a restart, the GPU may be lost.
    """

    gpus: Sequence[str]
    command: Sequence[str]
    environment_of: Callable[[str], Mapping[str, str]]
    """Returns the complete environment of a GPU's worker."""
    once: bool = False
    """Workers exit by themselves, and are then not restarted unless they were killed."""
    _workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _restarted: set[str] = field(default_factory=set)
    _start_at: dict[str, float] = field(default_factory=dict)
    """Monotonic time in seconds of the next start, by GPU."""
    _exit_codes: dict[str, int] = field(default_factory=dict)
    _signals: deque[int] = field(default_factory=deque)
    """Signals received but not yet passed on to the workers."""
    _stopping: bool = False

    def run(self) -> int:
        """Run the workers until a signal; return the exit code of those that failed, or 0."""
        self._start_at = dict.fromkeys(self.gpus, time.monotonic())
        # The handler only queues the signal: it may run before a new worker is registered.
        with signals_handled(lambda number, _frame: self._signals.append(number)):
            try:
                while len(self._exit_codes) < len(self.gpus):
                    self._poll()
                    time.sleep(POLL_SECONDS)
            finally:
                for worker in self._workers.values():
                    worker.kill()
        codes = set(self._exit_codes.values()) - {0}
        if EXIT_USAGE in codes:
            return EXIT_USAGE
        return EXIT_FAILED if len(codes) > 1 else max(codes, default=0)

    def _poll(self) -> None:
        for gpu, worker in list(self._workers.items()):
            if (code := worker.poll()) is not None:
                del self._workers[gpu]
                self._handle_exit(gpu, code)
        for gpu, moment in list(self._start_at.items()):
            if not self._signals and time.monotonic() >= moment:
                self._start(gpu)
        while self._signals:
            self._signals.popleft()
            self._stop()

    def _start(self, gpu: str) -> None:
        del self._start_at[gpu]
        # In a new session, so that a terminal's Ctrl-C reaches the workers only once, from here.
        self._workers[gpu] = subprocess.Popen(
            list(self.command), env=dict(self.environment_of(gpu)), start_new_session=True
        )
        log.info("the worker on GPU %s is process %d", gpu, self._workers[gpu].pid)

    def _handle_exit(self, gpu: str, code: int) -> None:
        if self._stopping and code == -signal.SIGTERM:
            code = 0  # it was still starting and had no job
        code = 128 - code if code < 0 else code  # killed by a signal: the number that shells give
        if code == EXIT_USAGE and gpu not in self._restarted:
            self._stop()
        if self._stopping or (self.once and code < 128):
            self._exit_codes[gpu] = code
            if code:
                log.warning("the worker on GPU %s exited with %d", gpu, code)
            return
        log.warning(
            "the worker on GPU %s exited with %d; it restarts in %.0f s",
            *(gpu, code, RESTART_SECONDS),
        )
        self._restarted.add(gpu)
        self._start_at[gpu] = time.monotonic() + RESTART_SECONDS

    def _stop(self) -> None:
        self._stopping = True
        self._exit_codes.update(dict.fromkeys(self._start_at, 0))
        self._start_at.clear()
        for worker in self._workers.values():
            # Never SIGINT: Python treats it as an error during startup, or ignores it.
            worker.terminate()
