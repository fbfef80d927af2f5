"""Wait for a condition."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 60.0


def eventually(
    holds: Callable[[], object],
    *,
    within: float = PATIENCE,
    running: subprocess.Popen[Any] | None = None,
) -> None:
    """Wait until the condition holds.

    Args:
        within: seconds.
        running: fail early if this process ends, because the condition cannot hold then.
    """
    deadline = time.monotonic() + within
    while not holds():
        if running is not None and running.poll() is not None:
            raise AssertionError(f"it has ended: {running.stderr and running.stderr.read()}")
        assert time.monotonic() < deadline
        time.sleep(0.05)
