"""One worker a GPU under one command: started together, watched, and stopped together."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from entrypoints.exits import EXIT_FAILED, EXIT_USAGE, UsageError

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
    _again_at: dict[str, float] = field(default_factory=dict)
    _ended: dict[str, int] = field(default_factory=dict)
    _stopping: bool = False

    def run(self) -> int:
        """Until a signal ends them; 0 when every worker ended as it should."""
        before = {
            number: signal.signal(number, self._pass_on)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            for gpu in self.gpus:
                self._start(gpu)
            while len(self._ended) < len(self.gpus):
                time.sleep(LOOK_SECONDS)
                self._look()
        finally:
            for worker in self._workers.values():
                worker.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        codes = set(self._ended.values())
        if EXIT_USAGE in codes:
            return EXIT_USAGE
        return EXIT_FAILED if codes - {0} else 0

    def _start(self, gpu: str) -> None:
        # In a session of its own: a terminal's Ctrl-C comes from us alone, and so comes once.
        self._workers[gpu] = subprocess.Popen(
            list(self.command), env=dict(self.environment_of(gpu)), start_new_session=True
        )
        log.info("the worker on GPU %s is process %d", gpu, self._workers[gpu].pid)

    def _look(self) -> None:
        for gpu, worker in list(self._workers.items()):
            code = worker.poll()
            if code is None:
                continue
            del self._workers[gpu]
            if code == EXIT_USAGE:
                self._stop(signal.SIGTERM)
            if self._stopping or (self.once and code == 0) or code == EXIT_USAGE:
                self._ended[gpu] = code
            else:
                log.warning(
                    "the worker on GPU %s ended with %d; another starts in %.0f s",
                    *(gpu, code, RESTART_SECONDS),
                )
                self._again_at[gpu] = time.monotonic() + RESTART_SECONDS
        for gpu, moment in list(self._again_at.items()):
            if self._stopping:
                del self._again_at[gpu]
                self._ended[gpu] = 0
            elif time.monotonic() >= moment:
                del self._again_at[gpu]
                self._start(gpu)

    def _pass_on(self, number: int, _frame: object) -> None:
        self._stop(signal.Signals(number))

    def _stop(self, number: signal.Signals) -> None:
        self._stopping = True
        for worker in self._workers.values():
            worker.send_signal(number)


def worker_command(arguments: Sequence[str]) -> list[str]:
    """What starts one worker of a fleet."""
    return [sys.executable, "-m", "entrypoints.worker", *arguments]
