"""The report of a finished style, stored beside its journal."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from application.checkpoint_previews import stored_previews
from application.ports import (
    BaseFacts,
    BlobStore,
    Clock,
    Reporter,
    ReportFile,
    StyleReport,
    TrainerBroken,
    TrainingPlan,
    TrainingSession,
    Unavailable,
)
from application.retry import retry
from application.stop_signal import Stopped, StopSignal
from application.storage_keys import StorageKeys
from domain.image import ImageSet
from domain.job import TrainingJob
from domain.task import TrainingTask

log = logging.getLogger(__name__)

T = TypeVar("T")

UPLOAD_TIMEOUT = 60.0
"""Seconds for which each file's upload is tried, while the announcement waits."""


@dataclass(frozen=True, kw_only=True)
class ReportWriter:
    """Draws the last previews, renders the report and stores its files."""

    blobs: BlobStore
    clock: Clock
    keys: StorageKeys
    reporter: Reporter
    base: BaseFacts

    def __call__(
        self,
        session: TrainingSession,
        task: TrainingTask,
        plan: TrainingPlan,
        images: ImageSet,
        job: TrainingJob,
        seconds: float,
        stop: StopSignal,
    ) -> None:
        """Store the report of a job whose weights are stored. What fails here is logged: the
        style is done.

        Args:
            seconds: since the job was taken up.
            stop: ends the drawing, after each round of previews (without the adapters, then with
                them), and the waiting for a store that is away. There is no report then: the
                announcement is worth more.

        Raises:
            TrainerBroken: by the session.
        """
        assert job.metric is not None  # recorded when training finished
        assert job.artifact is not None  # recorded when the weights were stored
        try:
            before = session.previews(adapted=False)
            stop.check()
            after = session.previews(adapted=True)
            stop.check()
            report = StyleReport(
                task=task,
                base=self.base,
                parameters=plan.parameters,
                images=images,
                history=session.history,
                before=before,
                after=after,
                underway=self._retry(
                    lambda: stored_previews(self.blobs, self.keys, task.task_id), stop
                ),
                artifact=job.artifact,
                metric=job.metric,
                seconds=seconds,
                attempt=job.attempt,
                peak_memory=session.peak_memory,
            )
            for file in self.reporter.render(report):
                self._retry(partial(self._store, task.task_id, file), stop)
        except TrainerBroken:
            raise
        except Stopped:
            # What is left of the grace is for the announcement.
            log.info("no report for task %s: the work should end", task.task_id)
        except Unavailable as error:
            log.warning("no report for task %s, the store is away: %s", task.task_id, error)
        except Exception:
            log.exception("no report for task %s", task.task_id)

    def _store(self, task_id: str, file: ReportFile) -> None:
        at = self.keys.report(task_id, file.name)
        self.blobs.put(at, file.data, content_type=file.content_type)

    def _retry(self, call: Callable[[], T], stop: StopSignal) -> T:
        return retry(call, self.clock, stop, UPLOAD_TIMEOUT)
