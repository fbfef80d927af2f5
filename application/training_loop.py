"""The training loop: steps, checkpoints, previews, progress calls, cancellation."""

from __future__ import annotations

import logging
import math
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

from application.checkpoint_storage import CheckpointStorage
from application.job_store import JobStore
from application.journal import JobRecord
from application.lease import Lease
from application.ports import Notifier, NotifierRejected, StyleGone, TrainingSession, Unavailable
from application.stop_signal import StopReason, StopSignal
from application.style_report import CheckpointPreviews
from application.worker_config import WorkerConfig
from domain.loss_curve import last_measured_loss
from domain.progress import Progress, Speedometer, StepReport

log = logging.getLogger(__name__)

MAX_STYLE_GONE = 3
"""Consecutive progress calls with a 404 response after which the style counts as gone."""
_CHECKPOINT_SHARE = 0.75
"""Share of the remaining shutdown time for a checkpoint. The rest is for requeuing the job and
releasing the lease."""


@dataclass(frozen=True, kw_only=True)
class TrainingLoop:
    """Trains a session to its end, with checkpoints, previews and progress calls."""

    store: JobStore
    notifier: Notifier
    config: WorkerConfig
    uploads: Executor
    """Uploads checkpoints while training continues."""

    def run(
        self, session: TrainingSession, record: JobRecord, lease: Lease, stop: StopSignal
    ) -> None:
        """Run the remaining steps.

        Raises:
            Stopped: between two steps; on shutdown after storing a checkpoint.
            TrainingFailed: raised by the session.
            LeaseLost: another worker has the job.
        """

        def poll_cancellation() -> None:
            if self.store.cancellation_requested(record.job.task_id):
                stop.request(StopReason.CANCELLED)

        meter = Speedometer()
        send_progress = partial(self._send_progress, record, lease, meter, stop)
        storage = CheckpointStorage(self.store, record, self.uploads)
        previews = CheckpointPreviews(self.store, self.config)
        with (
            self.store.clock.every(self.config.progress_every, send_progress),
            self.store.clock.every(self.config.cancel_poll, poll_cancellation),
        ):
            try:
                while not session.finished:
                    if stop.reason is StopReason.SHUTDOWN:
                        self._save_before_exit(session, record, storage, stop)
                    stop.check()
                    step = self._step(session, record, meter)
                    due = step.epoch_finished and step.epoch % self.config.checkpoint_every == 0
                    with record.time("checkpoints"):
                        storage.finish(timeout=0.0)
                        if due or session.finished:
                            storage.begin(session, with_style=True)
                    wanted = due and not session.finished and stop.reason is None
                    if wanted and previews.affordable():
                        with record.time("checkpoints"):
                            storage.finish()  # record it first: drawing is slow and may crash
                        with record.time("previews"):
                            previews.draw(session, record.job, step.epoch, stop)
            except Exception:
                if stop.reason is not StopReason.LEASE_LOST:
                    may_wait = math.isinf(stop.deadline)  # a deadline leaves no time
                    storage.try_to_finish(timeout=math.inf if may_wait else 0.0)
                raise
            with record.time("checkpoints"):
                storage.finish(at_the_end=True)
            record.publish_times()

    def _step(self, session: TrainingSession, record: JobRecord, meter: Speedometer) -> StepReport:
        first = "first step" not in record.seconds
        began = self.store.clock.monotonic()
        step = session.advance()
        ended = self.store.clock.monotonic()
        history = session.history
        measured = step.epoch_finished and history[-1].evaluation_loss is not None
        part = "first step" if first else "measurements" if measured else "steps"
        record.add_time(part, ended - began)
        meter.observe(step.step, ended)
        job = record.job
        assert job.parameters is not None  # set when training began
        progress = Progress(
            current_epoch=step.epoch,
            total_epochs=job.parameters.epochs,
            current_step=step.step,
            total_steps=session.total_steps,
            loss=history[-1].loss if history else None,
            steps_per_second=meter.steps_per_second,
            measured_loss=last_measured_loss(history),
            base_loss=session.baseline.measured_loss if session.baseline else None,
        )
        record.apply_unsaved(job.advance(progress, epoch_finished=step.epoch_finished))
        return step

    def _send_progress(
        self, record: JobRecord, lease: Lease, meter: Speedometer, stop: StopSignal
    ) -> None:
        """Report the progress to the backend, once a speed is measured. Errors are logged."""
        progress, speed = record.job.progress, meter.steps_per_second
        if progress is None or speed is None:
            return
        if not lease.is_valid:
            return  # another worker may have the job and have sent its outcome
        try:
            self.notifier.progress(record.job.style_id, replace(progress, steps_per_second=speed))
            record.style_gone_calls = 0
        except (Unavailable, NotifierRejected) as error:
            is_gone = isinstance(error, StyleGone)
            record.style_gone_calls = record.style_gone_calls + 1 if is_gone else 0
            if record.style_gone_calls == MAX_STYLE_GONE:
                stop.request(StopReason.STYLE_GONE)
            if isinstance(error, Unavailable):  # a rejected call is no longer in flight
                until = self.store.clock.monotonic() + self.config.in_flight_seconds
                lease.in_flight_until = until
            log.warning("progress call failed and is not retried: %s", error)

    def _save_before_exit(
        self,
        session: TrainingSession,
        record: JobRecord,
        storage: CheckpointStorage,
        stop: StopSignal,
    ) -> None:
        """Store a checkpoint if there is time for one before the process ends."""
        left = stop.deadline - self.store.clock.monotonic()
        if not storage.finish(timeout=left / 2):
            log.warning(
                "no checkpoint before the exit: the previous upload did not end within %.1f s",
                left / 2,
            )
            return
        job = record.job
        if job.checkpoint and job.progress and job.checkpoint.step >= job.progress.current_step:
            return  # no step since the last checkpoint
        left = _CHECKPOINT_SHARE * (stop.deadline - self.store.clock.monotonic())
        if storage.seconds >= left:
            log.warning(
                "no checkpoint before the exit: one takes %.1f s, and %.1f s are left for it",
                storage.seconds,
                left,
            )
            return
        storage.begin(session, with_style=False)
        if not storage.finish(timeout=left):
            log.warning(
                "no checkpoint before the exit: its upload did not end within %.1f s", left
            )
