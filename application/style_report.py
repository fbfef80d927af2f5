"""Write the report of a finished style."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

from application.checkpoint_previews import draw_previews
from application.job_store import JobStore
from application.journal import JobRecord
from application.ports import Reporter, TrainerBroken, TrainingSession, Unavailable
from application.retry import retry
from application.stop_signal import Stopped, StopSignal
from domain.image import ImageSet
from domain.report import BaseFacts, StyleReport
from domain.task import TrainingTask

log = logging.getLogger(__name__)

UPLOAD_TIMEOUT = 60.0
"""Seconds for which each file's upload is retried."""


@dataclass(frozen=True, kw_only=True)
class ReportWriter:
    """Draws the last previews, renders the report and stores its files."""

    store: JobStore
    reporter: Reporter
    with_previews: bool = True
    """Whether the report has previews. Drawing them is slow on a CPU."""

    def __call__(
        self,
        session: TrainingSession,
        task: TrainingTask,
        images: ImageSet,
        record: JobRecord,
        base: BaseFacts,
        stop: StopSignal,
    ) -> None:
        """Store the report of a job whose weights are stored. Errors are logged only, because the
        style is finished.

        Args:
            record: the record of the job.
            base: the base model of the run.
            stop: cancels the report between two denoising steps of its previews, and while the
                store is unavailable.

        Raises:
            TrainerBroken: raised by the session.
        """
        job, clock = record.job, self.store.clock
        ended = clock.monotonic()
        assert job.parameters is not None  # recorded when training began
        assert job.metric is not None  # recorded when training finished
        assert job.artifact is not None  # recorded when the weights were stored
        try:
            epoch = job.metric.delivered_epoch or job.metric.epochs
            draw = partial(draw_previews, session, job, epoch, self.store.events, stop)
            before, _ = draw(with_lora=False) if self.with_previews else ((), None)
            after, last = draw(with_lora=True) if self.with_previews else ((), None)
            stop.check()
            get = partial(self.store.previews, task.task_id)
            checkpoint_previews = retry(get, clock, stop, UPLOAD_TIMEOUT)
            scores = self.store.preview_scores(
                task.task_id, [drawn for drawn, _ in checkpoint_previews]
            )
            if last is not None:
                scores[epoch] = last
            report = StyleReport(
                task=task,
                base=base,
                parameters=job.parameters,
                images=images,
                history=session.history,
                before=before,
                after=after,
                checkpoint_previews=checkpoint_previews,
                scores=dict(sorted(scores.items())),
                artifact=job.artifact,
                metric=job.metric,
                seconds=ended - record.opened_at,
                attempt=job.attempt,
                peak_memory=session.peak_memory,
            )
            for file in self.reporter.render(report):
                put = partial(self.store.put_report, task.task_id, file)
                retry(put, clock, stop, UPLOAD_TIMEOUT)
        except TrainerBroken:
            raise
        except Stopped:
            # Keep the remaining shutdown time for settling the message.
            log.info("no report for task %s: a stop was requested", task.task_id)
        except Unavailable as error:
            log.warning("no report for task %s, the store is unavailable: %s", task.task_id, error)
        except Exception:
            log.exception("no report for task %s", task.task_id)
