"""Cost of the measured losses and of the previews' scores: a run with them beside one without.

Both run alternately. The run with them measures the loss before the first step and every ten
epochs, and scores the checkpoint previews that `PREVIEW_SHARE` allows, as by default. The time for
drawing previews is left out: that share bounds it, and the report needs the base's anyway.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapters.diffusion.trainer import DiffusionTrainer
    from application.ports import TrainingSession
    from domain.results import Preview, PreviewScores
    from domain.training_plan import TrainingPlan

EPOCHS = 60
IMAGES = 20
WITH, WITHOUT = {"validation_epochs": 10}, {"validation_epochs": 0}


def measuring_cost(
    trainer: DiffusionTrainer, plan: TrainingPlan, rounds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """The ratio of both times; and the shares of the measured losses and of the scores in the run
    without them, timed one by one, which a noisy machine changes less.

    Args:
        plan: a run of the usual length; its ``validation_epochs`` are ignored.
        clock: seconds of the device's work: processor time for a CPU, which others may use too.
    """
    ratios, of_losses, of_scores, scored = [], [], [], 0
    # The first run also chooses algorithms and compiles kernels.
    _run(trainer, _changed(plan, {**WITHOUT, "epochs": 1}), clock, scores=False)
    for number in range(rounds):
        runs = {
            measured: _run(
                trainer, _changed(plan, WITH if measured else WITHOUT), clock, scores=measured
            )
            for measured in (number % 2 == 0, number % 2 == 1)  # each goes first in turn
        }
        without, with_them = runs[False], runs[True]
        ratios.append(with_them.seconds / without.seconds)
        bare = with_them.seconds - with_them.measuring - with_them.scoring
        of_losses.append(with_them.measuring / bare)
        of_scores.append(with_them.scoring / bare)
        scored = with_them.scored
    return {
        "rounds": rounds,
        "images": len(plan.images),
        "epochs": plan.parameters.epochs,
        "ratio": round(statistics.median(ratios), 3),
        "lowest_ratio": round(min(ratios), 3),
        "highest_ratio": round(max(ratios), 3),
        "share_of_losses": round(statistics.median(of_losses), 3),
        "share_of_scores": round(statistics.median(of_scores), 3),
        "scored_rounds": scored,
    }


def cost_sentence(cost: Mapping[str, Any]) -> str:
    """The measured cost in words."""
    return (
        f"losses {cost['share_of_losses']:.1%} and scores {cost['share_of_scores']:.1%} of the "
        f"run's time, each timed by itself; whole runs with and without them differ by "
        f"{cost['ratio'] - 1:.1%} ({cost['lowest_ratio'] - 1:.1%} to "
        f"{cost['highest_ratio'] - 1:.1%} in {cost['rounds']} rounds of {cost['images']} images "
        f"and {cost['epochs']} epochs)"
    )


@dataclass
class _Stopwatch:
    """A session's preview methods, timed, as `CheckpointPreviews` calls them."""

    session: TrainingSession
    clock: Callable[[], float]
    seconds: float = 0.0
    """Of the whole run, without the drawing of previews."""
    drawing: float = 0.0
    measuring: float = 0.0
    measured: int = 0
    scoring: float = 0.0
    scored: int = 0

    def timed(self, measure: Callable[[], Any]) -> Callable[[], Any]:
        """``measure``, its time added to ``measuring``."""

        def measured() -> Any:
            started = self.clock()
            losses = measure()
            self.measuring += self.clock() - started
            self.measured += 1
            return losses

        return measured

    def previews(
        self, *, with_lora: bool, check: Callable[[], None] = lambda: None
    ) -> tuple[Preview, ...]:
        started = self.clock()
        drawn = self.session.previews(with_lora=with_lora, check=check)
        self.drawing += self.clock() - started
        return drawn

    def score_previews(
        self, previews: tuple[Preview, ...], check: Callable[[], None] = lambda: None
    ) -> PreviewScores | None:
        self.previews(with_lora=False)  # kept by the session: the first score needs them
        started = self.clock()
        scores = self.session.score_previews(previews, check)
        self.scoring += self.clock() - started
        self.scored += 1
        return scores


def _changed(plan: TrainingPlan, values: dict[str, Any]) -> TrainingPlan:
    return replace(plan, parameters=replace(plan.parameters, **values))


def _run(
    trainer: DiffusionTrainer, plan: TrainingPlan, clock: Callable[[], float], *, scores: bool
) -> _Stopwatch:
    from adapters.clock import SystemClock
    from adapters.memory import MemoryBlobStore
    from application.job_store import JobStore, StorageKeys
    from application.stop_signal import StopSignal
    from application.style_report import CheckpointPreviews
    from application.worker_config import WorkerConfig
    from domain.job import TrainingJob
    from domain.location import Bucket

    config, stop = WorkerConfig(), StopSignal()
    store = JobStore(
        blobs=MemoryBlobStore(),
        keys=StorageKeys(Bucket("models")),
        clock=SystemClock(),
        events=lambda _: None,
        worker="benchmark",
    )
    job = TrainingJob(task_id="benchmark", style_id=plan.style_id)
    started = clock()
    with trainer.open(plan, None) as session:
        watch = _Stopwatch(session, clock)
        previews = CheckpointPreviews(store, config)
        if plan.parameters.validation_epochs:
            session.measure = watch.timed(session.measure)
        while not session.finished:
            step = session.advance()
            due = step.epoch_finished and step.epoch % config.checkpoint_every == 0
            if scores and due and not session.finished and previews.affordable():
                previews.draw(watch, job, step.epoch, stop)
        session.weights()  # waits for the device
    if watch.measured:  # the loss before the first step was measured while the run was opened
        watch.measuring *= 1 + 1 / watch.measured
    watch.seconds = clock() - started - watch.drawing
    return watch
