"""How the commands end."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""


class UsageError(Exception):
    """What was asked for cannot be done; one line, with the remedy."""
