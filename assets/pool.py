"""Draw images ahead of training, on all cores, each from its own seed."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from assets.drawing import Rng, draw_scene, draw_texture

Pixels = NDArray[np.uint8]
"""Images: (count, height, width, 3)."""


def draw_scenes(count: int, size: tuple[int, int], seed: int) -> tuple[Pixels, list[str]]:
    """Draw plain scenes of `size` (width, height) with their captions."""
    drawn = _draw_all(partial(_scene, size, seed), count)
    return np.stack([pixels for pixels, _ in drawn]), [caption for _, caption in drawn]


def draw_textures(count: int, size: tuple[int, int], seed: int) -> Pixels:
    """Draw textures of `size` (width, height)."""
    return np.stack([pixels for pixels, _ in _draw_all(partial(_texture, size, seed), count)])


def _draw_all(draw: Callable[[int], tuple[Pixels, str]], count: int) -> list[tuple[Pixels, str]]:
    # Spawned, because forking a process in which torch has started threads may hang.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        return list(pool.map(draw, range(count), chunksize=100))


def _scene(size: tuple[int, int], seed: int, index: int) -> tuple[Pixels, str]:
    image, caption = draw_scene(_rng(seed, index, size), size)
    return np.asarray(image), caption


def _texture(size: tuple[int, int], seed: int, index: int) -> tuple[Pixels, str]:
    return np.asarray(draw_texture(_rng(seed, index, size), size)), ""


def _rng(seed: int, index: int, size: tuple[int, int]) -> Rng:
    return np.random.default_rng([seed, index, *size])
