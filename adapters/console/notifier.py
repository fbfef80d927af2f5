"""Show the outcome of a job at a terminal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from adapters.common.event_texts import outcome, position
from adapters.common.text import say
from domain.failure import Failure
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric

log = logging.getLogger(__name__)


class ConsoleNotifier:
    """Port ``Notifier`` for runs without a backend: the outcome as one line.

    Args:
        console: prints the line.
        folders: the folders of buckets. Weights in one of them are shown as a path.
    """

    def __init__(self, console: Console, folders: Mapping[str, Path] | None = None) -> None:
        self._console = console
        self._folders = folders or {}

    def progress(self, style_id: int, progress: Progress) -> None:
        """Log at debug level; ``ProgressDisplay`` shows the progress."""
        log.debug("style %d: %s", style_id, position(progress))

    def completed(
        self, task_id: str, style_id: int, artifact: Artifact, metric: TrainingMetric
    ) -> None:
        """Print where the weights are."""
        log.debug("task %s is completed", task_id)
        at = artifact.location
        where = self._folders[at.bucket] / at.key if at.bucket in self._folders else at
        text = f"style {style_id} is ready: {where} ({outcome(metric)})"
        say(self._console, text, "green")

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
