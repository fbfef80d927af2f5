"""The backend is notified once, also if its response is late or the worker is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from adapters.clock import SystemClock
from adapters.schemas.bodies import complete_body, failed_body, progress_body
from adapters.webhook.notifier import Bodies, WebhookNotifier
from adapters.webhook.options import WebhookOptions
from application.journal import JobRecord
from application.notify_outcome import OutcomeNotifier
from application.settlement import Ack
from application.stop_signal import StopSignal
from domain.job import JobState, TrainingJob
from domain.location import Location
from domain.parameters import RequestedParameters
from domain.results import Artifact, TrainingMetric
from tests.application.world import World
from tests.services.backend_faults import Fault, response
from tests.services.backend_process import BackendProcess

pytestmark = pytest.mark.integration

TASK_ID = "550e8400-e29b-41d4-a716-446655440000"
EARLIER_TASK = "00000000-e29b-41d4-a716-446655440000"
ARTIFACT = Artifact(Location("models", "models/style_7.safetensors", "gs"), "ab" * 32, 1000)
METRIC = TrainingMetric(loss=0.05, epochs=100, steps=1000)
LATE = Fault("hang_after", seconds=30)
"""The backend accepts the call, but responds after WEBHOOK_TIMEOUT."""


@pytest.fixture(scope="module")
def process() -> Iterator[BackendProcess]:
    with BackendProcess() as running:
        yield running


@pytest.fixture
def backend(process: BackendProcess) -> BackendProcess:
    process.misbehave()
    process.forget()
    return process


@pytest.fixture
def notifier(backend: BackendProcess) -> Iterator[WebhookNotifier]:
    options = WebhookOptions(
        base_url=backend.url, token=backend.token, user_agent="test", read_timeout=0.5
    )
    bodies = Bodies(progress_body, complete_body, failed_body)
    made = WebhookNotifier(options, bodies, SystemClock())
    yield made
    made.close()


def stored_job() -> JobRecord:
    """A job with stored weights, of which only the completion call remains."""
    job = TrainingJob(task_id=TASK_ID, style_id=7)
    parameters = RequestedParameters({}).resolve(image_count=10, native_resolution=512)
    job = job.start()[0].begin_training(parameters, 10)[0].finish_training(METRIC)[0]
    record = World().store().open(job)
    record.apply(record.job.store(ARTIFACT))
    return record


def notify(notifier: WebhookNotifier, record: JobRecord) -> None:
    notify_outcome = OutcomeNotifier(
        notifier=notifier, clock=SystemClock(), random=lambda: 1.0, first_pause=0.05
    )
    lease = World().lease("worker")
    lease.acquire(StopSignal())
    assert notify_outcome(record, lease, StopSignal()) == Ack()
    assert record.job.state is JobState.COMPLETED


def test_a_late_response_leads_to_one_notification(
    backend: BackendProcess, notifier: WebhookNotifier
) -> None:
    backend.misbehave(LATE)
    notify(notifier, stored_job())
    assert len(backend.final) == 1


def test_a_worker_lost_between_commit_and_response_leads_to_one_notification(
    backend: BackendProcess, notifier: WebhookNotifier
) -> None:
    lost = stored_job()
    lost.apply(lost.job.begin_notification())
    notifier.completed(TASK_ID, 7, ARTIFACT, METRIC)
    notify(notifier, lost)
    assert len(backend.final) == 1


def test_the_completion_of_an_earlier_task_is_not_taken_for_this_ones(
    backend: BackendProcess, notifier: WebhookNotifier
) -> None:
    notifier.completed(EARLIER_TASK, 7, ARTIFACT, METRIC)
    lost = stored_job()
    lost.apply(lost.job.begin_notification())
    notify(notifier, lost)
    assert [call.idempotency_key for call in backend.final] == [
        f"{EARLIER_TASK}:complete",
        f"{TASK_ID}:complete",
    ]


@pytest.mark.parametrize(
    "style",
    [
        response(500),
        response(200, body="<html/>"),
        response(200, body=json.dumps({"training_status": "completed"})),
        response(200, body=json.dumps({"training_metric": {"task_id": TASK_ID}})),
        Fault("reset_before"),
    ],
    ids=["500", "another page", "no metric", "no status", "no answer"],
)
def test_without_a_status_of_the_style_the_call_is_repeated(
    backend: BackendProcess, notifier: WebhookNotifier, style: Fault
) -> None:
    backend.misbehave(Fault("reset_before"), style, kinds=("complete", "style"))
    notify(notifier, stored_job())
    assert [call.accepted for call in backend.final] == [True]
    assert len([call for call in backend.calls if call.kind == "complete"]) == 2
