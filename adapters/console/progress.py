"""Show the progress of a job at a terminal."""

from __future__ import annotations

import rich.progress as bars
from rich.console import Console

from adapters.common.event_texts import (
    losses_and_speed,
    position,
    scored,
    second_try,
    training_start,
)
from adapters.common.text import say
from application.event_bus import WorkerEvent
from domain.events import (
    ArtifactStored,
    CheckpointSaved,
    Event,
    FailureRecorded,
    JobInterrupted,
    JobStarted,
    NotificationBegan,
    PreviewsScored,
    ProgressMade,
    SecondTryBegan,
    TrainingBegan,
    TrainingFinished,
)
from domain.job import JobState, state_after
from domain.progress import Progress
from domain.results import CheckpointRef


class ProgressDisplay:
    """Event sink that shows a training's progress: a bar on a terminal, else occasional lines.

    Use it as a context manager, so that the terminal is restored after errors, too.

    Args:
        with_previews: whether the report has previews, which take most of its time.
    """

    def __init__(self, console: Console, *, with_previews: bool = True) -> None:
        self._console = console
        self._report = f"{'drawing previews and ' if with_previews else ''}writing the report"
        self._bar: bars.Progress | None = None
        self._tenths = -1
        self._state = JobState.QUEUED
        self._checkpoint: CheckpointRef | None = None

    def stopping(self) -> None:
        """Print the effect of the first Ctrl-C."""
        match self._state:
            case JobState.TRAINING:
                effect = "stopping: saving a checkpoint"
            case JobState.UPLOADING | JobState.NOTIFYING | JobState.COMPLETED:
                effect = "stopping: the style is stored, the same command writes its report"
            case _:
                effect = "stopping"
        say(self._console, f"{effect}; press Ctrl-C again to exit immediately", "yellow")

    def how_to_continue(self) -> str:
        """How to continue after the second Ctrl-C, which saves no checkpoint."""
        if self._state in {JobState.NOTIFYING, JobState.COMPLETED}:
            return "run the same command to write the report"
        if self._checkpoint is None:
            return "no checkpoint is stored yet: run the same command to start over"
        return f"run the same command to resume from epoch {self._checkpoint.epoch}"

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end()

    def __call__(self, event: WorkerEvent) -> None:
        """Update the display."""
        if isinstance(event, Event):
            self._state = state_after(event) or self._state
        match event:
            case JobStarted(resumed_from=checkpoint):
                self._checkpoint = checkpoint
                if checkpoint is not None:
                    say(self._console, f"resuming from epoch {checkpoint.epoch}")
            case TrainingBegan():
                self._begin(event)
            case ProgressMade() if self._console.is_interactive:
                self._move(event.progress)
            case ProgressMade() if event.epoch_finished:
                self._say(event.progress)
            case CheckpointSaved(checkpoint=checkpoint):
                self._checkpoint = checkpoint
            case PreviewsScored():
                say(self._console, scored(event))
            case SecondTryBegan(learning_rate=rate):
                self._end()
                self._checkpoint = None
                say(self._console, second_try(rate), "yellow")
            case TrainingFinished():
                self._wait("storing the style")
            case ArtifactStored() if self._bar is None:
                say(self._console, self._report)
            case ArtifactStored():
                self._wait(self._report)
            case NotificationBegan() | JobInterrupted() | FailureRecorded():
                self._end()

    def _begin(self, event: TrainingBegan) -> None:
        self._end()
        say(self._console, training_start(event))
        self._tenths = -1
        if self._console.is_interactive:
            self._bar = bars.Progress(
                bars.TextColumn("epoch {task.fields[epoch]}"),
                bars.BarColumn(bar_width=20),
                bars.TextColumn("{task.fields[speed]}"),
                console=self._console,
                refresh_per_second=4,
            )
            at = self._checkpoint.epoch if self._checkpoint else 0
            # Without a total the bar pulses; the first step's event brings the number of steps.
            epoch = f"{at}/{event.parameters.epochs}"
            self._bar.add_task("", total=None, epoch=epoch, speed="")
            self._bar.start()

    def _move(self, progress: Progress) -> None:
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0],
                total=progress.total_steps,
                completed=progress.current_step,
                epoch=f"{progress.current_epoch}/{progress.total_epochs}",
                speed=losses_and_speed(progress),
            )
            if progress.current_step == progress.total_steps:
                self._wait("storing the last checkpoint")

    def _wait(self, what: str) -> None:
        """Show the current phase after the last step."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], speed=what)

    def _say(self, progress: Progress) -> None:
        tenths = progress.percent // 10
        if tenths > self._tenths:
            self._tenths = tenths
            say(self._console, position(progress))

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
