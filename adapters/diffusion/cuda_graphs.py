"""Passes recorded as CUDA graphs, once per shape of their batch, and replayed ever after."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Protocol

import torch

from adapters.diffusion.oom import is_out_of_memory
from adapters.diffusion.train_step import Batch

log = logging.getLogger(__name__)

WARM_UP = 2
"""Eager passes of each shape before one is recorded: they choose algorithms and fill caches."""
MAX_GRAPHS = 32
"""Graphs that are kept. For a further one, the one that was used longest ago is dropped."""


class Recorder(Protocol):
    """Turns calls on the device into something that can be repeated."""

    def warming_up(self) -> AbstractContextManager[None]:
        """The context for eager passes before a recording."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what ``function`` launches on the device without running it; the result does."""

    def synchronize(self) -> None:
        """Return once the device has done everything that was launched."""


class GraphCache:
    """Runs a pass for one batch after another, from a recording where there is one.

    Args:
        what: the passes' name in the log.
    """

    def __init__(self, recorder: Recorder, what: str) -> None:
        self._recorder: Recorder | None = recorder
        self._what = what
        self._warm_ups: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, tuple[Batch, Callable[[], None]]] = {}
        """The one that was used last comes last."""

    @property
    def size(self) -> int | None:
        """Graphs that are kept; None where passes are no longer recorded."""
        return None if self._recorder is None else len(self._graphs)

    def run(
        self, batch: Batch, function: Callable[[Batch], None], variant: Hashable = None
    ) -> Batch:
        """Run ``function`` for ``batch``, or replay it as recorded for an earlier batch.

        Args:
            variant: what else of ``function`` differs from call to call.

        Returns:
            The batch in whose memory the pass has left its losses, until the next call.

        Raises:
            torch.OutOfMemoryError: from the pass.
        """
        recorder, key = self._recorder, (batch.key, variant)
        if recorder is None:
            function(batch)
            return batch
        warm_ups = self._warm_ups.get(key, 0)
        if warm_ups < WARM_UP:
            with recorder.warming_up():
                function(batch)
            self._warm_ups[key] = warm_ups + 1
            return batch
        if key not in self._graphs:
            if len(self._graphs) >= MAX_GRAPHS:
                self._drop_oldest(recorder)
            memory = batch.clone()
            try:
                replay = recorder.record(partial(function, memory))
            except Exception as error:  # whatever the driver, the allocator or a kernel objects to
                first = _first_of_torch(error)
                what = "out of memory" if is_out_of_memory(error) else str(first).split("\n")[0]
                self.stop(f"{type(first).__name__}: {what}")
                function(batch)
                return batch
            self._graphs[key] = memory, replay
        memory, replay = self._graphs[key] = self._graphs.pop(key)
        memory.copy_(batch)
        replay()
        return memory

    def clear(self) -> bool:
        """Drop all graphs: they hold the memory of whole passes.

        Returns:
            Whether there were any.
        """
        there_were = bool(self._graphs)
        self._graphs.clear()
        self._warm_ups.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return there_were

    def stop(self, reason: str) -> bool:
        """Record nothing from here on. Returns whether there were graphs."""
        if self._recorder is not None:
            log.warning("%s are no longer recorded: %s", self._what, reason)
        self._recorder = None
        return self.clear()

    def _drop_oldest(self, recorder: Recorder) -> None:
        """Its shape warms up again when it returns: shapes that take turns are not recorded each
        time."""
        recorder.synchronize()  # a replay may be under way
        oldest = next(iter(self._graphs))
        del self._graphs[oldest], self._warm_ups[oldest]


def _first_of_torch(error: Exception) -> BaseException:
    """Where an error began: ending a failed capture fails once more, and says less."""
    first: BaseException = error
    context = error.__context__
    while context is not None:
        first = context if isinstance(context, RuntimeError) else first
        context = context.__context__
    return first


class CudaRecorder:
    """CUDA graphs in one pool of memory, as no two of them run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _recording_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """On the stream that records: gradients and libraries' workspaces belong to a stream."""
        before = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(before)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            before.wait_stream(self._stream)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture a graph."""
        # torch waits for the current device before a capture: it must not be another card.
        with torch.cuda.device(self._device):
            graph = torch.cuda.CUDAGraph()
            before = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(before)
            try:
                # Other threads (leases, progress) do not touch the device; they must not end a
                # capture.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    function()
            except BaseException:
                # torch leaves its own stream the current one where a capture cannot begin or end.
                torch.cuda.set_stream(before)
                raise
        return graph.replay

    def synchronize(self) -> None:
        """Wait for the card."""
        torch.cuda.synchronize(self._device)


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all runs: the libraries keep workspaces for every stream that they have met, for
    as long as the process lives."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)
    return stream
