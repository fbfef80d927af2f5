from __future__ import annotations

from typing import Any

import pytest

from domain.events import NotificationBegan
from domain.failure import Failure, FailureCode
from domain.job import JobState, TrainingJob, state_after
from domain.location import Location
from domain.parameters import TrainingParameters
from domain.progress import Progress
from domain.results import Artifact, CheckpointRef, TrainingMetric

AT = Location("models", "x")
PARAMETERS = TrainingParameters(epochs=2, resolution=64)


@pytest.mark.parametrize("failure", [None, *(Failure(code, "why") for code in FailureCode)])
def test_every_event_of_a_job_has_the_state_of_the_job(failure: Failure | None) -> None:
    steps: list[Any] = [
        lambda job: job.start(),
        lambda job: job.await_slot(),
        lambda job: job.begin_training(PARAMETERS, 10),
        lambda job: job.advance(Progress(1, 2, 1, 2), epoch_finished=True),
        lambda job: job.save_checkpoint(CheckpointRef(AT, 1, 1)),
        lambda job: job.interrupt("the worker stops", is_failure=False),
        lambda job: job.start(),
        lambda job: job.begin_training(PARAMETERS, 10),
        lambda job: job.finish_training(TrainingMetric(0.1, 2, 2)),
        lambda job: job.fail(failure) if failure else job.store(Artifact(AT, "ab", 3)),
        lambda job: job.begin_notification(),
        lambda job: job.finish(),
    ]
    job = TrainingJob(task_id="a", style_id=1)
    for step in steps:
        before = job.state
        job, event = step(job)
        assert (state_after(event) or before) is job.state, event
    assert job.is_terminal


def test_a_job_left_to_announce_is_announcing_from_its_first_event() -> None:
    assert state_after(NotificationBegan(task_id="a", style_id=1, call=2)) is JobState.NOTIFYING
