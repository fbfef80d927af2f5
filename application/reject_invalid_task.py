"""Reject a message that is not a valid task."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass

from application.job_store import JobStore
from application.notify_outcome import OutcomeNotifier
from application.ports import BlobDenied, Unavailable
from application.run_training import HeldJob, process_job, settlement_after
from application.settlement import Ack, DeadLetter, Requeue, Settlement
from application.stop_signal import StopSignal
from application.worker_config import WorkerConfig
from domain.failure import Failure, FailureCode
from domain.job import TrainingJob
from domain.task import InvalidTask

log = logging.getLogger(__name__)

PARAMETERS = "data.parameters."
"""Prefix of the fields that set training parameters."""
_SETTING = re.compile(r" \([A-Z_]+\)$")
"""The worker's setting at the end of a remedy, for operators."""


@dataclass(frozen=True, kw_only=True)
class RejectInvalidTask:
    """Notifies the backend once, if the message has a style id; then dead-letters the message.

    If the message has a task id, the reason is also stored under it, for operators. If a job with
    this id exists, the message may be its only one: a worker with other limits accepted it and was
    stopped. So that job fails, unless its outcome is decided.

    Otherwise the rejection has a job of its own, with an id derived from the message's content, so
    that repeated messages are recognised.
    """

    store: JobStore
    notify_outcome: OutcomeNotifier
    config: WorkerConfig

    def __call__(
        self, body: bytes, error: InvalidTask, stop: StopSignal, retries: int = 0
    ) -> Settlement:
        """Reject the message, and return how to settle it. Raises nothing."""
        details = {"field": error.field, "value": error.value, "remedy": error.remedy}
        job_id = invalid_task_id(body)
        if error.task_id is not None:
            details["task_id"] = error.task_id
            note = {**details, "reason": str(error), "record": job_id}
            try:
                self.store.put_rejection(error.task_id, note)
            except (Unavailable, BlobDenied) as trouble:
                log.warning("could not store the rejection of task %s: %s", error.task_id, trouble)
        rejected = DeadLetter(str(error), details)
        if error.style_id is None:
            return rejected
        failure = Failure(FailureCode.INVALID_TASK, _artist_message(error))

        def decide(held: HeldJob) -> None:
            held.record.apply(held.record.job.fail(failure))

        try:
            job = None if error.task_id is None else self.store.read_job(error.task_id)
            if job is not None and job.style_id != error.style_id:
                return rejected  # the job has another message
            record = self.store.open(job or TrainingJob(task_id=job_id, style_id=error.style_id))
            settlement = process_job(record, decide, self.store, self.notify_outcome, stop)
            if isinstance(settlement, Ack):
                self.store.prune(record.job, self.config.keep_checkpoints)
        except Exception as trouble:
            settlement = settlement_after(
                trouble, f"the rejection {job_id}", retries=retries, config=self.config, stop=stop
            )
            if isinstance(settlement, DeadLetter):
                reason = f"{error}; and the backend could not be notified: {settlement.reason}"
                return DeadLetter(reason, details)
            return settlement
        return settlement if isinstance(settlement, Requeue) else rejected


def invalid_task_id(body: bytes) -> str:
    """An id for a message without a valid task, derived from its content."""
    return f"invalid-{hashlib.sha256(body).hexdigest()[:32]}"


def _artist_message(error: InvalidTask) -> str:
    """The error text for the artist. It names only parameters: the artist chose nothing else."""
    name = error.field.removeprefix(PARAMETERS)
    remedy = _SETTING.sub("", error.remedy)
    text = f"{name.replace('_', ' ')} is {error.value}; {remedy}"
    if name == error.field or "://" in text:
        return "The training request is invalid for a reason on our side. Please try again later."
    return f"The training request is invalid: {text}."
