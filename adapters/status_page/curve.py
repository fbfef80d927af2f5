"""A loss curve that stays small however long the run."""

from __future__ import annotations

import math

MAX_POINTS = 400


class LossCurve:
    """One point an epoch; once there are too many, every second, then every fourth, and so on.

    The newest point is always there.
    """

    def __init__(self) -> None:
        self._stride = 1
        self._points: list[tuple[int, float]] = []
        self._newest: tuple[int, float] | None = None

    def add(self, epoch: int, loss: float) -> None:
        """Note an epoch's loss; one that is no number cannot be drawn.

        An epoch that was there before means that the run has gone back.
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
        """Forget what came after ``epoch``: the run goes on from there."""
        self._points = [point for point in self._points if point[0] <= epoch]
        self._newest = self._points[-1] if self._points else None

    @property
    def points(self) -> list[tuple[int, float]]:
        """Epoch and loss, in order."""
        if self._newest is None or (self._points and self._points[-1] == self._newest):
            return list(self._points)
        return [*self._points, self._newest]
