"""Show the outcome of a job at a terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable

from rich.console import Console

from adapters.common.event_texts import outcome, position
from adapters.common.text import say
from domain.failure import Failure
from domain.location import Location
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric

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
        style_id: int,  # noqa: ARG002 - the port's
        outcome: Artifact | Failure,  # noqa: ARG002 - the port's
    ) -> bool | None:
        """None: unknown for a terminal."""
        return None
