"""Log each event of a job as one line for operators."""

from __future__ import annotations

import logging

from adapters.common.event_texts import outcome, position, scored, second_try, training_start
from adapters.common.text import one_line
from application.event_bus import TaskReceived, WorkerEvent
from domain.events import (
    ArtifactStored,
    CheckpointDiscarded,
    CheckpointSaved,
    Event,
    FailureRecorded,
    JobCompleted,
    JobFailed,
    JobInterrupted,
    JobStarted,
    NotificationBegan,
    PartTimed,
    PreviewsDrawn,
    PreviewsScored,
    ProgressMade,
    SecondTryBegan,
    SlotAwaited,
    TrainingBegan,
    TrainingFinished,
)
from domain.results import CheckpointRef

log = logging.getLogger(__name__)


def log_event(event: WorkerEvent) -> None:
    """Port ``EventSink``: logs one line for each event of a job; steps at the debug level."""
    if not isinstance(event, Event) or isinstance(event, TaskReceived):
        return  # the worker loop and the lease log messages and leases themselves
    if isinstance(event, ProgressMade | PartTimed) and not log.isEnabledFor(logging.DEBUG):
        return  # do not format a line at every step if it is not logged
    level, text = _logged(event)
    log.log(level, "task %s, style %d: %s", event.task_id, event.style_id, one_line(text))


def _logged(event: Event) -> tuple[int, str]:
    match event:
        case JobStarted(attempt=attempt, resumed_from=None):
            return logging.INFO, f"attempt {attempt} starts"
        case JobStarted(attempt=attempt, resumed_from=CheckpointRef(epoch=epoch, step=step)):
            return logging.INFO, f"attempt {attempt} resumes from epoch {epoch}, step {step}"
        case SlotAwaited():
            return logging.INFO, "waiting for a slot: the device trains other styles"
        case TrainingBegan():
            return logging.INFO, training_start(event)
        case ProgressMade():
            return logging.DEBUG, position(event.progress)
        case PartTimed():
            return logging.DEBUG, f"{event.part} took {event.seconds:.2f} s"
        case CheckpointSaved(checkpoint=at):
            return logging.INFO, f"checkpoint of epoch {at.epoch}, step {at.step} saved"
        case PreviewsDrawn(epoch=epoch, with_lora=with_lora):
            model = f"the style of epoch {epoch}" if with_lora else "the base model"
            return logging.DEBUG, f"previews drawn with {model}"
        case PreviewsScored():
            return logging.INFO, scored(event)
        case SecondTryBegan(learning_rate=rate):
            return logging.WARNING, second_try(rate)
        case CheckpointDiscarded():
            return logging.INFO, "the training starts over without a checkpoint"
        case TrainingFinished(metric=metric):
            return logging.INFO, f"trained {metric.steps} steps, {outcome(metric)}"
        case ArtifactStored(artifact=artifact):
            stored = f"{artifact.location}, {artifact.size} bytes, sha256 {artifact.sha256}"
            return logging.INFO, f"weights stored at {stored}"
        case FailureRecorded(failure=failure):
            return logging.WARNING, f"will end with {failure.code}: {failure.message}"
        case NotificationBegan(call=call):
            level = logging.INFO if call == 1 else logging.WARNING
            return level, f"sending the outcome webhook (try {call})"
        case JobCompleted():
            return logging.INFO, "completed"
        case JobFailed(failure=failure):
            return logging.INFO, f"ended with {failure.code}"
        case JobInterrupted(reason=reason, failures=failures):
            return (
                logging.WARNING,
                f"interrupted (failures since the last checkpoint: {failures}): {reason}",
            )
    return logging.INFO, type(event).__name__
