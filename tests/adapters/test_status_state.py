"""The worker state built from events, and its bounded size."""

from __future__ import annotations

import json
import math
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from adapters.memory import ManualClock
from adapters.status_page.curve import MAX_POINTS, LossCurve
from adapters.status_page.past_jobs import RECENT_JOBS
from adapters.status_page.state import WorkerState
from application.settlement import Ack, DeadLetter, Requeue, RetryLater
from application.stop_signal import StopReason, StopSignal
from domain.events import JobCompleted, JobInterrupted, NotificationBegan, ProgressMade
from domain.failure import FailureCode
from domain.progress import Progress
from tests.application.world import TASK_ID, World, a_task, received, settled
from tests.services.status_scenes import (
    ARTIFACT,
    Scene,
    failed,
    idle,
    ids,
    side_by_side,
    task,
    training,
)


def shown(scene: Scene) -> dict[str, Any]:
    """The snapshot after encoding and decoding as JSON."""
    values: dict[str, Any] = json.loads(json.dumps(scene.worker_state.snapshot(), allow_nan=False))
    return values


def test_a_job_in_training_shows_its_progress() -> None:
    job = shown(training())["job"]
    assert job["style_id"] == 42
    assert job["attempt"] == 2
    assert job["phase"] == "training"
    assert job["progress"]["percent"] == 63
    assert job["progress"]["seconds_left"] == (200 - 127) * 12 / 2
    assert job["checkpoint"] == 120
    assert job["resumed_from"] == 40
    assert job["images"] == 12
    assert job["parameters"]["resolution"] == 512
    phases = {phase["name"]: phase["seconds"] for phase in job["phases"]}
    assert phases["preparing"] == pytest.approx(3.4)
    assert phases["training"] == pytest.approx(6.0 * 87 + 2)
    assert phases["uploading"] is None


def test_the_curve_of_a_resumed_job_continues_at_its_checkpoint() -> None:
    epochs = [epoch for epoch, _ in shown(training())["job"]["curve"]]
    assert epochs == list(range(1, 128)), "epochs 41 to 46 are there once"


def test_every_outcome_is_among_the_recent_jobs_newest_first() -> None:
    recent = shown(training())["recent"]
    assert [job["result"] for job in recent] == [
        "retry later",
        "interrupted",
        "failed",
        "completed",
    ]
    assert recent[2]["code"] == "LOW_QUALITY_DATA"
    assert recent[1]["message"] == "its worker shut down"
    assert recent[3]["seconds"] == pytest.approx(3.4 + 200 * 6 + 8)


def test_a_worker_between_jobs_shows_its_last_one() -> None:
    snapshot = shown(failed())
    assert snapshot["job"] is None
    assert snapshot["worker"]["state"] == "idle"
    assert snapshot["last"]["result"] == "failed"
    assert snapshot["last"]["curve"]


def test_a_worker_that_writes_a_report_is_not_idle() -> None:
    scene = Scene()
    scene.worker_state.model = "sd15"
    scene.start(5)
    scene.publish(JobCompleted(**ids(5), artifact=ARTIFACT))
    assert shown(scene)["worker"]["state"] == "reporting"
    scene.publish(settled(task(5), Ack()))
    assert shown(scene)["worker"]["state"] == "idle"


def test_a_cancelled_job_is_cancelled_and_not_failed() -> None:
    scene = Scene()
    scene.start(5)
    scene.fail(5, FailureCode.CANCELLED, "The training was cancelled.")
    assert shown(scene)["recent"][0]["result"] == "cancelled"


def test_states_of_a_worker_without_a_job() -> None:
    stop = StopSignal()
    worker_state = WorkerState("w", "1", ManualClock(), lambda: stop.reason is not None)
    states = [worker_state.snapshot()["worker"]["state"]]
    worker_state.model = "sd15"
    states.append(worker_state.snapshot()["worker"]["state"])
    worker_state(received(task(1)))
    states.append(worker_state.snapshot()["worker"]["state"])
    stop.request(StopReason.SHUTDOWN)
    states.append(worker_state.snapshot()["worker"]["state"])
    assert states == ["starting", "idle", "preparing", "stopping"]


def test_a_job_whose_backend_is_unavailable_is_retried_later_with_the_reason() -> None:
    scene = Scene()
    scene.publish(received(task(6)))
    scene.publish(NotificationBegan(**ids(6), call=2))
    scene.publish(settled(task(6), RetryLater(60.0, "the backend returned 503")))
    snapshot = shown(scene)
    assert snapshot["job"] is None
    assert snapshot["recent"][0]["result"] == "retry later"
    assert snapshot["recent"][0]["message"] == "the backend returned 503"


def test_a_task_of_another_worker_takes_one_line_however_often_it_comes() -> None:
    scene = training()
    for _ in range(5):
        scene.publish(received(task(77)))
        scene.publish(settled(task(77), RetryLater(60.0, "worker b holds the lease")))
    recent = shown(scene)["recent"]
    assert [job["style_id"] for job in recent[:2]] == [77, 40]


