"""One run: some tasks, some machines, some chaos, and the result."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import application.checkpoint_storage
import application.lease
import application.slots
from tests.simulation.chaos import HORIZON, Chaos
from tests.simulation.machine import Machine
from tests.simulation.timeline import Condition, Lock
from tests.simulation.world import DIVERGING_STYLE, a_world

LONGEST = 24 * 3600.0
"""Seconds after which everything must have finished."""
AFTERWARDS = 900.0
"""Seconds for which work still in progress is observed afterwards."""


class Run:
    """A world from start to end, fully determined by ``seed``.

    Args:
        styles: number of tasks; None for a random number.
        disturbed: whether to inject faults.
    """

    def __init__(self, seed: int, *, styles: int | None = None, disturbed: bool = True) -> None:
        self._chance = random.Random(seed)
        self.world = a_world(self._chance, styles or self._chance.randint(1, DIVERGING_STYLE))
        self.machines: list[Machine] = []
        self.chaos = Chaos(self.world, self.machines, self._chance)
        self.errors: list[str] = []
        """Errors from the log."""
        self.quiet = False
        """Whether every task ended, and the queue is empty."""
        self._over = False
        self._step_seconds = self._chance.choice([0.2, 1.0, 4.0, 25.0])
        self._together = self._chance.choice([1, 1, 1, 3])
        self._disturbed = disturbed

    def __call__(self) -> Run:
        """Run the simulation."""
        timeline = self.world.timeline
        with self._own_threads(), self._errors_noted():
            for body in self.world.tasks:
                for _ in range(self._chance.choice([1, 1, 2])):
                    self._publish(body, self._chance.uniform(0, 120))
            for slot in range(self._chance.choice([1, 2, 2, 3])):
                self._start(slot, 1)
            if self._disturbed:
                for _ in range(self._chance.choice([0, 1, 2, 3, 5, 8, 13])):
                    self.chaos.plan()
            timeline.run(LONGEST, over=self._is_quiet)
            self.quiet = self._is_quiet()
            timeline.run(timeline.now + AFTERWARDS)
            self._over = True
            for machine in self.machines:
                machine.process.dead = True
            timeline.run(float("inf"))
        return self

    def _publish(self, body: bytes, moment: float) -> None:
        self.world.timeline.at(moment, lambda: self.world.queue.publish(body))

    def _start(self, slot: int, life: int) -> None:
        """Start a machine, and replace it whenever it ends."""
        machine = Machine(
            self.world,
            f"worker-{slot}.{life}",
            self._chance,
            step_seconds=self._step_seconds * self._chance.choice([0.5, 1.0, 1.0, 5.0]),
            together=self._together,
            happened=self.chaos.happened,
        )
        machine.clock.wrong = self._chance.choice([0.0, 0.0, 0.0, 70.0, -70.0, 7200.0, -7200.0])
        self.machines.append(machine)

        def look() -> None:
            if self._over:
                return
            if machine.process.dead:
                self._start(slot, life + 1)
            else:
                timeline.at(timeline.now + self._chance.uniform(5, 60), look)

        timeline = self.world.timeline
        timeline.at(timeline.now + 5, look)

    def _is_quiet(self) -> bool:
        queue = self.world.queue
        if queue.waiting or queue.unsettled or self.world.timeline.now < HORIZON + 120:
            return False
        jobs = [self.world.job(task.task_id) for task in self.world.tasks.values()]
        return all(job is not None and job.is_terminal for job in jobs)

    @contextmanager
    def _own_threads(self) -> Iterator[None]:
        """Replace the application's locks and waits by those of the timeline."""
        timeline = self.world.timeline

        def wait(futures: list[Any], timeout: float | None = None) -> SimpleNamespace:
            end = float("inf") if timeout is None else timeline.now + timeout
            while not all(future.done() for future in futures) and timeline.now < end:
                timeline.sleep(min(0.05, end - timeline.now))
            return SimpleNamespace(done=[future for future in futures if future.done()])

        locks = SimpleNamespace(Lock=lambda: Lock(timeline), Condition=lambda: Condition(timeline))
        with (
            mock.patch.object(application.lease, "threading", locks),
            mock.patch.object(application.slots, "threading", locks),
            mock.patch.object(application.checkpoint_storage, "wait", wait),
        ):
            yield

    @contextmanager
    def _errors_noted(self) -> Iterator[None]:
        errors, timeline = self.errors, self.world.timeline

        class Ear(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                error = record.exc_info[1] if record.exc_info else None
                errors.append(f"{timeline.now:.1f} s: {record.getMessage()} {error or ''}")

        ear = Ear(logging.ERROR)
        logging.getLogger().addHandler(ear)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(ear)
