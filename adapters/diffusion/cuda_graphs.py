"""Record passes as CUDA graphs, once per batch shape, and replay them from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Protocol

import torch

from adapters.common.device_memory import is_out_of_memory
from adapters.diffusion.train_step import Batch

log = logging.getLogger(__name__)

WARM_UP = 2
"""Eager passes per shape before recording: they choose algorithms and fill caches."""
MAX_GRAPHS = 32
"""Number of graphs kept. A further one replaces the least recently used."""


class Recorder(Protocol):
    """Turns calls on the device into a function that can be repeated."""

    def warming_up(self) -> AbstractContextManager[None]:
        """Context for the eager passes before a recording."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what ``function`` launches, without running it. The result runs the recording."""

    def synchronize(self) -> None:
        """Wait until the device has finished all launched work."""


class GraphCache:
    """Runs a pass for each batch, from a recording if there is one.

    Args:
        recorder: None to run all passes eagerly.
        what: the passes' name in the log.
    """

    def __init__(self, recorder: Recorder | None, what: str) -> None:
        self._recorder, self._what = recorder, what
        self._warm_ups: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, tuple[Batch, Callable[[], None]]] = {}
        """Most recently used last."""

    @property
    def size(self) -> int | None:
        """Number of graphs kept; None if passes are not recorded."""
        return None if self._recorder is None else len(self._graphs)

    def run(
        self, batch: Batch, function: Callable[[Batch], None], variant: Hashable = None
    ) -> Batch:
        """Run ``function`` for ``batch``, or replay its recording from an earlier batch.

        Args:
            variant: distinguishes calls of ``function`` that differ in more than the batch.

        Returns:
            The batch whose memory holds the losses until the next call.

        Raises:
            torch.OutOfMemoryError: from the pass.
        """
        recorder = self._recorder
        if recorder is None:
            function(batch)
            return batch
        key = batch.key, variant
        warm_ups = self._warm_ups.get(key, 0)
        if warm_ups < WARM_UP:
            with recorder.warming_up():
                function(batch)
            self._warm_ups[key] = warm_ups + 1
            return batch
        if key not in self._graphs:
            if len(self._graphs) >= MAX_GRAPHS:
                recorder.synchronize()  # a replay may still be running
                oldest = next(iter(self._graphs))
                # Its shape warms up again, so that alternating shapes are not recorded each time.
                del self._graphs[oldest], self._warm_ups[oldest]
            memory = batch.clone()
            try:
                replay = recorder.record(partial(function, memory))
            except Exception as error:  # any error of the driver, the allocator or a kernel
                first = _first_of_torch(error)
                what = "out of memory" if is_out_of_memory(first) else str(first).split("\n")[0]
                self.stop(f"{type(first).__name__}: {what}")
                function(batch)
                return batch
            self._graphs[key] = memory, replay
        memory, replay = self._graphs[key] = self._graphs.pop(key)
        memory.copy_(batch)
        replay()
        return memory

    def clear(self) -> bool:
        """Drop all graphs, each of which holds a pass's memory. Returns whether there were any."""
        there_were = bool(self._graphs)
        self._graphs.clear()
        self._warm_ups.clear()
        torch.cuda.empty_cache()
        return there_were

    def stop(self, reason: str) -> bool:
        """Disable recording. Returns whether there were graphs."""
        if self._recorder is not None:
            log.warning("CUDA graphs of %s are disabled: %s", self._what, reason)
        self._recorder = None
        return self.clear()


def _first_of_torch(error: Exception) -> BaseException:
    """The original error: ending a failed capture raises another one, which says less."""
    first: BaseException = error
    context = error.__context__
    while context is not None:
        first = context if isinstance(context, RuntimeError) else first
        context = context.__context__
    return first


class CudaRecorder:
    """CUDA graphs in one shared memory pool, as no two of them run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _recording_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Run on the recording stream: gradients and libraries' workspaces belong to a stream."""
        before = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(before)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            before.wait_stream(self._stream)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture a graph."""
        # torch synchronizes the current device before a capture: it must not be another GPU.
        with torch.cuda.device(self._device):
            graph = torch.cuda.CUDAGraph()
            before = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(before)
            try:
                # Other threads (leases, progress) do not use the device; they must not abort a
                # capture.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    function()
            except BaseException:
                # If a capture fails to begin or end, torch leaves its own stream current.
                torch.cuda.set_stream(before)
                raise
        return graph.replay

    def synchronize(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize(self._device)


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all runs: libraries keep a workspace for every stream they have used, until
    the process ends."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)
    return stream
