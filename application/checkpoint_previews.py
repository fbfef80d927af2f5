"""Previews at checkpoints and their scores, limited to a share of the training time."""

from __future__ import annotations

import logging

from application.event_bus import EventSink
from application.job_store import JobStore
from application.ports import BlobDenied, TrainerBroken, TrainingSession, Unavailable
from application.stop_signal import Stopped, StopSignal
from application.worker_config import WorkerConfig
from domain.events import PreviewsDrawn, PreviewsScored
from domain.job import TrainingJob
from domain.results import Preview, PreviewScores

log = logging.getLogger(__name__)


def draw_previews(
    session: TrainingSession,
    job: TrainingJob,
    epoch: int,
    events: EventSink,
    stop: StopSignal,
    *,
    with_lora: bool,
) -> tuple[tuple[Preview, ...], PreviewScores | None]:
    """Draw previews by the base model alone, or draw and score those with the style of an epoch.

    Returns:
        The previews, which are also published, and their scores; None if there are none. Errors
        of the scoring are logged.

    Raises:
        Stopped: between two denoising steps.
        TrainerBroken: raised by the session.
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


class CheckpointPreviews:
    """Draws, scores and stores previews of one run within the configured share of its time.

    Failures are logged and do not end the training. After a drawing error no more previews are
    drawn; after a storage error the next checkpoint tries again.
    """

    def __init__(self, store: JobStore, config: WorkerConfig) -> None:
        self._store = store
        self._clock = store.clock
        self._share = config.preview_share
        self._left = config.max_previews if config.preview_share else 0
        self._began = self._clock.monotonic()
        self._spent, self._rounds = 0.0, 0

    def draw(
        self, session: TrainingSession, job: TrainingJob, epoch: int, stop: StopSignal
    ) -> None:
        """Draw, score and store the previews of a checkpoint.

        Raises:
            Stopped: between two denoising steps.
            TrainerBroken: raised by the session.
        """
        started = self._clock.monotonic()
        try:
            drawn, scores = draw_previews(
                session, job, epoch, self._store.events, stop, with_lora=True
            )
        except (Stopped, TrainerBroken):
            raise
        except Exception:
            log.warning(
                "could not draw previews at epoch %d; this job draws no more", epoch, exc_info=True
            )
            self._left = 0
            return
        try:
            self._store.put_previews(job.task_id, epoch, drawn)
            if scores is not None:
                self._store.put_preview_scores(job.task_id, epoch, scores)
        except (Unavailable, BlobDenied) as error:
            log.warning("could not store the previews of epoch %d: %s", epoch, error)
        if scores is not None:
            self._store.events(PreviewsScored(**job.ids, epoch=epoch, scores=scores))
        self._spent += self._clock.monotonic() - started
        self._rounds += 1
        self._left -= 1

    def affordable(self) -> bool:
        """Whether another round stays within the limits. The first round ignores the share."""
        if not self._left or not self._rounds:
            return bool(self._left)
        trained = self._clock.monotonic() - self._began - self._spent
        return self._spent + self._spent / self._rounds <= self._share * trained
