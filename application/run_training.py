"""The way of one task, from its message to its announcement."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from application.cancellation import cancellation_requested
from application.fenced_blob import RecordDamaged
from application.fetch_images import ImagesDenied, fetch_images
from application.journal import Entry, Journal
from application.lease import Lease, LeaseLost
from application.notify_outcome import OutcomeNotifier
from application.ports import (
    BlobDenied,
    BlobMissing,
    BlobStore,
    BlobTooLarge,
    CheckpointRejected,
    Clock,
    ImageInspector,
    Notifier,
    Reporter,
    Trainer,
    TrainerBroken,
    TrainingPlan,
    TrainingSession,
    Unavailable,
)
from application.retention import tidy
from application.retry import backoff, retry
from application.settle_error import settlement_after
from application.settlement import Ack, DeadLetter, Requeue, RetryLater, Settlement
from application.slots import AdmissionQueue
from application.stop_signal import Stopped, StopReason, StopSignal
from application.storage_keys import StorageKeys
from application.style_report import ReportWriter
from application.training_diagnostics import best_epoch
from application.training_loop import TrainingLoop
from application.worker_config import WorkerConfig
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.job import ACTIVE, UNDECIDED, TrainingJob
from domain.location import Location
from domain.results import Artifact, TrainingMetric
from domain.task import TrainingTask

log = logging.getLogger(__name__)

MAX_CHECKPOINT_BYTES = 4 * 1024**3
"""Above that of the highest rank on all layers, with the optimizer's state."""
CANCELLED = Failure(FailureCode.CANCELLED, "The training was cancelled.")


