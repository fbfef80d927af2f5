"""How the commands end."""

from __future__ import annotations

from domain.errors import UserError

EXIT_FAILED = 1
"""It could not be done, for a reason that is not in what was asked."""
EXIT_USAGE = 2
"""What was asked for, or a setting, is wrong."""
EXIT_SHUTDOWN_TIMEOUT = 3
"""The worker was asked to stop and was not done when its grace was over."""
EXIT_INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""


class UsageError(UserError):
    """What was asked for cannot be done; one line, with the remedy."""
