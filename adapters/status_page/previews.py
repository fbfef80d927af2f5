"""The previews of the last style, kept for the page when its report is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from application.ports import Preview, Reporter, ReportFile, StyleReport


@dataclass(frozen=True)
class _Shelf:
    number: int = 0
    """One higher for every style: an address never names another picture later."""
    task_id: str = ""
    style_id: int = 0
    before: tuple[Preview, ...] = ()
    after: tuple[Preview, ...] = ()


class PreviewShelf:
    """Port ``Reporter`` around another one. Keeps the pictures of one style, in memory."""

    def __init__(self, inner: Reporter) -> None:
        self._inner = inner
        self._shelf = _Shelf()

    def render(self, report: StyleReport) -> Sequence[ReportFile]:
        """The report's files, as they are."""
        # One assignment: a reader on another thread sees the old shelf or the new one. Not the
        # whole report: it holds the training pictures.
        self._shelf = _Shelf(
            self._shelf.number + 1,
            report.task.task_id,
            report.task.style_id,
            report.before,
            report.after,
        )
        return self._inner.render(report)

    def shown(self) -> dict[str, Any] | None:
        """What there is to see, as JSON values; None when there is nothing."""
        shelf = self._shelf
        if not shelf.before:
            return None
        return {
            "task_id": shelf.task_id,
            "style_id": shelf.style_id,
            "pairs": [
                {
                    "prompt": before.prompt,
                    "seed": before.seed,
                    "before": f"/previews/{shelf.number}/{place}/before.png",
                    "after": f"/previews/{shelf.number}/{place}/after.png",
                }
                for place, before in enumerate(shelf.before)
            ],
        }

    def picture(self, number: int, place: int, when: str) -> bytes | None:
        """One picture as a PNG; None when it is not, or no longer, on the shelf."""
        shelf = self._shelf
        if shelf.number != number:
            return None
        row = {"before": shelf.before, "after": shelf.after}.get(when, ())
        return row[place].png if 0 <= place < len(row) else None
