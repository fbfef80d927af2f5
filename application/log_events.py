"""Log each event of a job as one line for operators."""

from __future__ import annotations

import logging
from datetime import timedelta

from application.event_bus import TaskReceived, WorkerEvent
from application.text import one_line
from domain.events import (
    AnnouncementBegun,
    ArtifactStored,
    CheckpointDiscarded,
    CheckpointSaved,
    Event,
    JobCompleted,
    JobFailed,
    JobGivenUp,
    JobInterrupted,
    JobStarted,
    PartTimed,
    PreviewsScored,
    ProgressMade,
    SecondTryBegan,
    SlotAwaited,
    TrainingBegan,
    TrainingFinished,
)
from domain.progress import Progress
from domain.results import CheckpointRef, TrainingMetric

log = logging.getLogger(__name__)


def log_event(event: WorkerEvent) -> None:
    """Port ``EventSink``: logs one line for each event of a job; steps at the debug level."""
    if not isinstance(event, Event) or isinstance(event, TaskReceived):
        return  # the worker loop logs messages itself
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
            return logging.INFO, undertaking(event)
        case ProgressMade():
            return logging.DEBUG, position(event.progress)
        case PartTimed():
            return logging.DEBUG, f"{event.part} took {event.seconds:.2f} s"
        case CheckpointSaved(checkpoint=at):
            return logging.INFO, f"checkpoint of epoch {at.epoch}, step {at.step} saved"
        case PreviewsScored():
            return logging.INFO, scored(event)
        case SecondTryBegan(learning_rate=rate):
            return logging.WARNING, second_try(rate)
        case CheckpointDiscarded():
            return logging.INFO, "starts over without its checkpoint"
        case TrainingFinished(metric=metric):
            return logging.INFO, f"trained {metric.steps} steps, {outcome(metric)}"
        case ArtifactStored(artifact=artifact):
            stored = f"{artifact.location}, {artifact.size} bytes, sha256 {artifact.sha256}"
            return logging.INFO, f"weights stored at {stored}"
        case JobGivenUp(failure=failure):
            return logging.WARNING, f"given up, {failure.code}: {failure.message}"
        case AnnouncementBegun(call=call):
            level = logging.INFO if call == 1 else logging.WARNING
            return level, f"final call to the backend, number {call}"
        case JobCompleted():
            return logging.INFO, "completed"
        case JobFailed(failure=failure):
            return logging.INFO, f"ended with {failure.code}"
        case JobInterrupted(reason=reason, failures=failures):
            return logging.WARNING, f"interrupted, {failures} failures so far: {reason}"
    return logging.INFO, type(event).__name__


def undertaking(event: TrainingBegan) -> str:
    """Describe the training that is about to begin."""
    images, epochs = event.image_count, event.parameters.epochs
    return (
        f"training on {images} image{'s' * (images != 1)} for {epochs} epoch{'s' * (epochs != 1)}"
    )


def position(progress: Progress) -> str:
    """Describe a training's position and speed."""
    epoch = f"epoch {progress.current_epoch}/{progress.total_epochs} ({progress.percent} %)"
    return ", ".join(filter(None, (epoch, speed(progress))))


def speed(progress: Progress) -> str:
    """Describe the known values among loss, speed and time left."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    parts += measured(progress.measured_loss, progress.base_loss)
    if (speed := progress.steps_per_second) is not None:
        parts.append(f"{speed:.1f} steps/s" if speed >= 1 else f"{speed:.3f} steps/s")
    if (seconds := progress.estimated_seconds) is not None:
        parts.append(f"{timedelta(seconds=seconds)} left")
    return ", ".join(parts)


def measured(loss: float | None, base: float | None) -> list[str]:
    """Describe a loss over fixed noises beside the base's; empty if it was not measured."""
    if loss is None:
        return []
    return [f"measured {loss:.4f}" + ("" if base is None else f" (base {base:.4f})")]


def outcome(metric: TrainingMetric) -> str:
    """Describe a finished style: its losses, and its epoch if that is not the last one."""
    parts = [f"loss {metric.loss:.4f}", *measured(metric.measured_loss, metric.base_loss)]
    if metric.delivered_epoch not in {None, metric.epochs}:
        parts.append(f"weights of epoch {metric.delivered_epoch} of {metric.epochs}")
    return ", ".join(parts)


def scored(event: PreviewsScored) -> str:
    """Describe the scores of a checkpoint's previews."""
    return (
        f"previews of epoch {event.epoch}: closeness to the style {event.closeness:.2f}, "
        f"faithfulness to the prompts {event.faithfulness:.2f}"
    )


def second_try(learning_rate: float) -> str:
    """Describe why a training starts over."""
    return (
        "the training diverged and is worse than the base model; "
        f"it starts over with learning rate {learning_rate:g}"
    )
