"""The job state machine: allowed transitions, their results, and invariants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from domain.events import (
    ArtifactStored,
    Event,
    JobCompleted,
    JobFailed,
    JobStarted,
    NotificationBegan,
)
from domain.failure import Failure, FailureCode
from domain.job import Change, InvalidTransition, JobState, TrainingJob
from domain.location import Location
from domain.parameters import TrainingParameters
from domain.progress import Progress
from domain.results import Artifact, CheckpointRef, TrainingMetric

PARAMETERS = TrainingParameters(epochs=10, resolution=512)
ARTIFACT = Artifact(Location("models", "models/style_7.safetensors"), "ab" * 32, 1000)
METRIC = TrainingMetric(loss=0.1, epochs=10, steps=100)
FAILURE = Failure(FailureCode.GPU_OOM, "The card is too small.")
CANCELLED = Failure(FailureCode.CANCELLED, "Cancelled.")


def checkpoint(step: int) -> CheckpointRef:
    return CheckpointRef(Location("models", f"jobs/t/{step}"), step // 10, step)


def new_job() -> TrainingJob:
    return TrainingJob(task_id="t", style_id=7)


def after(job: TrainingJob, *names: str) -> TrainingJob:
    """The job after the named transitions, each with its plainest arguments."""
    for name in names:
        job, _ = TRANSITIONS[name](job)
    return job


TRANSITIONS: dict[str, Any] = {
    "start": lambda job: job.start(),
    "await_slot": lambda job: job.await_slot(),
    "begin_training": lambda job: job.begin_training(PARAMETERS, 12),
    "advance": lambda job: job.advance(Progress(1, 10, 10, 100), epoch_finished=True),
    "save_checkpoint": lambda job: job.save_checkpoint(checkpoint(10)),
    "finish_training": lambda job: job.finish_training(METRIC),
    "store": lambda job: job.store(ARTIFACT),
    "fail": lambda job: job.fail(FAILURE),
    "begin_notification": lambda job: job.begin_notification(),
    "finish": lambda job: job.finish(),
    "interrupt": lambda job: job.interrupt("gone", is_failure=True),
    "reopen": lambda job: job.reopen("its style is gone"),
}

REACHED: dict[JobState, TrainingJob] = {
    JobState.QUEUED: new_job(),
    JobState.PREPARING: after(new_job(), "start"),
    JobState.TRAINING: after(new_job(), "start", "begin_training"),
    JobState.UPLOADING: after(new_job(), "start", "begin_training", "finish_training"),
    JobState.NOTIFYING: after(new_job(), "fail"),
    JobState.FAILED: after(new_job(), "fail", "begin_notification", "finish"),
    JobState.INTERRUPTED: after(new_job(), "start", "interrupt"),
}
REACHED[JobState.COMPLETED] = after(
    REACHED[JobState.UPLOADING], "store", "begin_notification", "finish"
)
REACHED[JobState.CANCELLED] = after(new_job().fail(CANCELLED)[0], "begin_notification", "finish")

ALLOWED: dict[str, set[JobState]] = {
    "start": {JobState.QUEUED, JobState.INTERRUPTED},
    "await_slot": {JobState.PREPARING},
    "begin_training": {JobState.PREPARING},
    "advance": {JobState.TRAINING},
    "save_checkpoint": {JobState.TRAINING},
    "finish_training": {JobState.TRAINING},
    "store": {JobState.UPLOADING},
    "reopen": {JobState.COMPLETED},
    "fail": {
        JobState.QUEUED,
        JobState.PREPARING,
        JobState.TRAINING,
        JobState.UPLOADING,
        JobState.INTERRUPTED,
    },
    "begin_notification": {JobState.NOTIFYING},
    "finish": set(),  # not before a notification was begun
    "interrupt": {JobState.PREPARING, JobState.TRAINING, JobState.UPLOADING},
}


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("name", TRANSITIONS)
def test_each_transition_is_allowed_in_its_states_and_raises_in_all_others(
    name: str, state: JobState
) -> None:
    job = REACHED[state]
    if state in ALLOWED[name]:
        changed, event = TRANSITIONS[name](job)
        assert changed != job
        assert (event.task_id, event.style_id) == ("t", 7)
    else:
        with pytest.raises(InvalidTransition, match=str(state)):
            TRANSITIONS[name](job)


def test_a_job_without_its_checkpoint_starts_over() -> None:
    job = replace(REACHED[JobState.TRAINING], checkpoint=checkpoint(10))
    assert job.discard_checkpoint()[0] == REACHED[JobState.TRAINING]
    for state in set(JobState) - {JobState.TRAINING}:
        with pytest.raises(InvalidTransition, match=str(state)):
            REACHED[state].discard_checkpoint()


@pytest.mark.parametrize("way", [("begin_training",), ("interrupt",), ("interrupt", "start")])
def test_a_job_waits_for_its_slot_until_another_transition(way: tuple[str, ...]) -> None:
    waiting = after(new_job(), "start", "await_slot")
    assert waiting.waits
    assert waiting.state is JobState.PREPARING
    assert not after(waiting, *way).waits


def test_all_transitions_give_a_completed_job_and_its_events() -> None:
    way = (
        "start",
        "begin_training",
        "advance",
        "save_checkpoint",
        "finish_training",
        "store",
        "begin_notification",
        "finish",
    )
    job, events = new_job(), []
    for name in way:
        job, event = TRANSITIONS[name](job)
        events.append(event)
    assert job.state is JobState.COMPLETED
    assert events[0] == JobStarted(task_id="t", style_id=7, attempt=1, resumed_from=None)
    assert ArtifactStored(task_id="t", style_id=7, artifact=ARTIFACT) in events
    assert NotificationBegan(task_id="t", style_id=7, call=1) in events
    assert events[-1] == JobCompleted(task_id="t", style_id=7, artifact=ARTIFACT)


def test_missing_weights_are_trained_again_and_the_backend_notified() -> None:
    again = after(REACHED[JobState.COMPLETED], "reopen", "start", "begin_training")
    assert (again.artifact, again.metric, again.notifications) == (None, None, 0)
    done = after(again, "finish_training", "store", "begin_notification", "finish")
    assert done.state is JobState.COMPLETED


def test_a_failed_job_has_its_reason() -> None:
    job = after(new_job(), "start", "fail", "begin_notification")
    job, event = job.finish()
    assert job.state is JobState.FAILED
    assert event == JobFailed(task_id="t", style_id=7, failure=FAILURE)


def test_an_interrupted_job_resumes_from_its_checkpoint() -> None:
    job = after(new_job(), "start", "begin_training", "save_checkpoint", "interrupt")
    job, event = job.start()
    assert event == JobStarted(task_id="t", style_id=7, attempt=2, resumed_from=checkpoint(10))


def test_parameters_do_not_change_over_a_resume() -> None:
    job = after(new_job(), "start", "begin_training", "interrupt", "start")
    with pytest.raises(InvalidTransition, match="change the parameters"):
        job.begin_training(replace(PARAMETERS, epochs=11), 12)


def test_a_checkpoint_resets_the_failure_count_and_a_stop_is_no_failure() -> None:
    job = after(new_job(), "start", "interrupt", "start", "interrupt")
    assert job.failures == 2
    job = after(job, "start", "begin_training", "save_checkpoint")
    assert job.failures == 0
    job, _ = job.interrupt("shut down", is_failure=False)
    assert job.failures == 0


def test_repeated_steps_count_for_remaining_time_and_not_for_progress() -> None:
    def at(step: int) -> Progress:
        return Progress(step // 10, 10, step, 100, steps_per_second=2.0)

    job = after(new_job(), "start", "begin_training").advance(at(60), epoch_finished=True)[0]
    again = job.advance(at(20), epoch_finished=True)[0].progress
    assert again is not None
    assert (again.percent, again.estimated_seconds) == (60, 40)
    past = job.advance(at(80), epoch_finished=True)[0].progress
    assert past == at(80)


@pytest.mark.parametrize(
    "impossible",
    [
        {"state": JobState.COMPLETED},
        {"state": JobState.FAILED},
        {"state": JobState.CANCELLED},
        {"state": JobState.NOTIFYING},
        {"state": JobState.NOTIFYING, "artifact": ARTIFACT, "failure": FAILURE},
    ],
)
def test_an_inconsistent_job_cannot_be_constructed(impossible: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"job has"):
        TrainingJob(task_id="t", style_id=7, **impossible)


class JobMachine(RuleBasedStateMachine):
    """Throws transitions at a job in any order; those not allowed must change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.job = new_job()
        self.furthest = 0
        self.events: list[Event] = []

    def attempt(self, transition: Any) -> None:
        before = self.job
        try:
            self.job, event = transition(before)
        except InvalidTransition:
            assert self.job == before
            return
        self.events.append(event)
        assert not before.is_terminal, "a terminal state is final"

    @rule(name=st.sampled_from(sorted(TRANSITIONS.keys() - {"advance"})))
    def transition(self, name: str) -> None:
        self.attempt(TRANSITIONS[name])

    @precondition(lambda self: self.job.state is JobState.QUEUED)
    @rule()
    def go_straight_to_training(self) -> None:
        self.attempt(TRANSITIONS["start"])
        self.attempt(TRANSITIONS["begin_training"])

    @rule(step=st.integers(0, 100))
    def advance(self, step: int) -> None:
        progress = Progress(step // 10, 10, step, 100)

        def change(job: TrainingJob) -> Change:
            return job.advance(progress, epoch_finished=step % 10 == 0)

        self.attempt(change)

    @rule()
    def cancel(self) -> None:
        self.attempt(lambda job: job.fail(CANCELLED))

    @invariant()
    def progress_never_goes_back(self) -> None:
        now = self.job.progress.current_step if self.job.progress else 0
        assert now >= self.furthest
        self.furthest = now

    @invariant()
    def completed_implies_an_artifact_and_its_hash(self) -> None:
        if self.job.state is JobState.COMPLETED:
            assert self.job.artifact is not None
            assert len(self.job.artifact.sha256) == 64

    @invariant()
    def the_backend_was_notified_of_a_final_state(self) -> None:
        assert not self.job.is_terminal or self.job.notifications > 0

    @invariant()
    def at_most_one_outcome(self) -> None:
        outcomes = [e for e in self.events if isinstance(e, JobCompleted | JobFailed)]
        assert len(outcomes) == self.job.is_terminal


TestJobMachine = JobMachine.TestCase
TestJobMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
