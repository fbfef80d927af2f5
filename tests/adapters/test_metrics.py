"""The metrics of a whole job; measuring never changes the job."""

from __future__ import annotations

import logging
import math
import re
import sys
import threading
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import pytest
from prometheus_client import generate_latest

from adapters.common.gpu_reading import GpuReading
from adapters.memory import ManualClock, MemoryQueue
from adapters.metrics.calls import MeteredBlobStore, MeteredNotifier, MeteredQueue
from adapters.metrics.gpus import GpuCollector
from adapters.metrics.instruments import Metrics, suppress_errors
from adapters.metrics.jobs import JobMetrics
from adapters.metrics.queue import DepthGauges
from application.event_bus import MessageSettled
from application.lease import LeaseHeld, LeaseTerms
from application.ports import (
    BlobMissing,
    BlobUnavailable,
    Delivery,
    DeliveryLost,
    IfAbsent,
    NotifierRejected,
    NotifierUnavailable,
    QueueUnavailable,
    StyleGone,
)
from application.settlement import Ack, Requeue, RetryLater
from application.stop_signal import StopReason, StopSignal
from domain.events import JobFailed, JobInterrupted, JobStarted, ProgressMade, TrainingBegan
from domain.failure import Failure, FailureCode
from domain.location import Location
from domain.parameters import TrainingParameters
from domain.progress import Progress
from domain.task import TrainingTask
from tests.application.world import CONFIG, World, a_task, received, settled

IDS: Any = {"task_id": "a", "style_id": 7}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("worker-1", "1.2.3")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"style_trainer_{name}", labels)


def run_a_job(metrics: Metrics, world: World, stop: StopSignal | None = None, **named: Any) -> Any:
    listener = JobMetrics(metrics, world.clock.monotonic)
    blobs = MeteredBlobStore(world.blobs, metrics, world.clock)
    use_case = world.worker(
        blobs=blobs,
        notifier=MeteredNotifier(world.notifier, metrics, world.clock.monotonic),
        events=listener,
    )
    task = a_task(**named)
    listener(received(task))
    settlement = use_case(task, stop or StopSignal())
    listener(settled(task, settlement))
    return settlement


def test_a_job_that_succeeds_is_counted_and_timed(metrics: Metrics) -> None:
    world = World()
    assert run_a_job(metrics, world) == Ack()
    steps = 75  # 25 epochs of ten images, four at a time; each step takes a second
    assert value(metrics, "jobs_total", result="completed", code="none") == 1
    assert value(metrics, "job_attempts_total", resumed="false") == 1
    assert value(metrics, "job_duration_seconds_count", result="completed") == 1
    assert value(metrics, "job_duration_seconds_sum", result="completed") == steps
    for phase in ("preparing", "training", "uploading", "announcing"):
        assert value(metrics, "phase_duration_seconds_count", phase=phase) == 1
    assert value(metrics, "phase_duration_seconds_sum", phase="training") == steps
    assert value(metrics, "steps_total", slot="0") == steps
    assert value(metrics, "checkpoints_total") == 3
    assert value(metrics, "runs_total", settlement="done") == 1
    assert value(metrics, "webhook_calls_total", call="completed", result="ok") == 1
    progress = value(metrics, "webhook_calls_total", call="progress", result="ok")
    assert progress == len(world.notifier.calls) - 1 > 0
    assert (value(metrics, "lease_writes_total", result="ok") or 0) > steps / 4
    read = value(metrics, "storage_read_bytes_total")
    assert read is not None
    assert read >= sum(len(f"image {n}") for n in range(10))
    assert (value(metrics, "storage_written_bytes_total") or 0) > len(world.weights())
    fetched = value(metrics, "storage_calls_total", operation="fetch", result="ok")
    assert fetched == 10, "the images; the worker's own records are not fetched"
    assert (value(metrics, "storage_calls_total", operation="get", result="ok") or 0) > 0


