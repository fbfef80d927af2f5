"""Run one task under its lease: fetch images, train, upload, notify the backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from application.fenced_blob import RecordDamaged
from application.job_store import JobStore, TaskDiffers
from application.journal import JobRecord, RecordNewer
from application.lease import Lease, LeaseHeld, LeaseLost
from application.notify_outcome import OutcomeNotifier
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
from application.retry import MAX_PAUSE, backoff, retry
from application.settlement import Ack, DeadLetter, Requeue, RetryLater, Settlement
from application.slots import AdmissionQueue
from application.stop_signal import Stopped, StopReason, StopSignal
from application.style_report import ReportWriter
from application.training_loop import TrainingLoop
from application.worker_config import WorkerConfig
from domain.errors import UserError
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.job import ACTIVE, UNDECIDED, TrainingJob
from domain.loss_curve import epochs_to_deliver, has_diverged, metric_of
from domain.results import TrainingMetric
from domain.task import TrainingTask
from domain.training_plan import TrainingPlan

log = logging.getLogger(__name__)

CANCELLED = Failure(FailureCode.CANCELLED, "The training was cancelled.")
NOT_LEARNED = Failure(
    FailureCode.STYLE_NOT_LEARNED,
    "The training did not learn the style: the model matches your images no better with the style "
    "than without it. Please choose images that share one style, and try again with the default "
    "settings.",
)


@dataclass(frozen=True)
class HeldJob:
    """A job whose lease this worker holds."""

    record: JobRecord
    lease: Lease
    stop: StopSignal
    """Set if the worker stops, the job is cancelled, its style is gone or the lease is lost."""
    worker_stop: StopSignal
    """Set if the worker stops."""


@dataclass(frozen=True, kw_only=True)
class RunTraining:
    """Runs a task, or resumes it from the last checkpoint of an earlier attempt."""

    store: JobStore
    plan: TrainingPlanner
    trainer: Trainer
    admission: AdmissionQueue
    """Shared by all users of the trainer."""
    loop: TrainingLoop
    write_report: ReportWriter
    notify_outcome: OutcomeNotifier
    config: WorkerConfig

    def __call__(self, task: TrainingTask, stop: StopSignal, retries: int = 0) -> Settlement:
        """Run the task, and return how to settle its message. Raises nothing."""
        try:
            record = self.store.open(TrainingJob(task_id=task.task_id, style_id=task.style_id))
            self.store.record_request(task, record.job)
            decide = partial(self._decide, task)
            settlement = process_job(record, decide, self.store, self.notify_outcome, stop)
            if isinstance(settlement, Ack):
                self.store.prune(record.job, self.config.keep_checkpoints)
            return settlement
        except Exception as error:
            about = f"task {task.task_id}"
            return settlement_after(error, about, retries=retries, config=self.config, stop=stop)

    def _decide(self, task: TrainingTask, held: HeldJob) -> Settlement | None:
        """Train the job and notify the backend, decide that it failed, or interrupt it."""
        record = held.record
        if record.job.state in ACTIVE:
            is_failure = not record.job.waits
            record.apply(record.job.interrupt("its worker was lost", is_failure=is_failure))
        try:
            return self._train(task, held)
        except TrainingFailed as error:
            if error.failure.retryable:
                record.apply(record.job.interrupt(error.failure.message, is_failure=True))
                return RetryLater(backoff(record.job.failures), str(error))
            record.apply(record.job.fail(error.failure))
        except Stopped as stopped:
            if stopped.reason is StopReason.LEASE_LOST:
                raise LeaseLost("another worker has taken the job over") from None
            if stopped.reason is StopReason.SHUTDOWN:
                record.apply(record.job.interrupt("its worker shut down", is_failure=False))
                return Requeue()
            if stopped.reason is StopReason.STYLE_GONE:
                reason = f"style {task.style_id} is gone: the backend returns 404 for its progress"
                self._interrupt(record, reason, is_failure=False)
                return DeadLetter(f"{reason}; replay the message if the style exists again")
            record.apply(record.job.fail(CANCELLED))
        except (Unavailable, BlobDenied) as error:
            self._interrupt(record, str(error), is_failure=False)
            raise
        except LeaseLost:
            raise
        except TrainerBroken as error:
            # This worker must end even if recording the interruption fails.
            with suppress(BlobDenied, LeaseLost):
                self._interrupt(record, str(error), is_failure=True)
            return RetryLater(backoff(record.job.failures), str(error), device_broken=True)
        except Exception as error:
            log.exception("task %s: unexpected error, the job is interrupted", task.task_id)
            reason = f"{type(error).__name__}: {error}"
            self._interrupt(record, reason, is_failure=True)
            return RetryLater(backoff(record.job.failures), reason, unexpected=True)
        return None

    def _train(self, task: TrainingTask, held: HeldJob) -> Settlement:
        record, stop = held.record, held.stop
        self._fail_fast(record.job)
        record.apply(record.job.start())
        with record.time("fetch"):
            plan, images = self.plan(task, record.job.parameters, self.trainer, stop)
        record.publish_times()
        alone = record.job.failures >= self.config.max_shared_failures
        batch_key = None if alone else self.trainer.batch_key(plan.parameters)
        with (
            self.admission.hold(batch_key, stop, lambda: record.apply(record.job.await_slot())),
            self._trained(plan, held) as session,
        ):
            # Each call is retried while the store is unavailable: training again would cost more.
            clock = self.store.clock
            metric = self._load_best_weights(session, record.job, stop)
            retry(partial(record.apply, record.job.finish_training(metric)), clock, stop)
            held.lease.renew_if_due(stop)
            weights = session.weights()
            peft = self.trainer.peft_files(weights) if self.config.weights_in_folder else {}
            put = partial(self.store.put_weights, record.job, weights, peft)
            artifact = retry(put, clock, stop)
            retry(partial(record.apply, record.job.store(artifact)), clock, stop)
            try:
                return self.notify_outcome(record, held.lease, held.worker_stop)
            finally:
                # After the call, so that the artist does not wait, but even if it failed: the
                # previews need the open session.
                if stop.reason is None and held.lease.is_valid:
                    self.write_report(session, task, images, record, self.trainer.base, stop)

    @contextmanager
    def _trained(self, plan: TrainingPlan, held: HeldJob) -> Iterator[TrainingSession]:
        """Train to the end; if it diverges without a usable style, once more with a lower rate."""
        record = held.record
        with self._session(plan, record) as session:
            self.loop.run(session, record, held.lease, held.stop)
            history, baseline = session.history, session.baseline
            if epochs_to_deliver(history, baseline, plan.parameters.deliver):
                yield session
                return
        if record.job.second_try or not has_diverged(history, baseline):
            raise TrainingFailed(NOT_LEARNED)
        plan = replace(plan, parameters=plan.parameters.with_lower_learning_rate())
        record.apply(record.job.try_again(plan.parameters))
        self.store.delete_previews(record.job.task_id)
        with self._trained(plan, held) as session:
            yield session

    def _load_best_weights(
        self, session: TrainingSession, job: TrainingJob, stop: StopSignal
    ) -> TrainingMetric:
        """Load the weights of the first epoch to deliver whose checkpoint can be used into a
        finished session, and return the metrics.
        """
        assert job.parameters is not None  # set when training began
        history, baseline = session.history, session.baseline
        last = history[-1]
        for chosen in epochs_to_deliver(history, baseline, job.parameters.deliver):
            if chosen != last:
                step = chosen.epoch * session.total_steps // last.epoch
                at = self.store.keys.checkpoint(job.task_id, chosen.epoch, step)
                try:
                    get = partial(self.store.get_checkpoint, at)
                    session.restore(retry(get, self.store.clock, stop))
                except (BlobMissing, BlobTooLarge, CheckpointRejected) as error:
                    log.warning(
                        "the weights of epoch %d cannot be delivered: %s", chosen.epoch, error
                    )
                    continue
            return metric_of(history, baseline, session.total_steps, chosen)
        raise TrainingFailed(NOT_LEARNED)

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
    def _session(self, plan: TrainingPlan, record: JobRecord) -> Iterator[TrainingSession]:
        """Open a session, resumed from the job's checkpoint if that is usable."""
        record.apply(record.job.begin_training(plan.parameters, len(plan.images)))
        with ExitStack() as stack:
            with record.time("encode"):
                try:
                    opened = self.trainer.open(plan, self._checkpoint(record.job))
                    session = stack.enter_context(opened)
                except UserError as error:
                    failure = Failure(FailureCode.INVALID_TASK, str(error))
                    raise TrainingFailed(failure) from error
                except (CheckpointRejected, BlobMissing, BlobTooLarge) as error:
                    log.warning("training starts over, the checkpoint cannot be used: %s", error)
                    record.apply(record.job.discard_checkpoint())
                    session = stack.enter_context(self.trainer.open(plan, None))
            record.publish_times()
            yield session

    def _checkpoint(self, job: TrainingJob) -> bytes | None:
        return (
            None if job.checkpoint is None else self.store.get_checkpoint(job.checkpoint.location)
        )

    def _interrupt(self, record: JobRecord, reason: str, *, is_failure: bool) -> None:
        if record.job.state not in ACTIVE:
            return
        try:
            record.apply(record.job.interrupt(reason, is_failure=is_failure))
        except Unavailable as error:
            log.warning("could not record the interruption; the job still looks active: %s", error)


