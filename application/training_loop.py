"""The training loop: steps, checkpoints, previews, progress calls, cancellation."""

from __future__ import annotations

import logging
import math
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from application.checkpoint_previews import CheckpointPreviews
from application.checkpoint_storage import CheckpointStorage
from application.job_store import JobStore
from application.journal import Entry
from application.lease import Lease
from application.ports import (
    Clock,
    Notifier,
    NotifierRefused,
    StepReport,
    TrainingSession,
    Unavailable,
)
from application.stop_signal import StopReason, StopSignal
from application.worker_config import WorkerConfig
from domain.progress import Progress, Speedometer

log = logging.getLogger(__name__)

_FOR_A_CHECKPOINT = 0.75
"""Share of the remaining shutdown time; in the rest the job is requeued and the lease released."""


@dataclass(frozen=True, kw_only=True)
class TrainingLoop:
    """Trains a session to its end, with checkpoints, previews and progress calls."""

    store: JobStore
    notifier: Notifier
    clock: Clock
    config: WorkerConfig
    uploads: Executor
    """Stores checkpoints while the training goes on."""

    def run(self, session: TrainingSession, entry: Entry, lease: Lease, stop: StopSignal) -> None:
        """Run every step that is left.

        Args:
            lease: the job's, held by this worker.

        Raises:
            Stopped: between two steps; after a checkpoint when the worker shuts down.
            TrainingFailed: by the session.
            LeaseLost: another worker has the job.
        """
        meter = Speedometer()
        storage = CheckpointStorage(self.store, entry, self.uploads)
        previews = CheckpointPreviews(self.store, self.config)
        with (
            self.clock.every(
                self.config.progress_every, lambda: self._report(entry, lease, meter)
            ),
            self.clock.every(
                self.config.cancel_poll, lambda: self._poll_cancellation(entry, stop)
            ),
        ):
            try:
                while not session.finished:
                    if stop.reason is StopReason.SHUTDOWN:
                        self._save_in_time(session, storage, stop)
                    stop.check()
                    step = session.advance()
                    meter.observe(step.step, self.clock.monotonic())
                    self._note(session, entry, step, meter)
                    storage.look()
                    due = step.epoch_finished and step.epoch % self.config.checkpoint_every == 0
                    if due or session.finished:
                        storage.begin(session, with_style=True)
                    wanted = due and not session.finished and stop.reason is None
                    if wanted and previews.affordable():
                        storage.finish()  # drawing may take long, and may be what breaks off
                        previews.draw(session, entry.job.task_id, step.epoch)
            except Exception:
                if stop.reason is not StopReason.LEASE_LOST:
                    # With a shutdown deadline there is no time to wait.
                    storage.leave(timeout=0.0 if math.isfinite(stop.deadline) else None)
                raise
            storage.finish()

    def _note(
        self, session: TrainingSession, entry: Entry, step: StepReport, meter: Speedometer
    ) -> None:
        job = entry.job
        assert job.parameters is not None  # a job in training has its parameters settled
        progress = Progress(
            current_epoch=step.epoch,
            total_epochs=job.parameters.epochs,
            current_step=step.step,
            total_steps=session.total_steps,
            loss=session.history[-1].loss if session.history else None,
            steps_per_second=meter.steps_per_second,
        )
        entry.note(job.advance(progress, epoch_finished=step.epoch_finished))

    def _save_in_time(
        self, session: TrainingSession, storage: CheckpointStorage, stop: StopSignal
    ) -> None:
        """Store a checkpoint if there is time for one before the process ends."""
        left = stop.deadline - self.clock.monotonic()
        if not storage.finish(timeout=_at_most(left / 2)):
            log.warning("no checkpoint: the one before is still under way, in %.1f s", left / 2)
            return
        left = stop.deadline - self.clock.monotonic()
        if storage.seconds >= _FOR_A_CHECKPOINT * left:
            log.warning(
                "no checkpoint: one takes %.1f s, and %.1f s are left", storage.seconds, left
            )
            return
        storage.begin(session, with_style=False)
        if not storage.finish(timeout=_at_most(_FOR_A_CHECKPOINT * left)):
            log.warning("no checkpoint: it has not arrived, and %.1f s were left", left)

    def _report(self, entry: Entry, lease: Lease, meter: Speedometer) -> None:
        progress, speed = entry.job.progress, meter.steps_per_second
        if progress is None or speed is None:
            return
        if not lease.is_valid:
            return  # another worker may have the job, and may have made the final call
        try:
            self.notifier.progress(entry.job.style_id, replace(progress, steps_per_second=speed))
        except (Unavailable, NotifierRefused) as error:
            if isinstance(error, Unavailable):  # a refused call has arrived
                entry.quiet_from = self.clock.monotonic() + self.config.in_transit
            log.warning("progress call failed, the next one follows: %s", error)

    def _poll_cancellation(self, entry: Entry, stop: StopSignal) -> None:
        if self.store.cancellation_requested(entry.job.task_id):
            stop.request(StopReason.CANCELLED)


def _at_most(seconds: float) -> float | None:
    """A timeout: not before now, None where there is none."""
    return max(0.0, seconds) if math.isfinite(seconds) else None
