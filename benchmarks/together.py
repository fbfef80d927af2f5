"""Runs that train together, each in a thread of its own as in the worker, to be counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from adapters.diffusion.trainer import DiffusionTrainer
from application.ports import TrainingPlan, TrainingSession


@dataclass(frozen=True)
class Together:
    """Runs under way."""

    steps: list[int]
    """Of each run, as its thread counts them; a GPU lags behind."""
    epochs: list[list[float]]
    """Of each run: seconds on the performance counter at the end of each epoch, which waits for
    the device."""
    over: threading.Event
    """Set when the first of them has ended, by itself or by an error."""


@contextmanager
def running_together(
    trainer: DiffusionTrainer, plans: Sequence[TrainingPlan]
) -> Iterator[Together]:
    """Train all plans while open.

    Raises:
        Exception: on leaving, what a run failed with.
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
