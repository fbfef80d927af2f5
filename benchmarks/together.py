"""Train several runs together, each in its own thread as in the worker, and count their steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from adapters.diffusion.trainer import DiffusionTrainer
from application.ports import TrainingSession
from domain.training_plan import TrainingPlan


@dataclass(frozen=True)
class Together:
    """Progress of the runs."""

    steps: list[int]
    """Steps of each run as counted by its thread; the GPU may be behind."""
    epochs: list[list[float]]
    """Performance counter, in seconds, at the end of each epoch of each run; the end of an epoch
    waits for the device."""
    over: threading.Event
    """Set when the first run has ended or failed."""


@contextmanager
def running_together(
    trainer: DiffusionTrainer, plans: Sequence[TrainingPlan]
) -> Iterator[Together]:
    """Train all plans during the with-block.

    Raises:
        Exception: the error of a failed run, at the end of the block.
    """
    runs = Together([0] * len(plans), [[] for _ in plans], threading.Event())

    def train(number: int, session: TrainingSession) -> None:
        try:
            while not runs.over.is_set() and not session.finished:
                report = session.advance()
                runs.steps[number] += 1
                if report.epoch_finished:
                    runs.epochs[number].append(time.perf_counter())
        finally:
            runs.over.set()

    with ExitStack() as stack:
        sessions = [stack.enter_context(trainer.open(plan, None)) for plan in plans]
        pool = stack.enter_context(ThreadPoolExecutor(len(plans)))
        training = [pool.submit(train, *each) for each in enumerate(sessions)]
        try:
            yield runs
        finally:
            runs.over.set()
        for each in training:
            each.result()
