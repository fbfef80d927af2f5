"""Show a job at a terminal: progress bar and outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable

import rich.progress as bars
from rich.console import Console

from adapters.common.event_texts import outcome, position, scored, second_try, speed, undertaking
from adapters.common.text import one_line
from application.event_bus import WorkerEvent
from domain.events import (
    AnnouncementBegun,
    ArtifactStored,
    CheckpointSaved,
    JobGivenUp,
    JobInterrupted,
    JobStarted,
    PreviewsScored,
    ProgressMade,
    SecondTryBegan,
    TrainingBegan,
    TrainingFinished,
)
from domain.failure import Failure
from domain.location import Location
from domain.progress import Progress
from domain.results import Artifact, CheckpointRef, TrainingMetric

log = logging.getLogger(__name__)


class ConsoleNotifier:
    """Port ``Notifier`` for runs without a backend: the outcome as one line.

    Args:
        console: prints the line.
        where: formats a location for display, such as a path for a file.
    """

    def __init__(self, console: Console, where: Callable[[Location], object] = str) -> None:
        self._console = console
        self._where = where

    def progress(self, style_id: int, progress: Progress) -> None:
        """Log at debug level; ``ProgressDisplay`` shows the progress."""
        log.debug("style %d: %s", style_id, position(progress))

    def completed(
        self, task_id: str, style_id: int, artifact: Artifact, metric: TrainingMetric
    ) -> None:
        """Print where the weights are."""
        log.debug("task %s is completed", task_id)
        text = f"style {style_id} is ready: {self._where(artifact.location)}"
        say(self._console, f"{text} ({outcome(metric)})", "green")

    def failed(self, task_id: str, style_id: int, failure: Failure) -> None:
        """Print why the job failed."""
        log.debug("task %s has failed", task_id)
        say(self._console, f"style {style_id}: {failure.code}: {failure.message}", "red")

    def has_arrived(
        self,
        task_id: str,  # noqa: ARG002 - the port's
        style_id: int,  # noqa: ARG002
        outcome: Artifact | Failure,  # noqa: ARG002
    ) -> bool | None:
        """None: unknown for a terminal."""
        return None


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
        self._checkpoint: CheckpointRef | None = None

    def stopping(self) -> None:
        """Print the effect of the first Ctrl-C."""
        text = "stopping: saving a checkpoint; press Ctrl-C again to exit immediately"
        say(self._console, text, "yellow")

    def how_to_continue(self) -> str:
        """How to continue after the second Ctrl-C, which saves no checkpoint."""
        if self._checkpoint is None:
            return "no checkpoint is stored yet: run the same command to start over"
        return f"run the same command to resume from epoch {self._checkpoint.epoch}"

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end()

    def __call__(self, event: WorkerEvent) -> None:
        """Update the display."""
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
            case AnnouncementBegun() | JobInterrupted() | JobGivenUp():
                self._end()

    def _begin(self, event: TrainingBegan) -> None:
        self._end()
        say(self._console, undertaking(event))
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
                speed=speed(progress),
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


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print one line: escaped, without markup, and not wrapped."""
    console.print(one_line(text), style=style, markup=False, highlight=False, soft_wrap=True)
