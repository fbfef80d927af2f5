"""What becomes of a message that is not a task we can carry out."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from application.job_store import JobStore
from application.notify_outcome import OutcomeNotifier
from application.ports import BlobDenied, Unavailable
from application.settle_error import settlement_after
from application.settlement import DeadLetter, Requeue, Settlement
from application.stop_signal import StopSignal
from application.worker_config import WorkerConfig
from domain.failure import Failure, FailureCode
from domain.job import UNDECIDED, TrainingJob
from domain.task import InvalidTask

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RejectInvalidTask:
    """Tells the backend, once, where the message says which style it was; then dead-letters.

    A message that names a job's task id is only dead-lettered: the style may be completed.

    The message's content stands in for a task id, so that a repetition is recognised.
    """

    store: JobStore
    notify_outcome: OutcomeNotifier
    config: WorkerConfig

    def __call__(
        self, body: bytes, error: InvalidTask, stop: StopSignal, retries: int = 0
    ) -> Settlement:
        """Say what becomes of the message. Raises nothing."""
        details = {"field": error.field, "value": error.value, "remedy": error.remedy}
        refused = DeadLetter(str(error), details)
        job_id = invalid_task_id(body)
        self._leave_note(job_id, error, details)
        if error.style_id is None:
            return refused
        fresh = TrainingJob(task_id=job_id, style_id=error.style_id)
        failure = Failure(FailureCode.INVALID_TASK, _for_the_artist(error))
        worker_stop, stop = stop, StopSignal(stop)
        lease = self.store.lease(job_id)
        try:
            if error.task_id is not None and self.store.recorded(error.task_id) is not None:
                return refused  # the job of that task has told its outcome, or will
            entry = self.store.open(fresh)
            if entry.job.is_terminal:
                lease.forget()  # a crash may have left it
                return refused
            with lease.hold(stop, is_finished=lambda: entry.job.is_terminal):
                entry.load()
                if entry.job.state in UNDECIDED:
                    entry.apply(entry.job.give_up(failure))
                if not entry.job.is_terminal:
                    settlement = self.notify_outcome(
                        entry, lease.renew, lambda: lease.is_valid, worker_stop
                    )
                    if isinstance(settlement, Requeue):
                        return settlement
            return refused
        except BlobDenied as denied:
            return DeadLetter(f"{error}; and nobody could be told: {denied}", details)
        except Exception as broken_off:
            about = f"the refusal of {job_id}"
            return settlement_after(
                broken_off, about, retries=retries, config=self.config, stop=stop
            )

    def _leave_note(self, job_id: str, error: InvalidTask, details: dict[str, str]) -> None:
        """Where the task's id could be read, let an operator find the rejection by it."""
        if error.task_id is None:
            return
        details["task_id"] = error.task_id
        try:
            note = {**details, "reason": str(error), "record": job_id}
            self.store.put_rejection(error.task_id, note)
        except (Unavailable, BlobDenied) as trouble:
            log.warning("the rejection of task %s is not stored: %s", error.task_id, trouble)


def invalid_task_id(body: bytes) -> str:
    """An id for a message without a valid task, the same each time the message comes."""
    return f"invalid-{hashlib.sha256(body).hexdigest()[:32]}"


def _for_the_artist(error: InvalidTask) -> str:
    """What is wrong, without the path that leads there."""
    field = error.field.removeprefix("data.").removeprefix("parameters.").replace("_", " ")
    return f"The training request is invalid: {field} is {error.value}; {error.remedy}."
