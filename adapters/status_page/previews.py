"""Keep the latest previews of each job for the page."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from application.event_bus import MessageSettled, WorkerEvent
from domain.events import PreviewsDrawn
from domain.results import Preview


@dataclass(frozen=True)
class _Drawn:
    """The previews of one job."""

    style_id: int
    number: int = 0
    """Rises with every change, so that a URL never names another image later."""
    epoch: int = 0
    before: tuple[Preview, ...] = ()
    after: tuple[Preview, ...] = ()


class PreviewCache:
    """Port ``EventSink``: holds in memory the previews of every active job, and of the last job
    that ended with previews.

    May be used from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._active: dict[str, _Drawn] = {}
        """By task id."""
        self._ended: _Drawn | None = None

    def __call__(self, event: WorkerEvent) -> None:
        """Keep previews in place of the job's earlier ones."""
        match event:
            case PreviewsDrawn(task_id=task_id, previews=previews) if previews:
                with self._lock:
                    drawn = self._active.get(task_id) or _Drawn(event.style_id)
                    drawn = replace(drawn, number=next(self._numbers), epoch=event.epoch)
                    self._active[task_id] = (
                        replace(drawn, after=previews)
                        if event.with_lora
                        else replace(drawn, before=previews)
                    )
            case MessageSettled(task_id=task_id):
                with self._lock:
                    self._ended = self._active.pop(task_id or "", self._ended)

    def shown(self, style_id: int | None = None) -> dict[str, Any] | None:
        """The previews as JSON values; None if there are none.

        Args:
            style_id: the style to show. If it has no previews, those of the last ended job are
                shown, never those of another active job. None: the newest previews.
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
            entries = [*self._active.values(), self._ended]
        return [drawn for drawn in entries if drawn is not None]

    def _best(self, style_id: int | None) -> _Drawn | None:
        own = [drawn for drawn in self._all() if style_id in (None, drawn.style_id)]
        return max(own, key=lambda drawn: drawn.number, default=self._ended)