@dataclass(frozen=True, kw_only=True)
class RunTraining:
    """Carries a task as far as it will go, from wherever an earlier attempt left it."""

    blobs: BlobStore
    notifier: Notifier
    notify_outcome: OutcomeNotifier
    trainer: Trainer
    inspector: ImageInspector
    reporter: Reporter
    clock: Clock
    journal: Journal
    keys: StorageKeys
    config: WorkerConfig
    worker: str
    """This worker's name in leases and journals, unlike any other's."""
    uploads: Executor
    """Where checkpoints are stored while the training goes on."""
    slots: AdmissionQueue = field(default_factory=AdmissionQueue)
    """Shared by all who use the trainer."""

    def __call__(self, task: TrainingTask, stop: StopSignal, retries: int = 0) -> Settlement:
        """Run the task and say what becomes of its message. Raises nothing.

        Args:
            stop: asked between two steps.
            retries: how often the message has been put aside already.
        """
        worker_stop, stop = stop, StopSignal(stop)
        at, lease = self.keys.journal(task.task_id), self._lease(task)
        fresh = TrainingJob(task_id=task.task_id, style_id=task.style_id)
        try:
            entry = self.journal.open(at, self.worker, fresh)
            if entry.job.is_terminal:
                log.info("task %s is %s already, nothing is done", task.task_id, entry.job.state)
                lease.forget()  # a crash may have left it
                self._tidy(entry.job)
                return Ack()
            with lease.held(stop, over=lambda: entry.job.is_terminal):
                entry.load()
                self._check_record(entry.job, at)
                if entry.job.state in UNDECIDED:
                    put_down = self._decide(task, entry, lease, stop)
                    if put_down is not None:
                        return put_down
                if entry.job.is_terminal:
                    return Ack()
                # From here on a cancellation comes too late.
                still_ours = partial(self._hold, lease, worker_stop)
                settlement = self.notify_outcome(
                    entry, still_ours, lambda: lease.firm, worker_stop
                )
                if entry.job.is_terminal:
                    self._tidy(entry.job)
                return settlement
        except Exception as error:
            about = f"task {task.task_id}"
            return settlement_after(error, about, retries=retries, config=self.config, stop=stop)

    def _decide(
        self, task: TrainingTask, entry: Entry, lease: Lease, stop: StopSignal
    ) -> Settlement | None:
        """Bring the job to its outcome, weights or failure; or put it down and say how."""
        if entry.job.state in ACTIVE:
            is_failure = not entry.job.waits
            entry.apply(entry.job.interrupt("its worker was lost", is_failure=is_failure))
        try:
            self._produce(task, entry, lease, stop)
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
            entry.apply(entry.job.give_up(CANCELLED))
        except ImagesDenied as error:
            self._put_down(entry, str(error), is_failure=False)
            return DeadLetter(str(error))
        except (Unavailable, BlobDenied) as error:
            self._put_down(entry, str(error), is_failure=False)
            raise
        except LeaseLost:
            raise
        except TrainerBroken as error:
            # Whoever has the job by now: this worker takes up no other.
            with suppress(BlobDenied, LeaseLost):
                self._put_down(entry, str(error), is_failure=True)
            return RetryLater(backoff(entry.job.failures), str(error), broken=True)
        except Exception as error:
            log.exception("task %s met a defect and is put down", task.task_id)
            reason = f"{type(error).__name__}: {error}"
            self._put_down(entry, reason, is_failure=True)
            return RetryLater(backoff(entry.job.failures), reason)
        return None

    def _produce(self, task: TrainingTask, entry: Entry, lease: Lease, stop: StopSignal) -> None:
        self._fail_fast(entry.job)
        entry.apply(entry.job.start())
        started = self.clock.monotonic()

        known, native = entry.job.parameters, self.trainer.native_resolution
        resolution = known.resolution if known else task.requested.named.get("resolution", native)
        images = fetch_images(
            task.images, resolution, self.blobs, self.inspector, self.config, stop
        )
        images.require(self.config.min_images)
        in_an_epoch = tuple(image for image in images.usable for _ in range(image.repeats))

        parameters = known or task.requested.resolve(
            image_count=len(in_an_epoch), native_resolution=native
        )
        plan = TrainingPlan(
            style_id=task.style_id,
            images=in_an_epoch,
            tags=task.tags,
            parameters=parameters,
            created_at=task.created_at,
        )
        alone = entry.job.failures >= self.config.max_shared_failures
        batch_key = None if alone else self.trainer.batch_key(parameters)
        with (
            self.slots.taken(batch_key, stop, lambda: entry.apply(entry.job.await_slot())),
            self._session(plan, entry) as session,
        ):
            loop = TrainingLoop(
                blobs=self.blobs,
                notifier=self.notifier,
                clock=self.clock,
                keys=self.keys,
                config=self.config,
                uploads=self.uploads,
                lease=lease,
            )
            loop.run(session, entry, stop)
            last, best = session.history[-1], best_epoch(session.history)
            metric = TrainingMetric(
                last.loss, last.epoch, session.total_steps, best.epoch if best else None
            )
            trained = entry.job.finish_training(metric)
            self._retry(lambda: entry.apply(trained), stop)

            self._hold(lease, stop)
            artifact = self._upload(session.weights(), task.style_id, stop)
            stored = entry.job.store(artifact)
            self._retry(lambda: entry.apply(stored), stop)
            if stop.reason is None:
                write = ReportWriter(
                    blobs=self.blobs,
                    clock=self.clock,
                    keys=self.keys,
                    reporter=self.reporter,
                    base=self.trainer.base,
                )
                seconds = self.clock.monotonic() - started
                write(session, task, plan, images, entry.job, seconds, stop)

    def _fail_fast(self, job: TrainingJob) -> None:
        if cancellation_requested(job.task_id, self.blobs, self.keys):
            raise TrainingFailed(CANCELLED)
        if job.failures >= self.config.max_failures:
            message = (
                f"The training broke off {job.failures} times for a reason on our side. "
                "Please try again later."
            )
            raise TrainingFailed(Failure(FailureCode.TRAINING_FAILED, message))

    @contextmanager
    def _session(self, plan: TrainingPlan, entry: Entry) -> Iterator[TrainingSession]:
        """A session that goes on from the job's checkpoint, where there is a usable one."""
        entry.apply(entry.job.begin_training(plan.parameters, len(plan.images)))
        with ExitStack() as stack:
            try:
                opened = self.trainer.open(plan, self._checkpoint(entry.job))
                session = stack.enter_context(opened)
            except (CheckpointRejected, BlobMissing, BlobTooLarge) as error:
                log.warning("starting over, the checkpoint cannot be used: %s", error)
                entry.job = entry.job.discard_checkpoint()
                session = stack.enter_context(self.trainer.open(plan, None))
            yield session

    def _checkpoint(self, job: TrainingJob) -> bytes | None:
        if job.checkpoint is None:
            return None
        return self.blobs.get(job.checkpoint.location, max_bytes=MAX_CHECKPOINT_BYTES).data

    def _check_record(self, job: TrainingJob, at: Location) -> None:
        """Announce no weights but ours, whatever the record says."""
        if job.artifact is not None and not self.keys.is_weights(job.artifact.location):
            where = ValueError(f"weights at {job.artifact.location}")
            raise RecordDamaged(at, where)

    def _upload(self, weights: bytes, style_id: int, stop: StopSignal) -> Artifact:
        at = self.keys.weights(style_id)
        self._retry(lambda: self.blobs.put(at, weights), stop)
        return Artifact(at, hashlib.sha256(weights).hexdigest(), len(weights))

    def _put_down(self, entry: Entry, reason: str, *, is_failure: bool) -> None:
        if entry.job.state not in ACTIVE:
            return
        try:
            entry.apply(entry.job.interrupt(reason, is_failure=is_failure))
        except Unavailable as error:
            log.warning("the journal still shows the job as running: %s", error)

    def _tidy(self, job: TrainingJob) -> None:
        tidy(job, self.blobs, self.keys, self.config.keep_checkpoints)

    def _hold(self, lease: Lease, stop: StopSignal) -> None:
        """See to it that the job is ours for another term: what follows is dear to repeat."""
        self._retry(lease.renew, stop)

    def _retry(self, call: Callable[[], object], stop: StopSignal) -> None:
        """Wait for a store that is away: what the call is about would be dear to do again."""
        retry(call, self.clock, stop, self.config.upload_timeout)

    def _lease(self, task: TrainingTask) -> Lease:
        at = self.keys.lease(task.task_id)
        return Lease(self.blobs, at, self.worker, self.config.lease, self.clock)