def test_an_idle_worker_shows_no_job(metrics: Metrics) -> None:
    run_a_job(metrics, World())
    assert value(metrics, "phase", slot="0", phase="idle") == 1
    assert value(metrics, "phase", slot="0", phase="training") == 0
    assert value(metrics, "job_epochs", slot="0") == 0
    assert math.isnan(value(metrics, "job_loss", slot="0") or 0)
    assert value(metrics, "active_jobs") == 0


def test_an_interrupted_job_counts_as_a_resumed_attempt(metrics: Metrics) -> None:
    world, stop = World(), StopSignal()
    with world.clock.every(30.0, lambda: stop.request(StopReason.SHUTDOWN)):
        assert run_a_job(metrics, world, stop) == Requeue()
    assert value(metrics, "jobs_total", result="interrupted", code="none") == 1
    assert run_a_job(metrics, world) == Ack()
    assert value(metrics, "job_attempts_total", resumed="true") == 1
    assert value(metrics, "runs_total", settlement="requeue") == 1


def test_a_failed_job_is_counted_by_its_code(metrics: Metrics) -> None:
    assert run_a_job(metrics, World(), images=3) == Ack()
    assert value(metrics, "jobs_total", result="failed", code="LOW_QUALITY_DATA") == 1
    assert value(metrics, "webhook_calls_total", call="failed", result="ok") == 1


def test_a_cancelled_job_is_no_failure(metrics: Metrics, clock: ManualClock) -> None:
    listener = JobMetrics(metrics, clock.monotonic)
    listener(JobFailed(**IDS, failure=Failure(FailureCode.CANCELLED, "stop")))
    assert value(metrics, "jobs_total", result="cancelled", code="CANCELLED") == 1


def test_a_run_that_ends_without_an_event_leaves_no_job_behind(
    metrics: Metrics, clock: ManualClock
) -> None:
    listener = JobMetrics(metrics, clock.monotonic)
    listener(JobStarted(**IDS, attempt=1, resumed_from=None))
    clock.advance(5)
    task = replace(a_task(), task_id=IDS["task_id"])
    listener(settled(task, RetryLater(60, "another worker has taken the job over")))
    assert value(metrics, "phase", slot="0", phase="idle") == 1
    assert value(metrics, "phase_duration_seconds_sum", phase="preparing") == 5
    assert value(metrics, "runs_total", settlement="retry_later") == 1


# --- several active jobs ----------------------------------------------------------------


