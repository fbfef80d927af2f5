"""A style's report: previews and scores at checkpoints, and the page of the finished style."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

from application.event_bus import EventSink
from application.job_store import JobStore
from application.journal import JobRecord
from application.ports import BlobDenied, Reporter, TrainerBroken, TrainingSession, Unavailable
from application.retry import retry
from application.stop_signal import Stopped, StopSignal
from application.worker_config import WorkerConfig
from domain.events import PreviewsDrawn, PreviewsScored
from domain.image import ImageSet
from domain.job import TrainingJob
from domain.report import BaseFacts, StyleReport
from domain.results import Preview, PreviewScores
from domain.task import TrainingTask

log = logging.getLogger(__name__)

RETRY_TIMEOUT = 60.0
"""Seconds for which a read of the previews, or the upload of a file, is retried."""


class CheckpointPreviews:
    """Draws, scores and stores previews of one run within the configured share of its time.

    Failures other than ``Stopped`` and ``TrainerBroken`` are logged and do not end the training.
    After a drawing error no more previews are drawn; after a storage error the next checkpoint
    tries again.
    """

    def __init__(self, store: JobStore, config: WorkerConfig) -> None:
        self._store = store
        self._clock = store.clock
        self._share = config.preview_share
        self._left = config.max_preview_rounds if config.preview_share else 0
        self._began = self._clock.monotonic()
        self._spent, self._rounds = 0.0, 0

    def affordable(self) -> bool:
        """Whether another round stays within the limits. The first round ignores the share."""
        if not self._left or not self._rounds:
            return bool(self._left)
        trained = self._clock.monotonic() - self._began - self._spent
        return self._spent + self._spent / self._rounds <= self._share * trained

    def draw(
        self, session: TrainingSession, job: TrainingJob, epoch: int, stop: StopSignal
    ) -> None:
        started = self._clock.monotonic()
        try:
            drawn, scores = _draw(session, job, epoch, self._store.events, stop, with_lora=True)
        except (Stopped, TrainerBroken):
            raise
        except Exception:
            log.warning(
                "could not draw previews at epoch %d; this job draws no more", epoch, exc_info=True
            )
            self._left = 0
            return
        try:
            self._store.put_previews(job.task_id, epoch, drawn, scores)
        except (Unavailable, BlobDenied) as error:
            log.warning("could not store the previews of epoch %d: %s", epoch, error)
        if scores is not None:
            self._store.events(PreviewsScored(**job.ids, epoch=epoch, scores=scores))
        self._spent += self._clock.monotonic() - started
        self._rounds += 1
        self._left -= 1


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
        """Store the report of a job whose weights are stored. Errors other than ``TrainerBroken``
        are logged only, because the style is finished.

        Args:
            stop: cancels the report between two denoising steps of its previews, and while the
                store is unavailable.
        """
        job, clock = record.job, self.store.clock
        ended = clock.monotonic()
        assert job.parameters is not None  # recorded when training began
        assert job.metric is not None  # recorded when training finished
        assert job.artifact is not None  # recorded when the weights were stored
        try:
            epoch = job.metric.delivered_epoch or job.metric.epochs
            draw = partial(_draw, session, job, epoch, self.store.events, stop)
            before, _ = draw(with_lora=False) if self.with_previews else ((), None)
            after, last = draw(with_lora=True) if self.with_previews else ((), None)
            stop.check()
            get = partial(self.store.previews, task.task_id)
            checkpoint_previews = retry(get, clock, stop, RETRY_TIMEOUT)
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
                retry(put, clock, stop, RETRY_TIMEOUT)
        except TrainerBroken:
            raise
        except Stopped:
            # Keep the remaining shutdown time for settling the message.
            log.info("no report for task %s: a stop was requested", task.task_id)
        except Unavailable as error:
            log.warning("no report for task %s, the store is unavailable: %s", task.task_id, error)
        except Exception:
            log.exception("no report for task %s", task.task_id)


def _draw(
    session: TrainingSession,
    job: TrainingJob,
    epoch: int,
    events: EventSink,
    stop: StopSignal,
    *,
    with_lora: bool,
) -> tuple[tuple[Preview, ...], PreviewScores | None]:
    """Draw and publish previews by the base model alone, or with an epoch's style; score the
    latter. The scores are None if there are none; errors of the scoring are logged.
    """
    drawn = session.previews(with_lora=with_lora, check=stop.check)
    events(PreviewsDrawn(**job.ids, epoch=epoch, previews=drawn, with_lora=with_lora))
    try:
        return drawn, session.score_previews(drawn, stop.check) if with_lora else None
    except (Stopped, TrainerBroken):
        raise
    except Exception:
        log.warning("could not score the previews", exc_info=True)
        return drawn, None
