"""Run one task: fetch images, train, upload, notify the backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from application.delivery import choose_weights
from application.fetch_images import ImagesDenied
from application.job_store import JobStore
from application.journal import Entry
from application.lease import Lease, LeaseLost
from application.notify_outcome import OutcomeNotifier
from application.part_timer import PartTimer
from application.plan_training import TrainingPlanner
from application.ports import (
    BlobDenied,
    BlobMissing,
    BlobTooLarge,
    CheckpointRejected,
    Trainer,
    TrainerBroken,
    TrainingSession,
    Unavailable,
)
from application.retry import backoff
from application.settle_error import settlement_after
from application.settlement import Ack, DeadLetter, Requeue, RetryLater, Settlement
from application.slots import AdmissionQueue
from application.stop_signal import Stopped, StopReason, StopSignal
from application.style_report import ReportWriter
from application.task_record import TaskDiffers
from application.training_loop import TrainingLoop
from application.worker_config import WorkerConfig
from domain.delivery import NOT_LEARNED, epochs_to_deliver, has_diverged, slower
from domain.errors import UserError
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.image import ImageSet
from domain.job import ACTIVE, UNDECIDED, JobState, TrainingJob
from domain.results import Artifact, TrainingMetric
from domain.task import TrainingTask
from domain.training_diagnostics import metric_of
from domain.training_plan import TrainingPlan

log = logging.getLogger(__name__)

T = TypeVar("T")

CANCELLED = Failure(FailureCode.CANCELLED, "The training was cancelled.")


@dataclass(frozen=True, kw_only=True)
class RunTraining:
    """Runs a task, or resumes it from the last checkpoint of an earlier attempt."""

    store: JobStore
    plan: TrainingPlanner
    trainer: Trainer
    slots: AdmissionQueue
    """Shared by all users of the trainer."""
    loop: TrainingLoop
    write_report: ReportWriter
    notify_outcome: OutcomeNotifier
    config: WorkerConfig

    def __call__(self, task: TrainingTask, stop: StopSignal, retries: int = 0) -> Settlement:
        """Run the task, and return how to settle its message. Raises nothing.

        Args:
            stop: checked between two steps.
            retries: number of earlier retries of the message.
        """
        worker_stop, stop = stop, StopSignal(stop)
        lease = self.store.lease(task.task_id)
        fresh = TrainingJob(task_id=task.task_id, style_id=task.style_id)
        try:
            entry = self.store.open(fresh)
            self._claim(task, entry.job)
            if entry.job.is_terminal:
                log.info("task %s: nothing to do, the job is %s", task.task_id, entry.job.state)
                lease.forget()  # a crashed worker may have left it
                return self._finish(task, entry, stop)
            with lease.hold(stop, is_finished=lambda: entry.job.is_terminal):
                entry.load()
                self.store.check_weights(entry.job)
                # A decided job ignores cancellation: only a stop of the worker counts.
                announce = partial(
                    self.notify_outcome,
                    entry,
                    partial(self._hold, lease, worker_stop),
                    lambda: lease.is_valid,
                    worker_stop,
                )
                if entry.job.state in UNDECIDED:
                    settlement = self._decide(task, entry, lease, stop, announce)
                    if entry.job.is_terminal:
                        self._prune(entry.job)
                    return settlement
                settlement = Ack() if entry.job.is_terminal else announce()
            return self._finish(task, entry, stop) if entry.job.is_terminal else settlement
        except TaskDiffers as error:
            return DeadLetter(str(error), error.details)
        except Exception as error:
            about = f"task {task.task_id}"
            return settlement_after(error, about, retries=retries, config=self.config, stop=stop)

    def _claim(self, task: TrainingTask, job: TrainingJob) -> None:
        """Record the request under its task id, or compare it with the recorded one.

        Raises:
            TaskDiffers: the recorded request differs.
        """
        if job.style_id != task.style_id:  # version 0.1 recorded only the style id
            raise TaskDiffers(task.task_id, {"style_id": (job.style_id, task.style_id)})
        self.store.claim(task)

    def _finish(self, task: TrainingTask, entry: Entry, stop: StopSignal) -> Settlement:
        """Write the missing report and prune checkpoints after the final call was made."""
        try:
            if entry.job.state is JobState.COMPLETED and entry.job.checkpoint is not None:
                self._write_missing_report(task, entry, stop)
        except Stopped:
            return Requeue()
        except TrainerBroken as error:
            return RetryLater(backoff(0), str(error), broken=True)
        except Exception as error:
            log.warning("no report for task %s: %s", task.task_id, error)
        self._prune(entry.job)
        return Ack()

    def _decide(
        self,
        task: TrainingTask,
        entry: Entry,
        lease: Lease,
        stop: StopSignal,
        announce: Callable[[], Settlement],
    ) -> Settlement:
        """Train the job, decide its outcome and notify the backend; or interrupt the job."""
        if entry.job.state in ACTIVE:
            is_failure = not entry.job.waits
            entry.apply(entry.job.interrupt("its worker was lost", is_failure=is_failure))
        try:
            return self._produce(task, entry, lease, stop, announce)
        except TrainingFailed as error:
            if error.failure.retryable:
                entry.apply(entry.job.interrupt(error.failure.message, is_failure=True))
                return RetryLater(backoff(entry.job.failures), str(error))
            entry.apply(entry.job.give_up(error.failure))
        except Stopped as stopped:
            if stopped.reason is StopReason.LEASE_LOST:
                raise LeaseLost("another worker has taken the job over") from None
            if stopped.reason is StopReason.SHUTDOWN:
                entry.apply(entry.job.interrupt("its worker shut down", is_failure=False))
                return Requeue()
            if stopped.reason is StopReason.STYLE_GONE:
                reason = f"style {task.style_id} is gone: the backend returns 404 for its progress"
                self._interrupt(entry, reason, is_failure=False)
                return DeadLetter(f"{reason}; replay the message if the style exists again")
            entry.apply(entry.job.give_up(CANCELLED))
        except ImagesDenied as error:
            self._interrupt(entry, str(error), is_failure=False)
            return DeadLetter(str(error))
        except (Unavailable, BlobDenied) as error:
            self._interrupt(entry, str(error), is_failure=False)
            raise
        except LeaseLost:
            raise
        except TrainerBroken as error:
            # This worker must end even if recording the interruption fails.
            with suppress(BlobDenied, LeaseLost):
                self._interrupt(entry, str(error), is_failure=True)
            return RetryLater(backoff(entry.job.failures), str(error), broken=True)
        except Exception as error:
            log.exception("task %s: unexpected error, the job is interrupted", task.task_id)
            reason = f"{type(error).__name__}: {error}"
            self._interrupt(entry, reason, is_failure=True)
            return RetryLater(backoff(entry.job.failures), reason, unexpected=True)
        return announce()

    def _produce(
        self,
        task: TrainingTask,
        entry: Entry,
        lease: Lease,
        stop: StopSignal,
        announce: Callable[[], Settlement],
    ) -> Settlement:
        self._fail_fast(entry.job)
        entry.apply(entry.job.start())
        timer = PartTimer(entry, self.store.clock)
        with timer.time("fetch"):
            plan, images = self._plan(task, entry.job, stop)
        timer.publish()
        alone = entry.job.failures >= self.config.max_shared_failures
        batch_key = None if alone else self.trainer.batch_key(plan.parameters)
        with (
            self.slots.taken(batch_key, stop, lambda: entry.apply(entry.job.await_slot())),
            self._trained(plan, entry, lease, stop) as (session, plan),
        ):
            metric = self._deliver(session, entry.job, stop)
            trained = entry.job.finish_training(metric)
            self._retry(lambda: entry.apply(trained), stop)

            self._hold(lease, stop)
            stored = entry.job.store(self._upload(session.weights(), entry.job, stop))
            self._retry(lambda: entry.apply(stored), stop)
            settlement = announce()
            if entry.job.is_terminal and stop.reason is None:
                # After the notification, so that the artist does not wait; the previews need the
                # open session.
                base = self.trainer.base
                self.write_report(session, task, plan, images, entry, base, stop)
            return settlement

    @contextmanager
    def _trained(
        self, plan: TrainingPlan, entry: Entry, lease: Lease, stop: StopSignal
    ) -> Iterator[tuple[TrainingSession, TrainingPlan]]:
        """Train to the end; if it diverges without a usable style, once more with a lower rate.

        Yields:
            The finished session, and its plan.

        Raises:
            TrainingFailed: STYLE_NOT_LEARNED.
        """
        with self._session(plan, entry) as session:
            self.loop.run(session, entry, lease, stop)
            history, before = session.history, session.before
            if epochs_to_deliver(history, before, plan.parameters.deliver):
                yield session, plan
                return
        if entry.job.second_try or not has_diverged(history, before):
            raise TrainingFailed(NOT_LEARNED)
        plan = replace(plan, parameters=slower(plan.parameters))
        entry.apply(entry.job.try_again(plan.parameters))
        self.store.forget_previews(entry.job.task_id)
        with self._trained(plan, entry, lease, stop) as trained:
            yield trained

    def _deliver(
        self, session: TrainingSession, job: TrainingJob, stop: StopSignal
    ) -> TrainingMetric:
        """Load the weights to deliver into a finished session, and return the metrics.

        Raises:
            TrainingFailed: STYLE_NOT_LEARNED, if no checkpoint of a better epoch is left.
        """
        assert job.parameters is not None  # set when training began

        def checkpoint(epoch: int, step: int) -> bytes:
            at = self.store.checkpoint_at(job.task_id, epoch, step)
            return self._retry(lambda: self.store.get_checkpoint(at), stop)

        delivered = choose_weights(session, job.parameters.deliver, checkpoint)
        return metric_of(session.history, session.before, session.total_steps, delivered)

    def _plan(
        self, task: TrainingTask, job: TrainingJob, stop: StopSignal
    ) -> tuple[TrainingPlan, ImageSet]:
        return self.plan(task, job.parameters, self.trainer.native_resolution, stop)

    def _upload(self, weights: bytes, job: TrainingJob, stop: StopSignal) -> Artifact:
        """Store the weights as one file, or as a PEFT folder if so configured."""
        put = partial(self.store.put_weights, job.style_id, weights)
        if self.config.weights_in_folder:
            folder = self.trainer.in_folder(weights)
            put = partial(self.store.put_weights_folder, job, weights, folder)
        return self._retry(put, stop)

    def _write_missing_report(self, task: TrainingTask, entry: Entry, stop: StopSignal) -> None:
        """Write the report of a completed job whose worker died before writing it."""
        if self.store.has_report(task.task_id):
            return
        plan, images = self._plan(task, entry.job, stop)
        with (
            self.slots.taken(self.trainer.batch_key(plan.parameters), stop, lambda: None),
            self.trainer.open(plan, self._checkpoint(entry.job)) as session,
        ):
            if session.finished:
                self._deliver(session, entry.job, stop)
                base = self.trainer.base
                self.write_report(session, task, plan, images, entry, base, stop)

    def _fail_fast(self, job: TrainingJob) -> None:
        if self.store.cancellation_requested(job.task_id):
            raise TrainingFailed(CANCELLED)
        if job.failures >= self.config.max_failures:
            message = (
                f"The training failed {job.failures} times because of a problem on our side. "
                "Please try again later."
            )
            raise TrainingFailed(Failure(FailureCode.TRAINING_FAILED, message))

    @contextmanager
    def _session(self, plan: TrainingPlan, entry: Entry) -> Iterator[TrainingSession]:
        """Open a session, resumed from the job's checkpoint if that is usable."""
        entry.apply(entry.job.begin_training(plan.parameters, len(plan.images)))
        timer = PartTimer(entry, self.store.clock)
        with ExitStack() as stack:
            with timer.time("encode"):
                try:
                    opened = self.trainer.open(plan, self._checkpoint(entry.job))
                    session = stack.enter_context(opened)
                except UserError as error:
                    failure = Failure(FailureCode.INVALID_TASK, str(error))
                    raise TrainingFailed(failure) from error
                except (CheckpointRejected, BlobMissing, BlobTooLarge) as error:
                    log.warning("starting over, the checkpoint cannot be used: %s", error)
                    entry.apply(entry.job.discard_checkpoint())
                    session = stack.enter_context(self.trainer.open(plan, None))
            timer.publish()
            yield session

    def _checkpoint(self, job: TrainingJob) -> bytes | None:
        return None if job.checkpoint is None else self.store.get_checkpoint(job.checkpoint)

    def _interrupt(self, entry: Entry, reason: str, *, is_failure: bool) -> None:
        if entry.job.state not in ACTIVE:
            return
        try:
            entry.apply(entry.job.interrupt(reason, is_failure=is_failure))
        except Unavailable as error:
            log.warning("could not record the interruption; the job still looks active: %s", error)

    def _prune(self, job: TrainingJob) -> None:
        self.store.prune(job, self.config.keep_checkpoints)

    def _hold(self, lease: Lease, stop: StopSignal) -> None:
        """Renew the lease before an expensive step."""
        self._retry(lease.extend, stop)

    def _retry(self, call: Callable[[], T], stop: StopSignal) -> T:
        """Retry a call while the store is unavailable: training again would cost much more."""
        return self.store.retry(call, stop, self.config.upload_timeout)
