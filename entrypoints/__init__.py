"""The commands. Only this package reads the environment and chooses adapters."""

import sys
from types import TracebackType


def _print_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Ctrl-C before ``run_command`` handles it, while modules are imported, prints nothing."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _print_uncaught
