"""Describe events of a job in words, for the log and the console."""

from __future__ import annotations

from datetime import timedelta

from domain.events import PreviewsScored, TrainingBegan
from domain.progress import Progress
from domain.results import TrainingMetric


def training_start(event: TrainingBegan) -> str:
    """Describe the training that is about to begin."""
    images, epochs = event.image_count, event.parameters.epochs
    return (
        f"training on {images} image{'s' * (images != 1)} for {epochs} epoch{'s' * (epochs != 1)}"
    )


def position(progress: Progress) -> str:
    """Describe a training's position and speed."""
    epoch = f"epoch {progress.current_epoch}/{progress.total_epochs} ({progress.percent} %)"
    return ", ".join(filter(None, (epoch, losses_and_speed(progress))))


def losses_and_speed(progress: Progress) -> str:
    """Describe the known values among loss, speed and time left."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    parts += measured(progress.measured_loss, progress.base_loss)
    if (speed := progress.steps_per_second) is not None:
        parts.append(f"{speed:.1f} steps/s" if speed >= 1 else f"{speed:.3f} steps/s")
    if seconds := progress.estimated_seconds:
        parts.append(f"{timedelta(seconds=seconds)} left")
    return ", ".join(parts)


def measured(loss: float | None, base: float | None) -> list[str]:
    """Describe a loss over fixed noises beside the base's; empty if it was not measured."""
    if loss is None:
        return []
    return [f"measured loss {loss:.4f}" + ("" if base is None else f" (base model {base:.4f})")]


def outcome(metric: TrainingMetric) -> str:
    """Describe a finished style: its losses, and its epoch if that is not the last one."""
    parts = [f"loss {metric.loss:.4f}", *measured(metric.measured_loss, metric.base_loss)]
    if metric.delivered_epoch not in {None, metric.epochs}:
        parts.append(f"weights of epoch {metric.delivered_epoch} of {metric.epochs}")
    return ", ".join(parts)


def scored(event: PreviewsScored) -> str:
    """Describe the scores of a checkpoint's previews."""
    return (
        f"previews of epoch {event.epoch}: closeness to the style {event.scores.closeness:.2f}, "
        f"faithfulness to the prompts {event.scores.faithfulness:.2f}"
    )


def second_try(learning_rate: float) -> str:
    """Describe why a training starts over."""
    return (
        "the training diverged and is worse than the base model; "
        f"it starts over with learning rate {learning_rate:g}"
    )