def slots(metrics: Metrics, name: str = "phase") -> set[str]:
    """The slots in a metric's labels."""
    return {
        sample.labels["slot"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"style_trainer_{name}"
    }


def begin(listener: JobMetrics, style_id: int, *, epochs: int) -> TrainingTask:
    """Start a task and train one step."""
    task = replace(a_task(), task_id=f"task-{style_id}", style_id=style_id)
    ids: Any = {"task_id": task.task_id, "style_id": style_id}
    parameters = TrainingParameters(epochs=epochs, resolution=64)
    listener(received(task))
    listener(JobStarted(**ids, attempt=1, resumed_from=None))
    listener(TrainingBegan(**ids, parameters=parameters, image_count=10))
    progress = Progress(1, epochs, 1, epochs, loss=style_id / 10, steps_per_second=2.0)
    listener(ProgressMade(**ids, progress=progress, epoch_finished=True))
    return task


def test_a_job_is_shown_as_soon_as_it_starts(metrics: Metrics, clock: ManualClock) -> None:
    listener = JobMetrics(metrics, clock.monotonic)
    begin(listener, 1, epochs=10)
    task = replace(a_task(), task_id="task-2", style_id=2)
    listener(received(task))
    assert value(metrics, "active_jobs") == 2
    ids: Any = {"task_id": task.task_id, "style_id": task.style_id}
    parameters = TrainingParameters(epochs=10, resolution=64)
    listener(TrainingBegan(**ids, parameters=parameters, image_count=10))
    assert value(metrics, "steps_total", slot="1") == 0
    listener(JobInterrupted(**ids, reason="the store is unavailable", failures=2))
    assert value(metrics, "job_failures") == 2
    begin(listener, 3, epochs=10)
    assert value(metrics, "job_failures") == 0


def test_each_active_job_has_its_own_slot(metrics: Metrics, clock: ManualClock) -> None:
    listener = JobMetrics(metrics, clock.monotonic)
    first = begin(listener, 1, epochs=10)
    second = begin(listener, 2, epochs=20)
    assert value(metrics, "active_jobs") == 2
    for slot, epochs, loss in (("0", 10, 0.1), ("1", 20, 0.2)):
        assert value(metrics, "phase", slot=slot, phase="training") == 1
        assert value(metrics, "phase", slot=slot, phase="idle") == 0
        assert value(metrics, "job_epochs", slot=slot) == epochs
        assert value(metrics, "job_progress_ratio", slot=slot) == 1 / epochs
        assert value(metrics, "job_loss", slot=slot) == loss
        assert value(metrics, "steps_total", slot=slot) == 1
    clock.advance(3)
    listener(settled(first, Requeue()))
    clock.advance(4)
    assert value(metrics, "phase", slot="0", phase="idle") == 1
    assert value(metrics, "job_epochs", slot="0") == 0
    assert value(metrics, "job_epochs", slot="1") == 20, "the other slot keeps its value"
    begin(listener, 3, epochs=30)
    assert value(metrics, "job_epochs", slot="0") == 30, "the lowest slot that is free"
    listener(settled(second, Requeue()))
    assert value(metrics, "phase_duration_seconds_sum", phase="training") == 3 + 7


def test_a_finished_job_is_not_shown_as_active(metrics: Metrics, clock: ManualClock) -> None:
    listener = JobMetrics(metrics, clock.monotonic)
    tasks = [begin(listener, style_id, epochs=10) for style_id in (1, 2, 3)]
    assert slots(metrics) == {"0", "1", "2"}
    ids: Any = {"task_id": "task-3", "style_id": 3}
    listener(JobFailed(**ids, failure=Failure(FailureCode.GPU_OOM, "too large")))
    listener(settled(tasks[2], Ack()))
    listener(settled(tasks[1], RetryLater(60, "another worker has taken the job over")))
    for name in (
        "phase",
        "job_epoch",
        "job_loss",
        "job_steps_per_second",
        "job_time_left_seconds",
    ):
        assert slots(metrics, name) == {"0"}
    assert slots(metrics, "steps_total") == {"0", "1", "2"}, "a counter never goes back"
    assert value(metrics, "active_jobs") == 1


def test_a_lease_is_shown_while_its_job_is_active(metrics: Metrics) -> None:
    world = World()
    listener = JobMetrics(metrics, world.clock.monotonic)
    store = world.store(events=listener, config=replace(CONFIG, lease=LeaseTerms(3600.0)))
    tasks = [begin(listener, style_id, epochs=10) for style_id in (1, 2)]
    leases = [store.lease(task.task_id) for task in tasks]
    for lease in leases:
        lease.acquire(StopSignal())
    expiry = world.clock.now().timestamp() + 3600
    world.clock.advance(20)
    leases[1].renew()
    assert value(metrics, "lease_expiry_timestamp_seconds", slot="0") == expiry
    assert value(metrics, "lease_expiry_timestamp_seconds", slot="1") == expiry + 20
    listener(settled(tasks[0], Requeue()))
    leases[0].renew()
    assert slots(metrics, "lease_expiry_timestamp_seconds") == {"1"}


def test_a_duplicate_message_shows_no_second_job(metrics: Metrics, clock: ManualClock) -> None:
    listener = JobMetrics(metrics, clock.monotonic)
    task = begin(listener, 1, epochs=10)
    again = RetryLater(20, "this worker is processing another delivery of the task")
    listener(MessageSettled(task_id=None, settlement=again))
    assert value(metrics, "active_jobs") == 1
    assert value(metrics, "phase", slot="0", phase="training") == 1
    other = replace(task, task_id="task-of-another-worker")
    listener(received(other))
    assert slots(metrics) == {"0"}
    listener(settled(other, RetryLater(20, "worker x holds the lease")))
    assert value(metrics, "runs_total", settlement="retry_later") == 2


def test_jobs_of_concurrent_threads_add_up(metrics: Metrics) -> None:
    listener = JobMetrics(metrics, lambda: 0.0)
    together = threading.Barrier(4, timeout=30)

    def work(thread: int) -> None:
        together.wait()
        for number in range(50):
            style_id = 100 * thread + number
            task = begin(listener, style_id, epochs=10)
            failure = Failure(FailureCode.GPU_OOM, "too large")
            listener(JobFailed(task_id=task.task_id, style_id=style_id, failure=failure))
            listener(settled(task, Ack()))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.setswitchinterval(before)
    assert value(metrics, "jobs_total", result="failed", code="GPU_OOM") == 200
    assert value(metrics, "job_duration_seconds_count", result="failed") == 200
    assert sum(value(metrics, "steps_total", slot=slot) or 0 for slot in "0123") == 200
    assert value(metrics, "active_jobs") == 0
    assert slots(metrics) == {"0"}


# --- the decorated ports -----------------------------------------------------------------


def metered(inner: Any, metrics: Metrics, clock: ManualClock) -> MeteredBlobStore:
    return MeteredBlobStore(inner, metrics, clock)


def test_deliveries_and_settlements_are_counted(metrics: Metrics, clock: ManualClock) -> None:
    inner = MemoryQueue(clock)
    queue = MeteredQueue(inner, metrics)
    assert queue.receive(0.0) is None
    for number in range(5):
        queue.publish(b"%d" % number)
    settle = [
        queue.acknowledge,
        lambda delivery: queue.retry_later(delivery, 1.0, "later"),
        lambda delivery: queue.dead_letter(delivery, "poison", {"field": "x"}),
        queue.requeue,
    ]
    for act in settle:
        delivery = queue.receive(0.0)
        assert delivery is not None
        act(delivery)
    lost = queue.receive(0.0)
    assert lost is not None
    inner.lose_all()
    with pytest.raises(DeliveryLost):
        queue.acknowledge(lost)
    assert inner.dead[0].details == {"field": "x"}
    again = queue.receive(0.0)
    assert again is not None
    assert again.redelivered
    assert value(metrics, "deliveries_total") == 6
    assert value(metrics, "redeliveries_total") == 2, "handed back, and lost"
    for outcome in ("acknowledged", "retried", "dead_lettered", "requeued"):
        assert value(metrics, "settlements_total", outcome=outcome, result="ok") == 1
    assert value(metrics, "settlements_total", outcome="acknowledged", result="lost") == 1


class Broken:
    """Every call fails with the same error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise self.error

        return fail


DELIVERY = Delivery("1", b"{}", retries=0, redelivered=False)
AT = Location("b", "k")


@pytest.mark.parametrize(
    ("port", "call", "arguments", "named"),
    [
        ("queue", "publish", (b"{}",), {}),
        ("queue", "acknowledge", (DELIVERY,), {}),
        ("queue", "retry_later", (DELIVERY, 5.0, "busy"), {"counts": False}),
        ("queue", "dead_letter", (DELIVERY, "poison", {"field": "x"}), {}),
        ("queue", "requeue", (DELIVERY,), {}),
        ("blobs", "get", (AT,), {"max_bytes": 10}),
        ("blobs", "put", (AT, b"1"), {"content_type": "text/plain", "condition": IfAbsent()}),
        ("blobs", "delete", (AT,), {}),
        ("blobs", "list", ("b", "prefix"), {}),
        ("notifier", "progress", (7, Progress(1, 2, 1, 2)), {}),
        ("notifier", "completed", (7, "artifact", "metric", "key"), {}),
        ("notifier", "failed", (7, Failure(FailureCode.GPU_OOM, "small"), "key"), {}),
    ],
)
def test_a_measured_port_passes_calls_and_results_through(
    port: str,
    call: str,
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    metrics: Metrics,
    clock: ManualClock,
) -> None:
    inner = MagicMock()
    measured: Any = {
        "queue": MeteredQueue(inner, metrics),
        "blobs": metered(inner, metrics, clock),
        "notifier": MeteredNotifier(inner, metrics, clock.monotonic),
    }[port]
    result = getattr(measured, call)(*arguments, **named)
    original = getattr(inner, call)
    original.assert_called_once_with(*arguments, **named)
    assert result is (original.return_value if call in {"get", "put", "list"} else None)


def test_a_call_is_timed_by_the_clock(metrics: Metrics, clock: ManualClock) -> None:
    clock.advance(100)
    inner = MagicMock()
    inner.delete.side_effect = lambda _: clock.advance(3)
    inner.failed.side_effect = lambda *_: clock.advance(2)
    metered(inner, metrics, clock).delete(AT)
    failure = Failure(FailureCode.GPU_OOM, "small")
    MeteredNotifier(inner, metrics, clock.monotonic).failed("task", 7, failure)
    assert value(metrics, "storage_call_duration_seconds_sum", operation="delete") == 3
    assert value(metrics, "webhook_duration_seconds_sum", call="failed") == 2


def test_an_unavailable_broker_is_counted_and_still_an_error(metrics: Metrics) -> None:
    queue = MeteredQueue(Broken(QueueUnavailable("no connection")), metrics)
    with pytest.raises(QueueUnavailable):
        queue.receive(1.0)
    assert value(metrics, "queue_errors_total") == 1


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (BlobUnavailable("no connection"), "unavailable"),
        (BlobMissing("none"), "missing"),
        (RuntimeError("defect"), "error"),
    ],
)
def test_a_failing_store_is_counted_by_its_error_and_raises_it(
    error: Exception, result: str, metrics: Metrics, clock: ManualClock
) -> None:
    blobs = metered(Broken(error), metrics, clock)
    with pytest.raises(type(error)):
        blobs.get(Location("b", "jobs/7/journal.json"), max_bytes=10)
    assert value(metrics, "storage_calls_total", operation="get", result=result) == 1
    with pytest.raises(type(error)):
        blobs.get(Location("b", "image"), max_bytes=10)
    assert value(metrics, "storage_calls_total", operation="get", result=result) == 1
    assert value(metrics, "storage_calls_total", operation="fetch", result=result) == 1
    assert value(metrics, "storage_read_bytes_total") == 0


def test_a_lost_lease_is_counted_separately(metrics: Metrics, clock: ManualClock) -> None:
    world, listener = World(), JobMetrics(metrics, clock.monotonic)
    mine, theirs = (world.store(worker=name, events=listener).lease("x") for name in "ab")
    mine.acquire(StopSignal())
    with pytest.raises(LeaseHeld):
        theirs.acquire(StopSignal())
    assert value(metrics, "lease_writes_total", result="ok") == 1
    assert value(metrics, "lease_writes_total", result="superseded") == 1
    assert value(metrics, "active_jobs") == 0


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (NotifierUnavailable("503"), "unavailable"),
        (NotifierRejected("401"), "refused"),
        (StyleGone("404"), "gone"),
    ],
)
def test_a_failing_backend_is_counted_by_its_response(
    error: Exception, result: str, metrics: Metrics, clock: ManualClock
) -> None:
    notifier = MeteredNotifier(Broken(error), metrics, clock.monotonic)
    assert value(metrics, "webhook_calls_total", call="progress", result=result) == 0
    with pytest.raises(type(error)):
        notifier.progress(7, Progress(1, 2, 1, 2))
    assert value(metrics, "webhook_calls_total", call="progress", result=result) == 1
    assert value(metrics, "webhook_duration_seconds_count", call="progress") == 1


# --- depths and cards --------------------------------------------------------------------


def test_depths_are_gauges_while_they_can_be_counted(metrics: Metrics, clock: ManualClock) -> None:
    clock.advance(100)
    queue = MemoryQueue(clock)
    queue.publish(b"one")
    gauges = DepthGauges(queue, metrics, clock.monotonic)
    assert gauges.trouble is not None
    assert gauges.age is None
    gauges.poll()
    assert gauges.trouble is None
    for name, count in queue.depths().items():
        assert value(metrics, "queue_messages", queue=name) == count
    assert value(metrics, "queue_up") == 1
    clock.advance(7)
    assert gauges.age == 7


def test_an_unavailable_broker_leaves_no_stale_depths(
    metrics: Metrics,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = MemoryQueue(clock)
    gauges = DepthGauges(queue, metrics, clock.monotonic)
    gauges.poll()
    broken = Broken(QueueUnavailable("connection refused"))
    monkeypatch.setattr(queue, "depths", broken.depths)
    with caplog.at_level(logging.WARNING):
        gauges.poll()
        gauges.poll()
    assert len(caplog.records) == 1, "logged once, not at every poll"
    assert gauges.trouble == "connection refused"
    assert value(metrics, "queue_up") == 0
    assert b"style_trainer_queue_messages{" not in generate_latest(metrics.registry)


def test_gpus_are_read_when_the_metrics_are_scraped(metrics: Metrics) -> None:
    gpus = [GpuReading(index=0, name="NVIDIA H100", memory_used=5, utilization=0.5)]
    GpuCollector(lambda: gpus, metrics.registry)
    labels = {"gpu": "0", "model": "NVIDIA H100"}
    assert value(metrics, "gpu_memory_used_bytes", **labels) == 5
    assert value(metrics, "gpu_utilization_ratio", **labels) == 0.5
    assert value(metrics, "gpu_temperature_celsius", **labels) is None
    gpus.clear()
    assert b"gpu_" not in generate_latest(metrics.registry)


def test_unreadable_gpus_break_nothing(metrics: Metrics) -> None:
    def fail() -> list[GpuReading]:
        raise RuntimeError("NVML is confused")

    GpuCollector(fail, metrics.registry)
    assert b"style_trainer_jobs_total" in generate_latest(metrics.registry)


# --- names, and what measuring may not do ------------------------------------------------


def test_metric_names_follow_the_conventions(metrics: Metrics) -> None:
    GpuCollector(lambda: [GpuReading(index=0, name="x", power=1.0)], metrics.registry)
    for family in metrics.registry.collect():
        if not family.name.startswith("style_trainer_"):
            assert family.name.startswith(("process_", "python_")), family.name
            continue
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name), family.name
        assert family.documentation.endswith("."), family.name
        for sample in family.samples:
            if family.type == "counter" and not sample.name.endswith("_created"):
                assert sample.name.endswith("_total"), sample.name
            for label in sample.labels:
                assert label not in {"job", "instance"}, "Prometheus adds these itself"
        if family.type == "histogram":
            assert family.name.endswith("_seconds"), family.name
        for unit in ("_ms", "_milliseconds", "_percent", "_mb", "_minutes"):
            assert not family.name.endswith(unit), family.name


def test_process_metrics_are_there_and_nothing_is_on_the_global_registry(
    metrics: Metrics,
) -> None:
    from prometheus_client import REGISTRY

    assert b"process_resident_memory_bytes" in generate_latest(metrics.registry)
    assert b"style_trainer" not in generate_latest(REGISTRY)


def test_a_metric_that_fails_disturbs_no_job(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("steps", "jobs", "webhooks", "storage_calls", "lease_writes", "runs"):
        monkeypatch.setattr(metrics, name, None)
    world = World()
    assert run_a_job(metrics, world) == Ack()
    assert [call.kind for call in world.notifier.final] == ["completed"]
    assert any("a metric was not recorded" in line for line in caplog.messages)


def test_the_number_of_series_does_not_grow_with_the_jobs() -> None:
    metrics = Metrics("w", "1")
    listener = JobMetrics(metrics, lambda: 0.0)
    for style in range(50):
        ids: Any = {"task_id": f"task-{style}", "style_id": style}
        listener(JobStarted(**ids, attempt=1, resumed_from=None))
        listener(
            TrainingBegan(
                **ids, parameters=TrainingParameters(epochs=1, resolution=64), image_count=10
            )
        )
        listener(JobFailed(**ids, failure=Failure(FailureCode.GPU_OOM, f"style {style}")))
    text = generate_latest(metrics.registry).decode()
    assert "task-" not in text
    assert text.count("style_trainer_jobs_total{") == len(FailureCode) + 2


def test_suppress_errors_lets_keyboard_interrupt_through() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        suppress_errors(interrupted)
