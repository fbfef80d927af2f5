"""Several worker loops in one process, each with one job at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

from application.stop_signal import StopReason, StopSignal
from application.worker_loop import WorkerLoop


@dataclass(frozen=True)
class WorkerPool:
    """Runs the loops, each in a thread; a single loop in the caller's thread."""

    loops: Sequence[WorkerLoop]

    def __call__(self, stop: StopSignal, *, until_empty: bool = False) -> None:
        """Run until ``stop``, or until all loops find the queue empty.

        If a loop raises, the others shut down in an orderly way, and the error is raised.
        """
        if len(self.loops) == 1:
            self.loops[0](stop, until_empty=until_empty)
            return
        stop = StopSignal(stop)
        with ThreadPoolExecutor(len(self.loops), thread_name_prefix="slot") as pool:
            loops = [pool.submit(loop, stop, until_empty=until_empty) for loop in self.loops]
            try:
                wait(loops, return_when=FIRST_EXCEPTION)
            finally:
                # If one loop failed, stop the others.
                stop.request(StopReason.SHUTDOWN)
        for ended in loops:
            ended.result()  # raises the loop's error