def test_an_earlier_outcome_keeps_its_line_when_the_task_is_retried_later() -> None:
    scene = Scene()
    wait = RetryLater(60.0, "worker b holds the lease")
    scene.publish(received(task(6)))
    scene.publish(settled(task(6), Requeue()))
    scene.publish(received(task(6)))
    scene.publish(settled(task(6), wait))
    scene.start(6)
    scene.publish(settled(task(6), wait))
    scene.publish(received(task(6)))
    scene.publish(settled(task(6), wait))
    lines = [(job["result"], job["attempt"]) for job in shown(scene)["recent"]]
    retry_later = "retry later"
    assert lines == [
        (retry_later, None),
        (retry_later, 1),
        (retry_later, None),
        ("requeued", None),
    ]


def test_a_duplicate_message_of_a_finished_job_is_no_job() -> None:
    scene = Scene()
    scene.publish(received(task(6)))
    scene.publish(settled(task(6), Ack()))
    assert shown(scene)["recent"] == []


def test_a_dead_letter_is_shown_with_its_reason() -> None:
    scene = Scene()
    scene.start(8)
    scene.publish(settled(task(8), DeadLetter("access to s3://models is denied")))
    assert shown(scene)["recent"][0]["result"] == "dead letter"


def test_an_interrupted_job_that_is_dead_lettered_is_a_dead_letter() -> None:
    scene = Scene()
    scene.start(8)
    scene.publish(
        JobInterrupted(task_id=task(8).task_id, style_id=8, reason="access is denied", failures=0)
    )
    scene.publish(settled(task(8), DeadLetter("access to s3://models is denied")))
    status = shown(scene)
    assert [job["result"] for job in status["recent"]] == ["dead letter"]
    assert status["last"]["message"] == "access to s3://models is denied"


def test_a_run_of_the_use_case_leaves_a_completed_job_in_the_state() -> None:
    world = World()
    worker_state = WorkerState("w", "1", world.clock)
    worker_state(received(a_task()))
    settlement = world.worker(events=worker_state)(a_task(), StopSignal())
    worker_state(settled(a_task(), settlement))
    snapshot = worker_state.snapshot()
    assert snapshot["job"] is None
    assert snapshot["last"]["task_id"] == TASK_ID
    assert snapshot["last"]["result"] == "completed"
    assert [epoch for epoch, _ in snapshot["last"]["curve"]] == list(range(1, 26))


# --- several active jobs ----------------------------------------------------------------


def test_active_jobs_are_listed_in_order_of_start_and_the_first_is_shown() -> None:
    snapshot = shown(side_by_side())
    assert [job["style_id"] for job in snapshot["jobs"]] == [42, 43, 44]
    assert [job["phase"] for job in snapshot["jobs"]] == ["training", "training", "preparing"]
    assert [job["progress"] and job["progress"]["epoch"] for job in snapshot["jobs"]] == [
        127,
        52,
        None,
    ]
    assert snapshot["job"]["style_id"] == 42
    assert len(snapshot["job"]["curve"]) == 127
    assert snapshot["worker"]["state"] == "training"
    listed = set(snapshot["jobs"][0])
    assert listed < set(snapshot["job"]), "in short"
    assert not listed & {"curve", "parameters"}


def test_a_single_job_is_listed() -> None:
    snapshot = shown(training())
    assert [job["task_id"] for job in snapshot["jobs"]] == [snapshot["job"]["task_id"]]
    assert shown(failed())["jobs"] == []


def test_any_active_job_can_be_requested() -> None:
    worker_state = side_by_side().worker_state
    job = worker_state.snapshot(task(43).task_id)["job"]
    assert (job["style_id"], job["attempt"], job["checkpoint"]) == (43, 2, 50)
    assert worker_state.snapshot("another")["job"]["style_id"] == 42


def test_a_finished_job_leaves_the_others_active() -> None:
    scene = side_by_side()
    scene.complete(42, previews=False)
    snapshot = shown(scene)
    assert [job["style_id"] for job in snapshot["jobs"]] == [43, 44]
    assert snapshot["job"]["style_id"] == 43
    assert snapshot["recent"][0]["style_id"] == snapshot["last"]["style_id"] == 42
    scene.publish(settled(task(44), RetryLater(60.0, "the store is unavailable")))
    snapshot = shown(scene)
    assert [job["style_id"] for job in snapshot["jobs"]] == [43]
    assert snapshot["recent"][0]["message"] == "the store is unavailable"


def test_jobs_interrupted_together_continue_their_own_curves() -> None:
    scene = Scene()
    for style_id in (1, 2):
        scene.start(style_id)
        scene.train(style_id, until=10 * style_id)
    for style_id in (1, 2):
        scene.interrupt(style_id)
    for style_id in (1, 2):
        scene.start(style_id, attempt=2, resumed_from=10 * style_id)
    for style_id in (1, 2):
        curve = scene.worker_state.snapshot(task(style_id).task_id)["job"]["curve"]
        assert [epoch for epoch, _ in curve] == list(range(1, 10 * style_id + 1))


