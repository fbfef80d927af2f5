"""Check a run's record against the guarantees."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

from domain.events import FailureRecorded, JobInterrupted, JobStarted, TrainingFinished
from domain.job import UNDECIDED, JobState
from domain.task import TrainingTask
from tests.simulation.machine import PLANNED
from tests.simulation.run import Run
from tests.simulation.timeline import Process
from tests.simulation.world import DIVERGING_STYLE, Call, style_of

EXPECTED_ERRORS = (PLANNED, "its device has failed", "moved to the dead letters")
STOPPING = ("killed", "terminated", "frozen", "device", "store")
"""Disturbances after which a machine may lose its work, or fail to record it."""


def violations(run: Run) -> list[str]:
    """All violations, one line each."""
    lines = [line for task in run.world.tasks.values() for line in _of_task(run, task)]
    for body in set(run.chaos.garbage):
        lines += _calls(run, style_of(body), {"failed"})
    return [*lines, *_of_all(run)]


def repeats(run: Run) -> int:
    """Number of `complete` and `failed` calls accepted again, all with the key of the first."""
    final = [call for call in run.world.calls if call.kind != "progress" and call.accepted_at]
    return len(final) - len({call.style_id for call in final})


def _of_all(run: Run) -> Iterator[str]:
    if not run.quiet:
        yield f"not quiet after {run.world.timeline.now:.0f} s"
    dead = {letter.body for letter in run.world.queue.dead}
    for body in dead.symmetric_difference(run.chaos.garbage):
        yield f"among the dead letters, or not, by mistake: {body!r}"
    for error in run.errors:
        if not any(expected in error for expected in EXPECTED_ERRORS):
            yield f"an error in the log: {error}"
    for at in run.world.blobs.blobs:
        # A write of a lease that arrives late may come after the deletion of the lease.
        if at.name == "lease.json" and not run.world.network.late_calls:
            yield f"{at} is left"


def _of_task(run: Run, task: TrainingTask) -> Iterator[str]:
    job, name = run.world.job(task.task_id), f"style {task.style_id}"
    if job is None or not job.is_terminal:
        yield f"{name}: not at its end: {job and job.state}"
        return
    usual = JobState.FAILED if task.style_id == DIVERGING_STYLE else JobState.COMPLETED
    cancelled = task.task_id in run.chaos.cancelled and job.state is JobState.CANCELLED
    if job.state is not usual and not cancelled:
        yield f"{name}: {job.state}, {job.failure}"
    wanted = "completed" if job.state is JobState.COMPLETED else "failed"
    yield from _calls(run, task.style_id, {wanted})
    yield from _records(run, name, task)
    yield from _takeovers(run, name, task)
    style = run.world.weights(task.style_id)
    if job.state is JobState.COMPLETED and style != _reference(task.style_id):
        yield f"{name}: not the weights of an undisturbed run"


def _calls(run: Run, style_id: int, wanted: set[str]) -> Iterator[str]:
    """Violations of: the backend gets each outcome once, and no call after it."""
    name = f"style {style_id}"
    accepted = [c for c in run.world.calls if c.style_id == style_id and c.accepted_at is not None]
    final = sorted(
        (c for c in accepted if c.kind != "progress"), key=lambda c: c.accepted_at or 0.0
    )
    if {call.kind for call in final} != wanted:
        yield f"{name}: the backend got {[call.kind for call in final]}, not {wanted}"
        return
    if len({(call.kind, call.task_id) for call in final}) > 1:
        yield f"{name}: announced under several keys"
    for before, after in pairwise(final):
        if not _repeat_is_excused(run, before, after):
            yield f"{name}: announced again without need, at {after.made_at:.1f} s"
    end = final[0].accepted_at or 0.0
    for call in accepted:
        if call.kind == "progress" and (call.accepted_at or 0.0) > end:
            yield f"{name}: progress after the outcome, at {call.accepted_at:.1f} s"


def _repeat_is_excused(run: Run, before: Call, after: Call) -> bool:
    """Whether the first caller may have failed to record that the call was accepted."""
    if before.responded_at is None or before.responded_at > after.made_at:
        return True
    return _was_stopped(run, before.caller, before.made_at, after.made_at)


def _records(run: Run, name: str, task: TrainingTask) -> Iterator[str]:
    """Violations of: a recorded outcome is only announced, and then nothing more happens."""
    records = [record for record in run.world.records if record[2].task_id == task.task_id]
    for (_, writer, before), (at, who, after) in pairwise(records):
        if after == before:  # written again, as the first response was lost
            continue
        unaware = writer is who and _was_stopped(run, who, at - run.world.store.timeout, at)
        undone = before.state not in UNDECIDED and after.state in UNDECIDED
        if before.is_terminal or (undone and not unaware):
            yield f"{name}: {before.state}, then {after.state} by {who.name} at {at:.1f} s"


def _takeovers(run: Run, name: str, task: TrainingTask) -> Iterator[str]:
    """Violations of: no worker takes over a job from a healthy worker."""
    holder: Process | None = None
    since = 0.0
    for at, who, event in run.world.events:
        if event.task_id != task.task_id:
            continue
        if isinstance(event, JobStarted):
            if holder not in (None, who) and not _was_stopped(run, holder, since, at):
                if _was_stopped(run, who, at - run.world.store.timeout, at):
                    continue  # its record was written before it was frozen, and replaced since
                yield f"{name}: taken from {holder.name} by {who.name} at {at:.1f} s"
            holder, since = who, at
        elif isinstance(event, (JobInterrupted, FailureRecorded, TrainingFinished)):
            holder = None


def _was_stopped(run: Run, process: Process, begins: float, ends: float) -> bool:
    return any(
        disturbance.kind in STOPPING and disturbance.hit(process, begins, ends)
        for disturbance in run.chaos.done
    )


@cache
def _reference(style_id: int) -> bytes | None:
    return Run(0, styles=style_id, disturbed=False)().world.weights(style_id)
