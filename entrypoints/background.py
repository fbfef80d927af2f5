"""Run a slow call while the command goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_background(call: Callable[[], T]) -> Callable[[], T]:
    """Start a call on its own thread.

    Returns:
        A function that waits for the call's result and returns it, or raises the call's error.
    """
    executor = ThreadPoolExecutor(1)
    future = executor.submit(call)
    executor.shutdown(wait=False)
    return future.result