@pytest.mark.parametrize(("seen", "drawn"), [(0, []), (9, [1, 2, 3, 4, 5])])
def test_a_resumed_jobs_curve_has_every_epoch_seen_and_stored(seen: int, drawn: list[int]) -> None:
    scene = Scene()
    if seen:
        scene.start(1)
        scene.train(1, until=seen)
        scene.interrupt(1)
    scene.start(1, attempt=2, resumed_from=5)
    job = shown(scene)["job"]
    assert [epoch for epoch, _ in job["curve"]] == drawn
    assert (job["resumed_from"], job["checkpoint"], job["phase"]) == (5, 5, "preparing")


def test_events_of_concurrent_threads_reach_their_own_job() -> None:
    scene = Scene()
    together = threading.Barrier(3, timeout=30)

    def work(style_id: int) -> None:
        scene.publish(received(task(style_id)))
        for epoch in range(1, 300):
            together.wait()
            progress = Progress(epoch, 1000, epoch, 1000, loss=style_id / 10)
            scene.publish(ProgressMade(**ids(style_id), progress=progress, epoch_finished=True))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    workers = [threading.Thread(target=work, args=(style_id,)) for style_id in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.setswitchinterval(before)
    assert len(shown(scene)["jobs"]) == 3
    for style_id in (1, 2, 3):
        curve = scene.worker_state.snapshot(task(style_id).task_id)["job"]["curve"]
        assert curve == [(epoch, style_id / 10) for epoch in range(1, 300)]


# --- small, and from any thread ----------------------------------------------------------


def test_a_thinned_curve_keeps_its_ends_and_shape() -> None:
    curve = LossCurve()
    for epoch in range(1, 10_001):
        curve.add(epoch, 1 / epoch)
    points = curve.points
    assert len(points) <= MAX_POINTS + 1
    assert points[-1] == (10_000, 1 / 10_000)
    gaps = {after[0] - before[0] for before, after in pairwise(points[:-1])}
    assert gaps == {points[0][0]}, "evenly spread, from the beginning on"
    assert all(loss == 1 / epoch for epoch, loss in points)


def test_a_run_that_rolls_back_draws_its_epochs_once() -> None:
    curve = LossCurve()
    for epoch, loss in [(1, 0.5), (2, 0.4), (3, 9.0), (2, 0.3), (3, 0.2)]:
        curve.add(epoch, loss)
    assert curve.points == [(1, 0.5), (2, 0.3), (3, 0.2)]


def test_a_nan_loss_is_not_drawn() -> None:
    curve = LossCurve()
    for loss in (0.5, math.nan, math.inf):
        curve.add(1, loss)
    assert curve.points == [(1, 0.5)]


def test_only_a_few_recent_jobs_are_kept() -> None:
    scene = Scene()
    for style_id in range(1000):
        scene.start(style_id)
        scene.complete(style_id, previews=False)
    assert len(shown(scene)["recent"]) == RECENT_JOBS


def test_concurrent_reads_see_a_consistent_state() -> None:
    scene = Scene()
    scene.start(1)
    scene.train(1, until=1)
    torn: list[Any] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            job = scene.worker_state.snapshot()["job"]
            if job["progress"]["epoch"] != job["curve"][-1][0]:
                torn.append(job)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for epoch in range(2, 400):
        progress = Progress(epoch, 1000, epoch, 1000, loss=0.1)
        scene.worker_state(ProgressMade(**ids(1), progress=progress, epoch_finished=True))
    over.set()
    for reader in readers:
        reader.join()
    sys.setswitchinterval(before)
    assert not torn


def test_a_finished_job_shows_where_its_time_went() -> None:
    world = World()
    worker_state = WorkerState("a worker", "1.0", world.clock)
    world.clock.advance(20.0)
    worker_state.model = "a base"
    published = replace(a_task(), created_at=world.clock.now())
    world.clock.advance(3.0)
    worker_state(received(published))
    world.worker(events=worker_state)(published, StopSignal())
    snapshot = worker_state.snapshot()
    assert snapshot["worker"]["ready_after"] == 20.0
    parts = {part["name"]: part["seconds"] for part in snapshot["recent"][0]["parts"]}
    assert list(parts) == [
        "queue", "fetch", "encode", "first step", "steps", "checkpoints", "previews", "upload",
        "call",
    ]  # fmt: skip
    assert parts["queue"] == 3.0
    assert parts["steps"] == 25 * 3 - 1


def test_previews_drawn_after_the_end_of_a_job_show_no_active_job() -> None:
    scene = idle()
    scene.start(41)
    scene.train(41)
    scene.complete(41, previews=False)
    scene.draw(41, 200)
    assert scene.worker_state.snapshot()["jobs"] == []
    assert scene.metrics.registry.get_sample_value("style_trainer_active_jobs") == 0
    assert (scene.previews.shown(41) or {})["epoch"] == 200
