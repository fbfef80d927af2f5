"""A loss curve of limited size for runs of any length."""

from __future__ import annotations

import math

MAX_POINTS = 400


class LossCurve:
    """One point per epoch; with too many, every second, then every fourth, and so on.

    The newest point is always kept.
    """

    def __init__(self) -> None:
        self._stride = 1
        self._points: list[tuple[int, float]] = []
        self._newest: tuple[int, float] | None = None

    def add(self, epoch: int, loss: float) -> None:
        """Add an epoch's loss; NaN and infinity are skipped.

        A repeated epoch means that the run was rolled back.
        """
        if not math.isfinite(loss):
            return
        self.go_back(epoch - 1)
        self._newest = (epoch, loss)
        if epoch % self._stride:
            return
        self._points.append(self._newest)
        if len(self._points) > MAX_POINTS:
            self._stride *= 2
            self._points = [point for point in self._points if point[0] % self._stride == 0]

    def go_back(self, epoch: int) -> None:
        """Remove the points after ``epoch``, from which the run continues."""
        self._points = [point for point in self._points if point[0] <= epoch]
        self._newest = self._points[-1] if self._points else None

    @property
    def points(self) -> list[tuple[int, float]]:
        """Epoch and loss, in order."""
        if self._newest is None or (self._points and self._points[-1] == self._newest):
            return list(self._points)
        return [*self._points, self._newest]
