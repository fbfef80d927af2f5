"""All metrics of a worker by name, in base units by Prometheus' conventions."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from domain.failure import FailureCode
from domain.job import PHASES

log = logging.getLogger(__name__)

PREFIX = "style_trainer"
IDLE = "idle"
FIRST_SLOT = 0
RESULTS = ("completed", "failed", "cancelled", "interrupted")

_JOB_SECONDS = (30, 60, 120, 300, 600, 1200, 1800, 2700, 3600, 5400, 7200, 10800)
_PHASE_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_CALL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of one worker, on their own registry.

    Args:
        worker: this worker's name.
        version: of the program.
    """

    def __init__(self, worker: str, version: str) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace=PREFIX, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, namespace=PREFIX, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(
                name, text, labels, namespace=PREFIX, buckets=buckets, registry=registry
            )

        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        gauge("worker_info", "This worker and its version.", "worker", "version").labels(
            worker, version
        ).set(1)

        # Jobs.
        self.attempts = counter("job_attempts", "Attempts started.", "resumed")
        self.jobs = counter("jobs", "Attempts that ended, by result and code.", "result", "code")
        self.job_seconds = histogram(
            "job_duration_seconds", "Duration of an attempt.", _JOB_SECONDS, "result"
        )
        self.phase_seconds = histogram(
            "phase_duration_seconds", "Time a job spent in a phase.", _PHASE_SECONDS, "phase"
        )
        self.active_jobs = gauge("active_jobs", "Jobs that the worker runs now.")
        self.phase = gauge(
            "phase", "1 for the phase of the slot's job, 0 for the other phases.", "slot", "phase"
        )
        self.epoch = gauge("job_epoch", "Finished epochs of the slot's job.", "slot")
        self.epochs = gauge("job_epochs", "Total epochs of the slot's job.", "slot")
        self.progress = gauge(
            "job_progress_ratio", "Finished share of the slot's job's steps, 0 to 1.", "slot"
        )
        self.loss = gauge("job_loss", "Mean loss of the last epoch of the slot's job.", "slot")
        self.speed = gauge(
            "job_steps_per_second",
            "Steps per second of the slot's job over the last minute.",
            "slot",
        )
        self.time_left = gauge(
            "job_time_left_seconds",
            "Time left of the slot's job, estimated from its speed.",
            "slot",
        )
        self.steps = counter("steps", "Training steps run.", "slot")
        self.checkpoints = counter("checkpoints", "Checkpoints stored.")
        self.failures = gauge(
            "job_failures", "Failures of the last interrupted job; 0 once another attempt starts."
        )
        self.runs = counter("runs", "Processed messages, by settlement.", "settlement")

        # The queue.
        self.deliveries = counter("deliveries", "Messages received from the queue.")
        self.redeliveries = counter("redeliveries", "Redelivered messages.")
        self.settlements = counter(
            "settlements",
            "Deliveries settled, by outcome; result lost: the broker had requeued the delivery.",
            "outcome",
            "result",
        )
        self.queue_errors = counter(
            "queue_errors", "Receives that failed because the broker was unavailable."
        )
        self.queue_messages = gauge(
            "queue_messages",
            "Messages ready for delivery; for a spool folder, also delayed ones.",
            "queue",
        )
        self.queue_up = gauge("queue_up", "1 when the last count of messages succeeded.")

        # The store, the lease in it, the backend.
        self.read_bytes = counter("storage_read_bytes", "Bytes read from the store.")
        self.written_bytes = counter("storage_written_bytes", "Bytes written to the store.")
        self.storage_calls = counter(
            "storage_calls",
            "Calls to the store, by result; fetch: read of an image, caption or initial LoRA.",
            "operation",
            "result",
        )
        self.storage_seconds = histogram(
            "storage_call_duration_seconds",
            "Duration of calls to the store.",
            _CALL_SECONDS,
            "operation",
        )
        self.lease_writes = counter(
            "lease_writes", "Writes of leases (acquire, renew, release), by result.", "result"
        )
        self.lease_expiry = gauge(
            "lease_expiry_timestamp_seconds",
            "When the lease of the slot's job expires unless it is renewed, in Unix time.",
            "slot",
        )
        self.webhooks = counter(
            "webhook_calls",
            "Calls to the backend, by result; gone: 404, as for a deleted style.",
            "call",
            "result",
        )
        self.webhook_seconds = histogram(
            "webhook_duration_seconds", "Duration of calls to the backend.", _CALL_SECONDS, "call"
        )
        self._show_zeros()

    def _show_zeros(self) -> None:
        """Initialise series to 0; otherwise Prometheus sees no rate for the first event."""
        for result in RESULTS:
            self.job_seconds.labels(result)
        for code in FailureCode:
            result = "cancelled" if code is FailureCode.CANCELLED else "failed"
            self.jobs.labels(result, code)
        self.jobs.labels("completed", "none")
        self.jobs.labels("interrupted", "none")
        for settlement in ("done", "retry_later", "dead_letter", "requeue"):
            self.runs.labels(settlement)
        for operation in ("get", "fetch", "put", "delete", "list"):
            for result in ("ok", "unavailable", "denied", "error"):
                self.storage_calls.labels(operation, result)
            self.storage_seconds.labels(operation)
        for phase in PHASES:
            self.phase_seconds.labels(phase)
        for outcome in ("acknowledged", "retried", "dead_lettered", "requeued"):
            self.settlements.labels(outcome, "ok")
            self.settlements.labels(outcome, "lost")
        for call in ("progress", "completed", "failed"):
            for result in ("ok", "unavailable", "gone", "refused"):
                self.webhooks.labels(call, result)
            self.webhook_seconds.labels(call)
        for result in ("ok", "superseded", "unavailable"):
            self.lease_writes.labels(result)
        for resumed in ("true", "false"):
            self.attempts.labels(resumed)
        self.steps.labels(FIRST_SLOT)
        self.clear_slot(FIRST_SLOT)

    def show_phase(self, slot: int, current: str) -> None:
        """Set the phase of the slot's job."""
        for phase in (IDLE, *PHASES):
            self.phase.labels(slot, phase).set(phase == current)

    def clear_slot(self, slot: int) -> None:
        """Clear the gauges of a slot without a job.

        The first slot stays visible as idle. The other slots, and every slot's lease, are shown
        only while they have a job.
        """
        _remove(self.lease_expiry, slot)
        gauges = (self.epoch, self.epochs, self.progress, self.speed, self.time_left, self.loss)
        if slot == FIRST_SLOT:
            self.show_phase(slot, IDLE)
            for gauge in gauges:
                gauge.labels(slot).set(math.nan if gauge is self.loss else 0)
            return
        for gauge in gauges:
            _remove(gauge, slot)
        for phase in (IDLE, *PHASES):
            _remove(self.phase, slot, phase)


def _remove(gauge: Gauge, *labels: object) -> None:
    with suppress(KeyError):  # it was never set; only older releases of the library raise
        gauge.remove(*labels)


def suppress_errors(record: Callable[[], object]) -> None:
    """Record a measurement. An error is not raised: it must not end a job."""
    try:
        record()
    except Exception:
        log.exception("a metric was not recorded")


@contextmanager
def record_outcome(
    names: Mapping[type[Exception], str], record: Callable[[str], object]
) -> Iterator[None]:
    """Record the outcome of the with-block: ``ok``, the name of the error's kind, or ``error``."""
    result = "error"
    try:
        yield
        result = "ok"
    except Exception as error:
        result = result_of(error, names)
        raise
    finally:
        suppress_errors(lambda: record(result))


def result_of(error: Exception | None, names: Mapping[type[Exception], str]) -> str:
    """The name of the error's kind: ``ok`` for None, ``error`` for a kind without a name."""
    if error is None:
        return "ok"
    return next((name for kind, name in names.items() if isinstance(error, kind)), "error")
