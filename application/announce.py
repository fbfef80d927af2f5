"""Tell the backend how a job ended: once."""

from __future__ import annotations

import math

from application.journal import Entry
from application.patience import insist
from application.ports import Clock, Notifier, NotifierRefused
from application.settlement import DeadLetter, Done, Settlement
from application.stop import StopSignal


def announce(entry: Entry, notifier: Notifier, clock: Clock) -> Settlement:
    """Make the final call of a job that is announcing, and record the answer.

    The intent is recorded before the call and the answer after it. Only a crash between the
    two can repeat a call, and the repetition carries the same key.

    Raises:
        Unavailable: the backend or the store is away; the job stays announcing.
        LeaseLost: another worker has the job.
    """
    entry.apply(entry.job.begin_announcement())
    job = entry.job
    try:
        if job.failure is not None:
            notifier.failed(job.style_id, job.failure, f"{job.task_id}:failed")
        else:
            assert job.artifact is not None  # the job's own invariants hold both
            assert job.metric is not None
            notifier.completed(job.style_id, job.artifact, job.metric, f"{job.task_id}:complete")
    except NotifierRefused as error:
        return DeadLetter(f"the backend refuses the outcome: {error}")
    # A failure here would repeat the call on the next attempt, so nothing else matters now, not
    # even a stop: it ends the process all the same when its grace is over.
    insist(lambda: entry.apply(entry.job.conclude()), clock, StopSignal(), patience=math.inf)
    return Done()
