"""The way of one task, from its message to its announcement."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from application.announce import Announcer
from application.cancellation import cancellation_requested
from application.drive_session import Driver
from application.gather_pictures import PicturesDenied, gather_pictures
from application.journal import Entry, Journal
from application.layout import Layout
from application.learning_curve import best_epoch
from application.lease import Lease, LeaseLost
from application.patience import backoff, insist
from application.ports import (
    BlobDenied,
    BlobMissing,
    BlobStore,
    CheckpointRejected,
    Clock,
    Notifier,
    PictureInspector,
    Reporter,
    Trainer,
    TrainerBroken,
    TrainingPlan,
    TrainingSession,
    Unavailable,
)
from application.retention import tidy
from application.rules import Rules
from application.seats import Seats
from application.settlement import (
    DeadLetter,
    Done,
    HandBack,
    RetryLater,
    Settlement,
    settlement_after,
)
from application.stop import Stopped, StopReason, StopSignal
from application.style_report import ReportWriter
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.job import ACTIVE, UNDECIDED, TrainingJob
from domain.results import Artifact, TrainingMetric
from domain.task import TrainingTask

log = logging.getLogger(__name__)

CANCELLED = Failure(FailureCode.CANCELLED, "The training was cancelled.")


@dataclass(frozen=True, kw_only=True)
class RunTraining:
    """Carries a task as far as it will go, from wherever an earlier attempt left it."""

    blobs: BlobStore
    notifier: Notifier
    announcer: Announcer
    trainer: Trainer
    inspector: PictureInspector
    reporter: Reporter
    clock: Clock
    journal: Journal
    layout: Layout
    rules: Rules
    worker: str
    """This worker's name in leases and journals, unlike any other's."""
    uploads: Executor
    """Where checkpoints are stored while the training goes on."""
    seats: Seats = field(default_factory=Seats)
    """Shared by all who use the trainer."""

    def __call__(self, task: TrainingTask, stop: StopSignal, retries: int = 0) -> Settlement:
        """Run the task and say what becomes of its message. Raises nothing.

        Args:
            stop: asked between two steps.
            retries: how often the message has been put aside already.
        """
        worker_stop, stop = stop, StopSignal(stop)
        at, lease = self.layout.journal(task.task_id), self._lease(task)
        fresh = TrainingJob(task_id=task.task_id, style_id=task.style_id)
        try:
            entry = self.journal.open(at, self.worker, fresh)
            if entry.job.is_terminal:
                log.info("task %s is %s already, nothing is done", task.task_id, entry.job.state)
                lease.forget()  # a crash may have left it
                self._tidy(entry.job)
                return Done()
            with lease.held(stop, over=lambda: entry.job.is_terminal):
                entry.load()
                if entry.job.state in UNDECIDED:
                    put_down = self._decide(task, entry, lease, stop)
                    if put_down is not None:
                        return put_down
                if entry.job.is_terminal:
                    return Done()
                # From here on a cancellation comes too late.
                still_ours = partial(self._hold, lease, worker_stop)
                settlement = self.announcer(entry, still_ours, lambda: lease.firm, worker_stop)
                if entry.job.is_terminal:
                    self._tidy(entry.job)
                return settlement
        except Exception as error:
            about = f"task {task.task_id}"
            return settlement_after(error, about, retries=retries, rules=self.rules, stop=stop)

    def _decide(
        self, task: TrainingTask, entry: Entry, lease: Lease, stop: StopSignal
    ) -> Settlement | None:
        """Bring the job to its outcome, weights or failure; or put it down and say how."""
        if entry.job.state in ACTIVE:
            setback = not entry.job.waits
            entry.apply(entry.job.interrupt("its worker was lost", setback=setback))
        try:
            self._produce(task, entry, lease, stop)
        except TrainingFailed as error:
            if error.failure.retryable:
                entry.apply(entry.job.interrupt(error.failure.message, setback=True))
                return RetryLater(backoff(entry.job.setbacks), str(error))
            entry.apply(entry.job.give_up(error.failure))
        except Stopped as stopped:
            if stopped.reason is StopReason.LEASE_LOST:
                raise LeaseLost("another worker has taken the job over") from None
            if stopped.reason is StopReason.SHUTDOWN:
                entry.apply(entry.job.interrupt("its worker shut down", setback=False))
                return HandBack()
            entry.apply(entry.job.give_up(CANCELLED))
        except PicturesDenied as error:
            self._put_down(entry, str(error), setback=False)
            return DeadLetter(str(error))
        except (Unavailable, BlobDenied) as error:
            self._put_down(entry, str(error), setback=False)
            raise
        except LeaseLost:
            raise
        except TrainerBroken as error:
            # Whoever has the job by now: this worker takes up no other.
            with suppress(BlobDenied, LeaseLost):
                self._put_down(entry, str(error), setback=True)
            return RetryLater(backoff(entry.job.setbacks), str(error), broken=True)
        except Exception as error:
            log.exception("task %s met a defect and is put down", task.task_id)
            reason = f"{type(error).__name__}: {error}"
            self._put_down(entry, reason, setback=True)
            return RetryLater(backoff(entry.job.setbacks), reason)
        return None

    def _produce(self, task: TrainingTask, entry: Entry, lease: Lease, stop: StopSignal) -> None:
        self._refuse_hopeless(entry.job)
        entry.apply(entry.job.start())
        started = self.clock.monotonic()

        pictures = gather_pictures(
            task.images, self.blobs, self.inspector, stop, self.rules.fetch_concurrency
        )
        pictures.require(self.rules.fewest_pictures)

        parameters = entry.job.parameters or task.requested.resolve(
            picture_count=len(pictures.usable), native_resolution=self.trainer.native_resolution
        )
        plan = TrainingPlan(
            style_id=task.style_id,
            pictures=pictures.usable,
            tags=task.tags,
            parameters=parameters,
            created_at=task.created_at,
        )
        alone = entry.job.setbacks >= self.rules.setbacks_in_company
        kind = None if alone else self.trainer.kind(parameters)
        with (
            self.seats.taken(kind, stop, lambda: entry.apply(entry.job.await_seat())),
            self._session(plan, entry) as session,
        ):
            driver = Driver(
                blobs=self.blobs,
                notifier=self.notifier,
                clock=self.clock,
                layout=self.layout,
                rules=self.rules,
                uploads=self.uploads,
                lease=lease,
            )
            driver.drive(session, entry, stop)
            last, best = session.history[-1], best_epoch(session.history)
            metric = TrainingMetric(
                last.loss, last.epoch, session.total_steps, best.epoch if best else None
            )
            trained = entry.job.finish_training(metric)
            self._insist(lambda: entry.apply(trained), stop)

            self._hold(lease, stop)
            artifact = self._upload(session.weights(), task.style_id, stop)
            stored = entry.job.store(artifact)
            self._insist(lambda: entry.apply(stored), stop)
            if stop.reason is None:
                write = ReportWriter(
                    blobs=self.blobs,
                    clock=self.clock,
                    layout=self.layout,
                    reporter=self.reporter,
                    base=self.trainer.base,
                )
                seconds = self.clock.monotonic() - started
                write(session, task, plan, pictures, entry.job, seconds, stop)

    def _refuse_hopeless(self, job: TrainingJob) -> None:
        if cancellation_requested(job.task_id, self.blobs, self.layout):
            raise TrainingFailed(CANCELLED)
        if job.setbacks >= self.rules.most_setbacks:
            message = (
                f"The training broke off {job.setbacks} times for a reason on our side. "
                "Please try again later."
            )
            raise TrainingFailed(Failure(FailureCode.TRAINING_FAILED, message))

    @contextmanager
    def _session(self, plan: TrainingPlan, entry: Entry) -> Iterator[TrainingSession]:
        """A session that goes on from the job's checkpoint, where there is a usable one."""
        entry.apply(entry.job.begin_training(plan.parameters, len(plan.pictures)))
        with ExitStack() as stack:
            try:
                opened = self.trainer.open(plan, self._checkpoint(entry.job))
                session = stack.enter_context(opened)
            except (CheckpointRejected, BlobMissing) as error:
                log.warning("starting over, the checkpoint cannot be used: %s", error)
                entry.job = entry.job.discard_checkpoint()
                session = stack.enter_context(self.trainer.open(plan, None))
            yield session

    def _checkpoint(self, job: TrainingJob) -> bytes | None:
        return None if job.checkpoint is None else self.blobs.get(job.checkpoint.location).data

    def _upload(self, weights: bytes, style_id: int, stop: StopSignal) -> Artifact:
        at = self.layout.weights(style_id)
        self._insist(lambda: self.blobs.put(at, weights), stop)
        return Artifact(at, hashlib.sha256(weights).hexdigest(), len(weights))

    def _put_down(self, entry: Entry, reason: str, *, setback: bool) -> None:
        if entry.job.state not in ACTIVE:
            return
        try:
            entry.apply(entry.job.interrupt(reason, setback=setback))
        except Unavailable as error:
            log.warning("the journal still shows the job as running: %s", error)

    def _tidy(self, job: TrainingJob) -> None:
        tidy(job, self.blobs, self.layout, self.rules.keep_checkpoints)

    def _hold(self, lease: Lease, stop: StopSignal) -> None:
        """See to it that the job is ours for another term: what follows is dear to repeat."""
        self._insist(lease.renew, stop)

    def _insist(self, call: Callable[[], object], stop: StopSignal) -> None:
        """Wait for a store that is away: what the call is about would be dear to do again."""
        insist(call, self.clock, stop, self.rules.upload_patience)

    def _lease(self, task: TrainingTask) -> Lease:
        at = self.layout.lease(task.task_id)
        return Lease(self.blobs, at, self.worker, self.rules.lease, self.clock)
