"""The past jobs that the status page keeps."""

from __future__ import annotations

from collections import deque
from typing import Any

from adapters.status_page.curve import LossCurve
from adapters.status_page.job_view import JobView

RECENT_JOBS = 20


class PastJobs:
    """A few past jobs, newest first. Not thread-safe: the caller must lock it."""

    def __init__(self) -> None:
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_JOBS)
        self._eventful: deque[JobView] = deque(maxlen=RECENT_JOBS)

    @property
    def recent(self) -> list[dict[str, Any]]:
        """Their summaries, as JSON values."""
        return list(self._recent)

    @property
    def last(self) -> JobView | None:
        """The last job that entered a phase."""
        return self._eventful[0] if self._eventful else None

    def add(self, job: JobView) -> None:
        """Add a job that has ended."""
        summary = job.summary()
        if self._recent and _repeats(summary, self._recent[0]):
            self._recent.popleft()
        self._recent.appendleft(summary)
        if job.eventful:
            self._eventful.appendleft(job)

    def dead_letter(self, task_id: str, reason: str) -> None:
        """Note that the message of an interrupted job was dead-lettered."""
        for summary in self._recent:
            if summary["task_id"] == task_id:
                summary.update(result="dead letter", message=reason)
                break
        for job in self._eventful:
            if job.task_id == task_id:
                job.result, job.message = "dead letter", reason
                break

    def curve(self, task_id: str, epoch: int) -> LossCurve:
        """The curve of a job that resumes from ``epoch``, with its earlier attempt's points."""
        earlier = (job.curve for job in self._eventful if job.task_id == task_id)
        curve = next(earlier, None) or LossCurve()
        curve.go_back(epoch)
        return curve


def _repeats(summary: dict[str, Any], earlier: dict[str, Any]) -> bool:
    """Whether both are of one task that another worker runs: its message returns every minute."""
    return all(
        job["result"] == "retry later"
        and job["task_id"] == summary["task_id"]
        and not job["attempt"]
        for job in (summary, earlier)
    )
