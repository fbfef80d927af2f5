"""Runs that train together, each in a thread of its own as in the worker, to be counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from adapters.diffusion.trainer import DiffusionTrainer
from application.ports import TrainingPlan, TrainingSession


@contextmanager
def running_together(
    trainer: DiffusionTrainer, plans: Sequence[TrainingPlan]
) -> Iterator[Callable[[], int]]:
    """Train all plans while open; what is yielded tells the steps of all of them so far.

    Raises:
        Exception: on leaving, what a run failed with.
    """
    over = threading.Event()
    steps = [0] * len(plans)

    def train(number: int, session: TrainingSession) -> None:
        while not over.is_set() and not session.finished:
            session.advance()
            steps[number] += 1

    with ExitStack() as stack:
        sessions = [stack.enter_context(trainer.open(plan, None)) for plan in plans]
        pool = stack.enter_context(ThreadPoolExecutor(len(plans)))
        runs = [pool.submit(train, *each) for each in enumerate(sessions)]
        try:
            yield lambda: sum(steps)
        finally:
            over.set()
        for run in runs:
            run.result()
