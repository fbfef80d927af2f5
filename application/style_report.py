"""The report of a finished style, stored beside its journal."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from application.checkpoint_previews import stored_previews
from application.layout import Layout
from application.ports import (
    BaseFacts,
    BlobStore,
    Reporter,
    StyleReport,
    TrainingPlan,
    TrainingSession,
)
from domain.job import TrainingJob
from domain.picture import PictureSet
from domain.task import TrainingTask

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReportWriter:
    """Draws the last previews, renders the report and stores its files."""

    blobs: BlobStore
    layout: Layout
    reporter: Reporter
    base: BaseFacts

    def __call__(
        self,
        session: TrainingSession,
        task: TrainingTask,
        plan: TrainingPlan,
        pictures: PictureSet,
        job: TrainingJob,
        seconds: float,
    ) -> None:
        """Store the report of a job whose weights are stored. Raises nothing: the style is done.

        Args:
            seconds: since the job was taken up.
        """
        assert job.metric is not None  # recorded when training finished
        assert job.artifact is not None  # recorded when the weights were stored
        try:
            report = StyleReport(
                task=task,
                base=self.base,
                parameters=plan.parameters,
                pictures=pictures,
                history=session.history,
                before=session.previews(adapted=False),
                after=session.previews(adapted=True),
                underway=stored_previews(self.blobs, self.layout, task.task_id),
                artifact=job.artifact,
                metric=job.metric,
                seconds=seconds,
                attempt=job.attempt,
                peak_memory=session.peak_memory,
            )
            for file in self.reporter.render(report):
                at = self.layout.report(task.task_id, file.name)
                self.blobs.put(at, file.data, content_type=file.content_type)
        except Exception:
            log.exception("no report for task %s", task.task_id)
