"""What a person at a terminal sees of a job: a progress bar, its outcome, and the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

import rich.progress as bars
from rich.console import Console

from domain.events import (
    AnnouncementBegun,
    Artifact,
    ArtifactStored,
    CheckpointRef,
    CheckpointSaved,
    Event,
    JobCompleted,
    JobFailed,
    JobGivenUp,
    JobInterrupted,
    JobStarted,
    ProgressMade,
    SeatAwaited,
    TrainingBegan,
    TrainingFinished,
    TrainingMetric,
)
from domain.failure import Failure
from domain.location import Location
from domain.progress import Progress

log = logging.getLogger(__name__)


class ConsoleNotifier:
    """Port ``Notifier`` for runs without a backend: the outcome as one line.

    Args:
        console: where the line goes.
        where: what the person calls a location; a path, where locations are files.
    """

    def __init__(self, console: Console, where: Callable[[Location], object] = str) -> None:
        self._console = console
        self._where = where

    def progress(self, style_id: int, progress: Progress) -> None:
        """Goes to the log at debug level: a display listens to the events instead."""
        log.debug("style %d: %s", style_id, _position(progress))

    def completed(
        self, style_id: int, artifact: Artifact, metric: TrainingMetric, idempotency_key: str
    ) -> None:
        """Say where the weights lie."""
        log.debug("final call %s", idempotency_key)
        text = f"style {style_id} is ready: {self._where(artifact.location)}"
        _print(self._console, f"{text} (loss {metric.loss:.4f})", "green")

    def failed(self, style_id: int, failure: Failure, idempotency_key: str) -> None:
        """Say why there will be none."""
        log.debug("final call %s", idempotency_key)
        _print(self._console, f"style {style_id}: {failure.code}: {failure.message}", "red")


class ProgressDisplay:
    """Event sink that shows how a training goes: a bar on a terminal, else lines now and then.

    Use it as a context manager, so that the terminal is left in order whatever happens.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: bars.Progress | None = None
        self._tenths = -1

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case JobStarted(resumed_from=CheckpointRef(epoch=epoch)):
                _print(self._console, f"resuming from epoch {epoch}")
            case TrainingBegan():
                self._begin(event)
            case ProgressMade() if self._console.is_interactive:
                self._move(event.progress)
            case ProgressMade() if event.epoch_finished:
                self._say(event.progress)
            case TrainingFinished() | JobInterrupted() | JobGivenUp():
                self._end()

    def _begin(self, event: TrainingBegan) -> None:
        self._end()
        _print(self._console, _undertaking(event))
        self._tenths = -1
        if self._console.is_interactive:
            self._bar = bars.Progress(
                bars.TextColumn("epoch {task.fields[epoch]}"),
                bars.BarColumn(bar_width=20),
                bars.TextColumn("{task.fields[speed]}"),
                console=self._console,
                refresh_per_second=4,
            )
            epochs = event.parameters.epochs
            # Without a total the bar pulses: the number of steps comes with the first of them.
            self._bar.add_task("", total=None, epoch=f"0/{epochs}", speed="")
            self._bar.start()

    def _move(self, progress: Progress) -> None:
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0],
                total=progress.total_steps,
                completed=progress.current_step,
                epoch=f"{progress.current_epoch}/{progress.total_epochs}",
                speed=_speed(progress),
            )

    def _say(self, progress: Progress) -> None:
        tenths = progress.percent // 10
        if tenths > self._tenths:
            self._tenths = tenths
            _print(self._console, _position(progress))

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class LogEvents:
    """Event sink that writes what an operator should know to the log, one line an event."""

    def __call__(self, event: Event) -> None:
        """Log the event; a step is worth the debug level only."""
        if isinstance(event, ProgressMade) and not log.isEnabledFor(logging.DEBUG):
            return
        level, text = _logged(event)
        log.log(level, "task %s, style %d: %s", event.task_id, event.style_id, _one_line(text))


def _logged(event: Event) -> tuple[int, str]:
    match event:
        case JobStarted(attempt=attempt, resumed_from=None):
            return logging.INFO, f"attempt {attempt} starts"
        case JobStarted(attempt=attempt, resumed_from=CheckpointRef(epoch=epoch, step=step)):
            return logging.INFO, f"attempt {attempt} resumes from epoch {epoch}, step {step}"
        case SeatAwaited():
            return logging.INFO, "waiting for a seat: the device trains other styles"
        case TrainingBegan():
            return logging.INFO, _undertaking(event)
        case ProgressMade():
            return logging.DEBUG, _position(event.progress)
        case CheckpointSaved(checkpoint=at):
            return logging.INFO, f"checkpoint of epoch {at.epoch}, step {at.step} saved"
        case TrainingFinished(metric=metric):
            return logging.INFO, f"trained {metric.steps} steps, loss {metric.loss:.4f}"
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
        case JobInterrupted(reason=reason, setbacks=setbacks):
            return logging.WARNING, f"put down, {setbacks} setbacks so far: {reason}"
    return logging.INFO, type(event).__name__


def _undertaking(event: TrainingBegan) -> str:
    pictures, epochs = event.picture_count, event.parameters.epochs
    return (
        f"training on {pictures} picture{'s' * (pictures != 1)} "
        f"for {epochs} epoch{'s' * (epochs != 1)}"
    )


def _position(progress: Progress) -> str:
    epoch = f"epoch {progress.current_epoch}/{progress.total_epochs} ({progress.percent} %)"
    return ", ".join(filter(None, (epoch, _speed(progress))))


def _speed(progress: Progress) -> str:
    """Loss, speed and time left, as far as they are known."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if (speed := progress.steps_per_second) is not None:
        parts.append(f"{speed:.1f} steps/s" if speed >= 1 else f"{speed:.3f} steps/s")
    if (seconds := progress.estimated_seconds) is not None:
        parts.append(f"{timedelta(seconds=seconds)} left")
    return ", ".join(parts)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _print(console: Console, text: str, style: str | None = None) -> None:
    # As it is: no markup in names, and no line broken at the width of some pipe.
    console.print(_one_line(text), style=style, markup=False, highlight=False, soft_wrap=True)
