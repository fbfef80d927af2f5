"""Keep the latest previews of each run for the page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from application.ports import Trainer, TrainingSession
from domain.loss_curve import EpochRecord
from domain.parameters import TrainingParameters
from domain.preview import Preview, PreviewScores
from domain.progress import StepReport
from domain.report import BaseFacts
from domain.results import Checkpoint
from domain.training_plan import TrainingPlan


@dataclass(frozen=True)
class _Drawn:
    """Previews of one run."""

    style_id: int
    number: int = 0
    """Rises with every change, so that a URL never names another image later."""
    epoch: int = 0
    before: tuple[Preview, ...] = ()
    after: tuple[Preview, ...] = ()


class PreviewCache:
    """Holds in memory the previews of every open run and of the last closed one.

    May be used from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = count(1)
        self._numbers = count(1)
        self._open: dict[int, _Drawn] = {}
        self._closed: _Drawn | None = None

    def open(self, style_id: int) -> int:
        """Add a run of a style; returns its number."""
        with self._lock:
            run = next(self._runs)
            self._open[run] = _Drawn(style_id)
            return run

    def keep(self, run: int, epoch: int, previews: tuple[Preview, ...], *, adapted: bool) -> None:
        """Store a run's previews in place of its earlier ones."""
        if not previews:
            return
        with self._lock:
            drawn = replace(self._open[run], number=next(self._numbers), epoch=epoch)
            self._open[run] = (
                replace(drawn, after=previews) if adapted else replace(drawn, before=previews)
            )

    def close(self, run: int) -> None:
        """Close a run; its previews stay until another closed run replaces them."""
        with self._lock:
            drawn = self._open.pop(run)
            if drawn.number:
                self._closed = drawn

    def shown(self, style_id: int | None = None) -> dict[str, Any] | None:
        """The previews as JSON values; None if there are none.

        Args:
            style_id: the style to show. If it has no previews, the last closed run's are shown,
                never those of another open run. None: the newest previews.
        """
        drawn = self._best(style_id)
        if drawn is None:
            return None

        def address(row: tuple[Preview, ...], place: int, when: str) -> str | None:
            return f"/previews/{drawn.number}/{place}/{when}.png" if place < len(row) else None

        return {
            "style_id": drawn.style_id,
            "epoch": drawn.epoch,
            "pairs": [
                {
                    "prompt": preview.prompt,
                    "seed": preview.seed,
                    "before": address(drawn.before, place, "before"),
                    "after": address(drawn.after, place, "after"),
                }
                for place, preview in enumerate(drawn.after or drawn.before)
            ],
        }

    def image(self, number: int, place: int, when: str) -> bytes | None:
        """One image as a PNG; None if it is not in the cache."""
        for drawn in self._all():
            if drawn.number == number:
                row = {"before": drawn.before, "after": drawn.after}.get(when, ())
                return row[place].png if 0 <= place < len(row) else None
        return None

    def _all(self) -> list[_Drawn]:
        with self._lock:
            found = [*self._open.values(), self._closed]
        return [drawn for drawn in found if drawn is not None and drawn.number]

    def _best(self, style_id: int | None) -> _Drawn | None:
        found = self._all()
        own = [drawn for drawn in found if style_id in (None, drawn.style_id)]
        return max(own, key=lambda drawn: drawn.number, default=self._closed)


@dataclass(frozen=True)
class PreviewingTrainer:
    """Port ``Trainer`` around another one; caches the previews of its sessions."""

    inner: Trainer
    preview_cache: PreviewCache

    @property
    def base(self) -> BaseFacts:
        """The inner trainer's."""
        return self.inner.base

    @property
    def native_resolution(self) -> int:
        """The inner trainer's."""
        return self.inner.native_resolution

    def batch_key(self, parameters: TrainingParameters) -> Hashable | None:
        """The inner trainer's."""
        return self.inner.batch_key(parameters)

    def in_folder(self, weights: bytes) -> Mapping[str, bytes]:
        """The inner trainer's."""
        return self.inner.in_folder(weights)

    @contextmanager
    def open(self, plan: TrainingPlan, resume: bytes | None) -> Iterator[TrainingSession]:
        """Open a run."""
        with self.inner.open(plan, resume) as session:
            run = self.preview_cache.open(plan.style_id)
            try:
                yield _Previewing(session, self.preview_cache, run)
            finally:
                self.preview_cache.close(run)


@dataclass(frozen=True)
class _Previewing:
    inner: TrainingSession
    preview_cache: PreviewCache
    run: int

    @property
    def total_steps(self) -> int:
        return self.inner.total_steps

    @property
    def finished(self) -> bool:
        return self.inner.finished

    @property
    def history(self) -> Sequence[EpochRecord]:
        return self.inner.history

    @property
    def before(self) -> EpochRecord | None:
        return self.inner.before

    @property
    def peak_memory(self) -> int:
        return self.inner.peak_memory

    def advance(self) -> StepReport:
        return self.inner.advance()

    def checkpoint(self) -> Checkpoint:
        return self.inner.checkpoint()

    def weights(self) -> bytes:
        return self.inner.weights()

    def restore(self, checkpoint: bytes) -> None:
        self.inner.restore(checkpoint)

    def judge(
        self, previews: tuple[Preview, ...], check: Callable[[], None] = lambda: None
    ) -> PreviewScores | None:
        return self.inner.judge(previews, check)

    def previews(
        self, *, adapted: bool, check: Callable[[], None] = lambda: None
    ) -> tuple[Preview, ...]:
        drawn = self.inner.previews(adapted=adapted, check=check)
        history = self.inner.history
        epoch = history[-1].epoch if history else 0
        self.preview_cache.keep(self.run, epoch, drawn, adapted=adapted)
        return drawn
