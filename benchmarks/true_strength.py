"""True style strength of images: a regression on pixels, fitted to drawings of known strength.

Independent of the scores that it tests: it sees histograms of colours and of edges, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from assets.style_dial import draw_dialled

Values = NDArray[np.float64]

SIDE = 128
COLOUR_BINS = 4
"""Bins of each channel in the joint histogram of colours."""
EDGES = (0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 2.0)
"""Limits of the bins of brightness differences between neighbouring pixels."""
SCALES = (1, 2, 4)
"""Factors by which an image is reduced before its edges are counted."""
RIDGE = 3.0
"""Weight of the squared coefficients (ridge regression; Hoerl and Kennard, 1970)."""


@dataclass(frozen=True)
class StrengthMeter:
    """A linear function of an image's features: 0 for the plain style, 1 for ink and wash."""

    mean: Values
    spread: Values
    coefficients: Values
    intercept: float

    def __call__(self, pngs: Sequence[bytes]) -> float:
        """Mean strength of the images."""
        features = np.stack([_features(Image.open(BytesIO(png))) for png in pngs])
        return float(np.mean(self._strengths(features)))

    def _strengths(self, features: Values) -> Values:
        found: Values = (features - self.mean) / self.spread @ self.coefficients + self.intercept
        return found


def fit_strength(count: int = 600, seed: int = 11) -> StrengthMeter:
    """Fit the regression to drawings at random strengths."""
    rng = np.random.default_rng(seed)
    strengths = rng.uniform(0, 1, count)
    features = np.stack([_features(draw_dialled(rng, SIDE, share)[0]) for share in strengths])
    mean, spread = features.mean(0), features.std(0) + 1e-3
    scaled = (features - mean) / spread
    penalty = RIDGE * np.eye(scaled.shape[1])
    coefficients = np.linalg.solve(
        scaled.T @ scaled + penalty, scaled.T @ (strengths - strengths.mean())
    )
    return StrengthMeter(mean, spread, coefficients, float(strengths.mean()))


def _features(image: Image.Image) -> Values:
    """Shares of pixels in each bin, of colours and of edges at several scales."""
    image = image.convert("RGB").resize((SIDE, SIDE))
    pixels = np.asarray(image).reshape(-1, 3)
    colours, _ = np.histogramdd(pixels, bins=COLOUR_BINS, range=[(0, 256)] * 3)
    parts = [np.sqrt(colours.ravel() / len(pixels))]
    for scale in SCALES:
        grey = np.asarray(image.convert("L").reduce(scale), dtype=np.float64) / 255
        steps = np.hypot(np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1])
        parts.append(np.histogram(steps, bins=EDGES)[0] / steps.size)
    return np.concatenate(parts)
