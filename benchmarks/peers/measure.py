"""Run a training command, and measure its speed, total time and peak memory from outside."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from benchmarks.peers.programs import Program

POLL_SECONDS = 0.2
KEPT_LINES = 30


@dataclass(frozen=True, kw_only=True)
class Run:
    """Measurements of one run of one program."""

    program: str
    steps_per_s: float
    """Speed between the first progress line after ``warm_up`` steps and the last one."""
    total_s: float
    """Time from start to end of the command; its file is written by then."""
    peak_mb: int
    """Peak resident memory of the process with its children."""
    gpu_peak_mb: int | None
    """Peak GPU memory minus that in use before the run; None without a GPU."""


def run(program: Program, warm_up: int) -> Run:
    """Run a program to its end.

    Args:
        warm_up: number of first steps that are excluded from the speed.

    Raises:
        RuntimeError: the program failed, or wrote no weights; with the end of its output.
    """
    environment = {**os.environ, **program.environment}
    memory = _MemoryWatch()
    started = time.perf_counter()
    process = subprocess.Popen(
        program.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        bufsize=0,
    )
    memory.start(process.pid)
    counts: list[tuple[int, float]] = []
    tail: deque[str] = deque(maxlen=KEPT_LINES)
    for line in _lines(process):
        tail.append(line)
        steps = program.steps_done(line)
        if steps is not None and (not counts or steps > counts[-1][0]):
            counts.append((steps, time.perf_counter()))
    code = process.wait()
    total = time.perf_counter() - started
    memory.stop()
    if code or not program.weights.exists():
        raise RuntimeError(f"{program.name} ended with {code}:\n" + "\n".join(tail))
    return Run(
        program=program.name,
        steps_per_s=speed(counts, warm_up),
        total_s=total,
        peak_mb=memory.peak // 2**20,
        gpu_peak_mb=memory.gpu_peak,
    )


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yield lines of output as they arrive; progress bars end theirs with a carriage return."""
    assert process.stdout is not None
    rest = b""
    while chunk := process.stdout.read(4096):
        *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
        yield from (line.decode("utf-8", "replace") for line in lines)
    yield rest.decode("utf-8", "replace")


def speed(counts: list[tuple[int, float]], warm_up: int) -> float:
    """Steps per second from finished steps and the seconds at which they were seen.

    Raises:
        RuntimeError: fewer than two counts follow the warm-up.
    """
    warm = [(steps, at) for steps, at in counts if steps >= warm_up]
    if len(warm) < 2:
        raise RuntimeError("too few progress lines after the warm-up; raise --steps")
    (first, began), (last, ended) = warm[0], warm[-1]
    return (last - first) / (ended - began)


class _MemoryWatch:
    """Polls the memory of a process with its children, and that of the GPU."""

    def __init__(self) -> None:
        self._gpu_before = _gpu_mb()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.peak = 0
        self.gpu_peak: int | None = None if self._gpu_before is None else 0

    def start(self, pid: int) -> None:
        self._thread = threading.Thread(target=self._poll, args=(pid,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _poll(self, pid: int) -> None:
        while not self._ended.wait(POLL_SECONDS):
            try:
                parent = psutil.Process(pid)
                tree = [parent, *parent.children(recursive=True)]
                self.peak = max(self.peak, sum(each.memory_info().rss for each in tree))
            except psutil.Error:
                continue
            if self._gpu_before is not None and self.gpu_peak is not None:
                self.gpu_peak = max(self.gpu_peak, (_gpu_mb() or 0) - self._gpu_before)


def _gpu_mb() -> int | None:
    """Memory in use on the first GPU, or None without a GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) // 2**20
    except pynvml.NVMLError:
        return None
