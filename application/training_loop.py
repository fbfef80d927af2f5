"""The training loop: steps, checkpoints, previews, progress calls, cancellation."""

from __future__ import annotations

import logging
import math
from concurrent.futures import Executor
from dataclasses import dataclass

from application.checkpoint_previews import CheckpointPreviews
from application.checkpoint_storage import CheckpointStorage
from application.job_store import JobStore
from application.journal import Entry
from application.lease import Lease
from application.ports import Notifier, TrainingSession
from application.progress_calls import ProgressCalls
from application.stop_signal import StopReason, StopSignal
from application.worker_config import WorkerConfig
from domain.loss_curve import last_measured_loss
from domain.progress import Progress, Speedometer, StepReport

log = logging.getLogger(__name__)

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

    def run(self, session: TrainingSession, entry: Entry, lease: Lease, stop: StopSignal) -> None:
        """Run the remaining steps.

        Args:
            lease: the job's lease, held by this worker.

        Raises:
            Stopped: between two steps; on shutdown after storing a checkpoint.
            TrainingFailed: raised by the session.
            LeaseLost: another worker has the job.
        """

        def poll_cancellation() -> None:
            if self.store.cancellation_requested(entry.job.task_id):
                stop.request(StopReason.CANCELLED)

        meter = Speedometer()
        calls = ProgressCalls(
            notifier=self.notifier,
            clock=self.store.clock,
            entry=entry,
            lease=lease,
            meter=meter,
            stop=stop,
            in_flight_seconds=self.config.in_flight_seconds,
        )
        storage = CheckpointStorage(self.store, entry, self.uploads)
        previews = CheckpointPreviews(self.store, self.config)
        with (
            self.store.clock.every(self.config.progress_every, calls.send),
            self.store.clock.every(self.config.cancel_poll, poll_cancellation),
        ):
            try:
                while not session.finished:
                    if stop.reason is StopReason.SHUTDOWN:
                        self._save_before_exit(session, entry, storage, stop)
                    stop.check()
                    step = self._step(session, entry, meter)
                    due = step.epoch_finished and step.epoch % self.config.checkpoint_every == 0
                    with entry.time("checkpoints"):
                        storage.finish(timeout=0.0)
                        if due or session.finished:
                            storage.begin(session, with_style=True)
                    wanted = due and not session.finished and stop.reason is None
                    if wanted and previews.affordable():
                        with entry.time("checkpoints"):
                            storage.finish()  # record it first: drawing is slow and may crash
                        with entry.time("previews"):
                            previews.draw(session, entry.job, step.epoch, stop)
            except Exception:
                if stop.reason is not StopReason.LEASE_LOST:
                    # A shutdown deadline leaves no time to wait.
                    storage.try_to_finish(timeout=0.0 if math.isfinite(stop.deadline) else None)
                raise
            with entry.time("checkpoints"):
                storage.finish(at_the_end=True)
            entry.publish_times()

    def _step(self, session: TrainingSession, entry: Entry, meter: Speedometer) -> StepReport:
        """Run one step, and publish the progress."""
        first = "first step" not in entry.seconds
        began = self.store.clock.monotonic()
        step = session.advance()
        ended = self.store.clock.monotonic()
        history = session.history
        measured = step.epoch_finished and history[-1].evaluation_loss is not None
        part = "first step" if first else "measurements" if measured else "steps"
        entry.add_time(part, ended - began)
        meter.observe(step.step, ended)
        job = entry.job
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
        entry.apply_unsaved(job.advance(progress, epoch_finished=step.epoch_finished))
        return step

    def _save_before_exit(
        self,
        session: TrainingSession,
        entry: Entry,
        storage: CheckpointStorage,
        stop: StopSignal,
    ) -> None:
        """Store a checkpoint if there is time for one before the process ends."""
        left = stop.deadline - self.store.clock.monotonic()
        if not storage.finish(timeout=_at_most(left / 2)):
            log.warning(
                "no checkpoint before the exit: the previous upload did not end within %.1f s",
                left / 2,
            )
            return
        job = entry.job
        if job.checkpoint and job.progress and job.checkpoint.step >= job.progress.current_step:
            return  # no step since the last checkpoint
        left = stop.deadline - self.store.clock.monotonic()
        if storage.seconds >= _CHECKPOINT_SHARE * left:
            log.warning(
                "no checkpoint before the exit: one takes %.1f s, and %.1f s are left",
                storage.seconds,
                left,
            )
            return
        storage.begin(session, with_style=False)
        if not storage.finish(timeout=_at_most(_CHECKPOINT_SHARE * left)):
            log.warning(
                "no checkpoint before the exit: its upload did not end in the %.1f s left", left
            )


def _at_most(seconds: float) -> float | None:
    """A timeout for a duration: at least 0; None for infinity."""
    return max(0.0, seconds) if math.isfinite(seconds) else None
