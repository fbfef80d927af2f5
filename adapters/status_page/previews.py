"""The latest previews, kept for the page whenever a session draws some."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from application.ports import (
    Checkpoint,
    EpochRecord,
    Preview,
    StepReport,
    Trainer,
    TrainingPlan,
    TrainingSession,
)
from domain.parameters import TrainingParameters


@dataclass(frozen=True)
class _Shelf:
    run: int = 0
    number: int = 0
    """One higher with every change: an address never names another picture later."""
    style_id: int = 0
    epoch: int = 0
    before: tuple[Preview, ...] = ()
    after: tuple[Preview, ...] = ()


class PreviewShelf:
    """Holds the previews of one style, in memory. May be read from any thread."""

    def __init__(self) -> None:
        self._runs = 0
        self._shelf = _Shelf()

    def new_run(self) -> int:
        """A number for a run, whose first previews will take the place of those of another."""
        self._runs += 1
        return self._runs

    def keep(
        self, run: int, style_id: int, epoch: int, previews: tuple[Preview, ...], *, adapted: bool
    ) -> None:
        """Put what a session has drawn on the shelf."""
        if not previews:
            return
        shelf = self._shelf
        if shelf.run != run:
            shelf = _Shelf(run=run, number=shelf.number, style_id=style_id)
        shelf = replace(shelf, number=shelf.number + 1, epoch=epoch)
        # One assignment: a reader sees the old shelf or the new one.
        self._shelf = (
            replace(shelf, after=previews) if adapted else replace(shelf, before=previews)
        )

    def shown(self) -> dict[str, Any] | None:
        """What there is to see, as JSON values; None when there is nothing."""
        shelf = self._shelf
        known = shelf.after or shelf.before
        if not known:
            return None

        def address(row: tuple[Preview, ...], place: int, when: str) -> str | None:
            return f"/previews/{shelf.number}/{place}/{when}.png" if place < len(row) else None

        return {
            "style_id": shelf.style_id,
            "epoch": shelf.epoch,
            "pairs": [
                {
                    "prompt": preview.prompt,
                    "seed": preview.seed,
                    "before": address(shelf.before, place, "before"),
                    "after": address(shelf.after, place, "after"),
                }
                for place, preview in enumerate(known)
            ],
        }

    def picture(self, number: int, place: int, when: str) -> bytes | None:
        """One picture as a PNG; None when it is not, or no longer, on the shelf."""
        shelf = self._shelf
        if shelf.number != number:
            return None
        row = {"before": shelf.before, "after": shelf.after}.get(when, ())
        return row[place].png if 0 <= place < len(row) else None


@dataclass(frozen=True)
class PreviewingTrainer:
    """Port ``Trainer`` around another one: what its sessions draw is kept on the shelf, too."""

    inner: Trainer
    shelf: PreviewShelf

    @property
    def native_resolution(self) -> int:
        """The inner trainer's."""
        return self.inner.native_resolution

    def kind(self, parameters: TrainingParameters) -> Hashable | None:
        """The inner trainer's."""
        return self.inner.kind(parameters)

    @contextmanager
    def open(self, plan: TrainingPlan, resume: bytes | None) -> Iterator[TrainingSession]:
        """Set a run up."""
        with self.inner.open(plan, resume) as session:
            yield _Previewing(session, self.shelf, self.shelf.new_run(), plan.style_id)


@dataclass(frozen=True)
class _Previewing:
    inner: TrainingSession
    shelf: PreviewShelf
    run: int
    style_id: int

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
    def peak_memory(self) -> int:
        return self.inner.peak_memory

    def advance(self) -> StepReport:
        return self.inner.advance()

    def checkpoint(self) -> Checkpoint:
        return self.inner.checkpoint()

    def weights(self) -> bytes:
        return self.inner.weights()

    def previews(self, *, adapted: bool) -> tuple[Preview, ...]:
        drawn = self.inner.previews(adapted=adapted)
        history = self.inner.history
        epoch = history[-1].epoch if history else 0
        self.shelf.keep(self.run, self.style_id, epoch, drawn, adapted=adapted)
        return drawn
