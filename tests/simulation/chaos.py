"""Disturbances of a run, at random times or at the most harmful events."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from domain.events import (
    ArtifactStored,
    CheckpointSaved,
    Event,
    FailureRecorded,
    JobStarted,
    NotificationBegan,
    ProgressMade,
    TrainingFinished,
)
from tests.simulation.machine import Machine
from tests.simulation.network import FAILURES, Disruption, Server
from tests.simulation.timeline import Process
from tests.simulation.world import STEPS, World, garbage

HORIZON = 900.0
"""Seconds within which most disturbances happen."""
TURNS: tuple[type[Event], ...] = (
    JobStarted,
    CheckpointSaved,
    TrainingFinished,
    ArtifactStored,
    FailureRecorded,
    NotificationBegan,
)
"""Events after which a disturbance does most harm."""
UNENDING = float("inf")


@dataclass(frozen=True)
class Disturbance:
    """A disturbance: its kind, its target, and its time."""

    kind: str
    detail: str
    begins: float
    ends: float
    """Virtual time in seconds."""
    who: Process | None = None

    def hit(self, process: Process, begins: float, ends: float) -> bool:
        """Whether it affected that process between two moments."""
        return self.who in (None, process) and self.begins <= ends and begins <= self.ends


@dataclass
class Chaos:
    """Plans disturbances and carries them out."""

    world: World
    machines: list[Machine]
    chance: random.Random
    done: list[Disturbance] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    """Task ids."""
    garbage: list[bytes] = field(default_factory=list)
    """Messages that are not tasks."""
    _handlers: list[Callable[[Machine, Event], bool]] = field(default_factory=list)

    def plan(self) -> None:
        """Plan one more disturbance."""
        kind = self.chance.choice([*self._kinds()])
        if self.chance.random() < 0.4:
            moment = self.chance.uniform(0, HORIZON)
            self.world.timeline.at(moment, lambda: self._inject(kind, None))
            return
        is_time = self._a_turn()
        shortly = self.chance.uniform(0, self.chance.choice([1.0, 10.0, 60.0]))

        def on_event(machine: Machine, event: Event) -> bool:
            if not is_time(event):
                return False
            moment = self.world.timeline.now + shortly
            self.world.timeline.at(moment, lambda: self._inject(kind, machine))
            return True

        self._handlers.append(on_event)

    def happened(self, machine: Machine, event: Event) -> None:
        """Trigger the disturbances planned for this event."""
        for on_event in self._handlers:
            if on_event(machine, event):
                self._handlers.remove(on_event)
                return

    def _a_turn(self) -> Callable[[Event], bool]:
        turn = self.chance.choice([*TURNS, ProgressMade])
        step = self.chance.choice([self.chance.randint(1, STEPS), STEPS - 1])

        def is_time(event: Event) -> bool:
            early = isinstance(event, ProgressMade) and event.progress.current_step < step
            return isinstance(event, turn) and not early

        return is_time

    def _inject(self, kind: Callable[[Machine], None], who: Machine | None) -> None:
        living = [machine for machine in self.machines if not machine.process.dead]
        if living:
            kind(who if who in living else self.chance.choice(living))

    def _kinds(self) -> Iterator[Callable[[Machine], None]]:
        yield self._kill
        yield self._terminate
        yield self._freeze
        yield self._set_clock
        yield self._break_device
        yield self._meet_defect
        yield self._lose_connection
        yield lambda _: self._disrupt("store", self.world.store)
        yield self._cut_off
        yield lambda _: self._disrupt("backend", self.world.backend)
        yield lambda _: self._disrupt("broker", self.world.broker)
        yield self._publish_again
        yield self._publish_garbage
        yield self._cancel

    def _note(
        self, kind: str, detail: str = "", seconds: float = 0.0, who: Machine | None = None
    ) -> None:
        now, process = self.world.timeline.now, None if who is None else who.process
        self.done.append(Disturbance(kind, detail, now, now + seconds, process))

    def _a_while(self) -> float:
        return self.chance.expovariate(1 / self.chance.choice([10.0, 60.0, 180.0, 900.0]))

    def _kill(self, machine: Machine) -> None:
        machine.kill()
        self._note("killed", seconds=UNENDING, who=machine)

    def _terminate(self, machine: Machine) -> None:
        timeout = self.chance.choice([3.0, 25.0, 60.0])
        machine.terminate(timeout)
        self._note("terminated", f"in {timeout:g} s", UNENDING, machine)

    def _freeze(self, machine: Machine) -> None:
        seconds = self._a_while()
        machine.process.frozen_until = self.world.timeline.now + seconds
        if self.chance.random() < 0.7:
            moment = self.world.timeline.now + self.chance.uniform(0, min(seconds, 120.0))
            self.world.timeline.at(moment, machine.connection.lose)
        self._note("frozen", f"for {seconds:.0f} s", seconds, machine)

    def _set_clock(self, machine: Machine) -> None:
        seconds = self.chance.choice([-7200.0, -70.0, 70.0, 7200.0])
        machine.clock.wrong += seconds
        self._note("clock", f"set by {seconds:g} s", who=machine)

    def _break_device(self, machine: Machine) -> None:
        machine.trainer.broken = True
        self._note("device", "broken", UNENDING, machine)

    def _meet_defect(self, machine: Machine) -> None:
        machine.trainer.defects += 1
        self._note("defect", who=machine)

    def _lose_connection(self, machine: Machine) -> None:
        machine.connection.lose()
        self._note("connection", "lost", who=machine)

    def _cut_off(self, machine: Machine) -> None:
        """Cut one machine off from the store; the others get its messages."""
        self._disrupt("store", self.world.store, machine)
        machine.connection.lose()

    def _disrupt(self, name: str, server: Server, who: Machine | None = None) -> None:
        now, seconds = self.world.timeline.now, self._a_while()
        outcomes = FAILURES if self.chance.random() < 0.5 else (self.chance.choice(FAILURES),)
        disruption = Disruption(
            begins=now,
            ends=now + seconds,
            chance=self.chance.choice([0.2, 0.5, 1.0]),
            outcomes=outcomes,
            who=None if who is None else who.process,
        )
        server.disruptions.append(disruption)
        names = ", ".join(outcome.name.lower() for outcome in outcomes)
        # Calls shortly before its end may be completed, or fail, a while later.
        self._note(name, f"{names} ({disruption.chance:g})", seconds + 2 * server.timeout, who)

    def _publish_again(self, _machine: Machine) -> None:
        self.world.queue.publish(self.chance.choice([*self.world.tasks, *self.garbage]))
        self._note("repeated")

    def _publish_garbage(self, _machine: Machine) -> None:
        self.garbage.append(garbage(len(self.garbage)))
        self.world.queue.publish(self.garbage[-1])
        self._note("garbage")

    def _cancel(self, _machine: Machine) -> None:
        task = self.chance.choice([*self.world.tasks.values()])
        self.world.cancel(task.task_id)
        self.cancelled.add(task.task_id)
        self._note("cancelled", f"style {task.style_id}")
