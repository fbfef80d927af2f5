"""The commands. Only this package reads the environment and chooses adapters."""

import sys
from typing import Any


def _print_uncaught(kind: type[BaseException], *details: Any) -> None:
    """Ctrl-C before ``run_command`` handles it, while modules are imported, prints nothing."""
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, *details)


sys.excepthook = _print_uncaught
