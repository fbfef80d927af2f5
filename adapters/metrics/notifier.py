"""Metrics of calls to the backend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from adapters.metrics.instruments import Metrics, record_outcome
from application.ports import Notifier, NotifierRefused, Unavailable
from domain.failure import Failure
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric

_RESULTS: dict[type[Exception], str] = {Unavailable: "unavailable", NotifierRefused: "refused"}


class MeteredNotifier:
    """Port ``Notifier`` around another one; counts calls by result and times them.

    Args:
        monotonic: monotonic time in seconds.
    """

    def __init__(self, inner: Notifier, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self._inner = inner
        self._metrics = metrics
        self._now = monotonic

    def progress(self, style_id: int, progress: Progress) -> None:
        """Send the progress, and count the call."""
        with self._calling("progress"):
            self._inner.progress(style_id, progress)

    def completed(
        self, task_id: str, style_id: int, artifact: Artifact, metric: TrainingMetric
    ) -> None:
        """Report that the style is ready, and count the call."""
        with self._calling("completed"):
            self._inner.completed(task_id, style_id, artifact, metric)

    def failed(self, task_id: str, style_id: int, failure: Failure) -> None:
        """Report that the job has failed, and count the call."""
        with self._calling("failed"):
            self._inner.failed(task_id, style_id, failure)

    def has_arrived(self, task_id: str, style_id: int, outcome: Artifact | Failure) -> bool | None:
        """Query the style; not counted, because it is not a call of the contract."""
        return self._inner.has_arrived(task_id, style_id, outcome)

    def _calling(self, call: str) -> AbstractContextManager[None]:
        began = self._now()
        return record_outcome(_RESULTS, lambda result: self._record(call, result, began))

    def _record(self, call: str, result: str, began: float) -> None:
        self._metrics.webhooks.labels(call, result).inc()
        self._metrics.webhook_seconds.labels(call).observe(self._now() - began)
