"""Port ``Notifier``: the three calls to the platform's backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adapters.webhook.options import WebhookOptions
from adapters.webhook.response import check_response, connection_error, json_object
from adapters.webhook.transport import Response, Transport, TransportError
from application.ports import Clock, NotifierRejected, NotifierUnavailable
from domain.failure import Failure
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric

log = logging.getLogger(__name__)

PROGRESS = "/api/webhooks/training/progress"
COMPLETE = "/api/webhooks/training/complete"
FAILED = "/api/webhooks/training/failed"
STYLE = "/api/styles/{}/"
"""Public path of a completed style; 404 while it trains and after a failure."""

Body = Mapping[str, Any]
Error = NotifierUnavailable | NotifierRejected


@dataclass(frozen=True)
class Bodies:
    """Builds the bodies of the calls as JSON values."""

    progress: Callable[[int, Progress], Body]
    complete: Callable[[str, int, Artifact, TrainingMetric], Body]
    failed: Callable[[int, Failure], Body]


class WebhookNotifier:
    """Calls the backend. May be used from any thread.

    Args:
        options: address, token and timeouts of the backend.
        bodies: builds the calls' bodies.
        clock: for ``Retry-After`` with a date.
    """

    def __init__(self, options: WebhookOptions, bodies: Bodies, clock: Clock) -> None:
        self._options = options
        self._bodies = bodies
        self._clock = clock
        self._transport = Transport(options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._options!r})"

    def progress(self, style_id: int, progress: Progress) -> None:
        """Send the job's progress, in one attempt of at most twice ``progress_timeout``.

        Raises:
            ValueError: no speed is measured yet.
        """
        timeout = self._options.progress_timeout
        body = self._bodies.progress(style_id, progress)
        error = self._try("PATCH", PROGRESS, body, {}, connect=timeout, read=timeout)
        if error is not None:
            raise error

    def completed(
        self, task_id: str, style_id: int, artifact: Artifact, metric: TrainingMetric
    ) -> None:
        """Report that the style is ready."""
        body = self._bodies.complete(task_id, style_id, artifact, metric)
        self._send_outcome(COMPLETE, body, f"{task_id}:complete")

    def failed(self, task_id: str, style_id: int, failure: Failure) -> None:
        """Report that the job has failed."""
        self._send_outcome(FAILED, self._bodies.failed(style_id, failure), f"{task_id}:failed")

    def has_arrived(self, task_id: str, style_id: int, outcome: Artifact | Failure) -> bool | None:
        """Read the style and compare task id and weights' hash in ``training_metric``, which the
        backend stores whole. ``model_path`` alone may belong to an earlier task.
        """
        if isinstance(outcome, Failure):
            return None  # the backend does not show failed styles
        found = self._get_style(style_id)
        if not isinstance(found, Response):
            return None
        if found.status == 404:
            return False
        style = json_object(found.body or b"") if found.status == 200 else {}
        metric = style.get("training_metric")
        if style.get("training_status") != "completed" or not isinstance(metric, dict):
            return None
        return (metric.get("task_id"), metric.get("sha256")) == (task_id, outcome.sha256)

    def check(self) -> str:
        """Check that the backend can be called, without changing anything there.

        Sends a progress call that names no style. The backend returns 400 only after it has
        accepted the token and the source header. Progress calls notify nobody.

        Returns:
            One line with the result.

        Raises:
            NotifierUnavailable: the backend is unreachable or down, or TLS fails.
            NotifierRejected: another server answers, or the backend denies access.
        """
        timeout = self._options.progress_timeout
        found = self._transport.exchange("PATCH", PROGRESS, {}, {}, connect=timeout, read=timeout)
        url = self._options.base_url
        if isinstance(found, Response) and found.status == 400:
            return f"{url} accepts the token; {self._check_styles()}"
        error = self._checked(found) or NotifierRejected(
            "an empty call was accepted instead of rejected with 400"
        )
        ours = isinstance(found, Response) and found.status in (401, 403)
        if isinstance(error, NotifierRejected) and not ours:
            raise NotifierRejected(f"{url} is not the backend's host or path: {error}")
        raise error

    def _check_styles(self) -> str:
        """Check that styles can be read, which ``has_arrived`` needs."""
        found = self._get_style(0)
        if isinstance(found, Response) and found.status in {200, 404}:
            return "styles can be read"
        said = f"status {found.status}" if isinstance(found, Response) else "no response"
        return f"styles cannot be read ({said}), so a completion may be sent twice"

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def _get_style(self, style_id: int) -> Response | TransportError:
        timeout = self._options.progress_timeout
        return self._transport.exchange(
            "GET", STYLE.format(style_id), None, {}, connect=timeout, read=timeout, public=True
        )

    def _send_outcome(self, path: str, body: Body, key: str) -> None:
        options, headers = self._options, {"Idempotency-Key": key}
        timeouts = {"connect": options.connect_timeout, "read": options.read_timeout}
        error = self._try("POST", path, body, headers, **timeouts)
        if error is not None:
            raise error

    def _try(
        self,
        method: str,
        path: str,
        body: Body,
        headers: Mapping[str, str],
        *,
        connect: float,
        read: float,
    ) -> Error | None:
        found = self._transport.exchange(method, path, body, headers, connect=connect, read=read)
        if isinstance(found, Response) and found.status // 100 == 2 and found.body is None:
            log.warning(
                "%s was accepted with %d, but the response ended early", path, found.status
            )
        return self._checked(found)

    def _checked(self, found: Response | TransportError) -> Error | None:
        if isinstance(found, Response):
            return check_response(found, self._clock.now(), self._options.token)
        return connection_error(found, self._options.base_url, self._options.token)