def process_job(
    record: JobRecord,
    decide: Callable[[HeldJob], Settlement | None],
    store: JobStore,
    notify_outcome: OutcomeNotifier,
    stop: StopSignal,
) -> Settlement:
    """Process a job under its lease. ``settlement_after`` takes the errors that this raises.

    Args:
        decide: called if the outcome is not decided; decides it and returns None, or returns how
            to settle the message.
        stop: the worker's.
    """
    lease = store.lease(record.job.task_id)
    if record.job.is_terminal:
        if (owner := store.lease_owner(record.job.task_id)) is not None:
            raise LeaseHeld(owner, store.lease_terms.renew_every)  # it may still write the report
        log.info("task %s: nothing to do, the job is %s", record.job.task_id, record.job.state)
        lease.delete()  # a crashed worker may have left it
        return Ack()
    job_stop = StopSignal(stop)
    with lease.hold(job_stop, is_finished=lambda: record.job.is_terminal):
        record.load()
        store.check_weights(record.job)
        if record.job.state in UNDECIDED:
            settlement = decide(HeldJob(record, lease, job_stop, stop))
            if settlement is not None:
                return settlement
        if not record.job.is_terminal:
            return notify_outcome(record, lease, stop)
    return Ack()


def settlement_after(
    error: Exception, about: str, *, retries: int, config: WorkerConfig, stop: StopSignal
) -> Settlement:
    """How to settle a message whose processing raised ``error``.

    Args:
        about: names the message in the log.
        stop: the worker's.
    """
    match error:
        case TaskDiffers():
            return DeadLetter(str(error), error.details)
        case Stopped():
            return Requeue()
        case LeaseHeld():
            return RetryLater(error.retry_after, str(error), counts=False, elsewhere=True)
        case LeaseLost():
            return RetryLater(config.lease.seconds, str(error), counts=False, elsewhere=True)
        case Unavailable():
            if stop.reason is StopReason.SHUTDOWN:
                return Requeue()
            pause = backoff(retries, error.retry_after)
            return RetryLater(pause, str(error), counts=backoff(retries) < MAX_PAUSE)
        case RecordNewer():
            return RetryLater(backoff(retries), str(error), counts=backoff(retries) < MAX_PAUSE)
        case BlobDenied() | RecordDamaged():
            # Retry, since both may be temporary: a denied bucket affects every task, and a proxy's
            # error page in place of the store's response looks like a damaged record.
            if retries >= config.max_retries:
                return DeadLetter(str(error))
            return RetryLater(backoff(retries), str(error))
    log.error("%s: unexpected error", about, exc_info=error)
    reason = f"{type(error).__name__}: {error}"
    if retries >= config.max_retries:
        return DeadLetter(f"after {retries} retries: {reason}")
    return RetryLater(backoff(retries), reason, unexpected=True)
