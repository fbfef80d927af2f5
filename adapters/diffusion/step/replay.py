"""A step recorded once per shape of its batch, and replayed over the same memory ever after."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Generic, Protocol, Self, TypeVar

import torch

from adapters.diffusion.failures import is_out_of_memory

log = logging.getLogger(__name__)

WARM_UP = 2
"""Steps of each shape that are run before one is recorded: they choose algorithms, fill caches."""
MOST_RECORDINGS = 32
"""Shapes whose recordings are kept; the one that was used longest ago makes room."""


class Recorder(Protocol):
    """Turns calls on the device into something that can be repeated."""

    def warming_up(self) -> AbstractContextManager[None]:
        """Where the calls that come before a recording are made."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what ``function`` asks of the device, without doing it; the result does it."""

    def wait(self) -> None:
        """Return once the device has done all that it was asked for."""


class Replayable(Protocol):
    """A batch that can be copied into memory of its own."""

    @property
    def key(self) -> Hashable:
        """Equal for batches that a recording of one serves."""

    def own(self) -> Self:
        """A copy in memory of its own."""

    def take(self, other: Self) -> None:
        """Copy another batch's content into this memory."""


Batch = TypeVar("Batch", bound=Replayable)


class Replay(Generic[Batch]):
    """Runs a step for one batch after another, by replay where that can be had.

    Without a recorder, or once recording has failed, every step is run as it is.

    Args:
        what: the steps' name in the log.
    """

    def __init__(self, recorder: Recorder | None, what: str = "steps") -> None:
        self._recorder = recorder
        self._what = what
        self._runs: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, tuple[Batch, Callable[[], None]]] = {}
        """The one that was used last comes last."""

    @property
    def recordings(self) -> int | None:
        """Shapes whose recordings are kept; None where every step is run as it is."""
        return None if self._recorder is None else len(self._recorded)

    def run(self, batch: Batch, step: Callable[[Batch], None]) -> None:
        """Run ``step`` for ``batch``: as it is, or as recorded for an earlier batch alike.

        Raises:
            torch.OutOfMemoryError: from the step.
        """
        recorder, key = self._recorder, batch.key
        if recorder is None:
            step(batch)
            return
        runs = self._runs.get(key, 0)
        if runs < WARM_UP:
            with recorder.warming_up():
                step(batch)
            self._runs[key] = runs + 1
            return
        if key not in self._recorded and not self._record(recorder, batch, step):
            step(batch)
            return
        memory, replay = self._recorded[key] = self._recorded.pop(key)
        memory.take(batch)
        replay()

    def forget(self) -> None:
        """Let go of every recording and the memory it holds."""
        self._recorded.clear()
        self._runs.clear()

    def make_room(self) -> bool:
        """Give back all memory that can be had anew: recordings hold that of whole steps.

        Returns:
            Whether there were any.
        """
        there_were = bool(self._recorded)
        self.forget()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return there_were

    def stop(self, reason: str) -> None:
        """Run every step as it is from here on."""
        if self._recorder is not None:
            log.warning("%s are no longer recorded: %s", self._what, reason)
        self._recorder = None
        self.forget()

    def _record(self, recorder: Recorder, batch: Batch, step: Callable[[Batch], None]) -> bool:
        if len(self._recorded) >= MOST_RECORDINGS:
            self._drop_oldest(recorder)
        memory = batch.own()
        try:
            replay = recorder.record(lambda: step(memory))
        except Exception as error:  # whatever the driver, the allocator or a kernel objects to
            first = _first_of_torch(error)
            what = "out of memory" if is_out_of_memory(error) else str(first).split("\n")[0]
            self.stop(f"{type(first).__name__}: {what}")
            return False
        self._recorded[batch.key] = memory, replay
        return True

    def _drop_oldest(self, recorder: Recorder) -> None:
        """It warms up again if it returns: shapes that take turns are not recorded each time."""
        recorder.wait()  # it may be under way
        oldest = next(iter(self._recorded))
        del self._recorded[oldest], self._runs[oldest]


def _first_of_torch(error: Exception) -> BaseException:
    """Where an error began: ending a capture that has failed fails once more, and says less."""
    first: BaseException = error
    context = error.__context__
    while context is not None:
        first = context if isinstance(context, RuntimeError) else first
        context = context.__context__
    return first


class CudaRecorder:
    """CUDA graphs, all of one run in one pool of memory, as no two run at the same time."""

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

    def wait(self) -> None:
        """Wait for the card."""
        torch.cuda.synchronize(self._device)


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all runs: the libraries keep workspaces for every stream that they have met, for
    as long as the process lives."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)
    return stream
