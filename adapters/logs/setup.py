"""Set up logging: text for a terminal, JSON for log collectors."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

from rich.console import Console

from adapters.logs.context import LogContext
from adapters.logs.formats import JsonFormatter, TextFormatter
from adapters.logs.redact import Redactor

VERBOSE_LIBRARIES = (
    "PIL",
    "matplotlib",
    "urllib3",
    "httpx",
    "httpcore",
    "boto3",
    "botocore",
    "s3transfer",
    "asyncio",
    "uvicorn",
    "diffusers",
    "transformers",
    "huggingface_hub",
)
"""Libraries whose messages below WARNING are hidden, because they do not help operators."""
HIDDEN_LIBRARIES = ("pika",)
"""Libraries whose own error messages are hidden, because our adapters log them in one line."""


@dataclass(frozen=True)
class Logging:
    """The filters of all log lines of a process."""

    context: LogContext
    """Adds the job's id to each line; an observer of events."""
    redact: Redactor

    def also_to(self, handler: logging.Handler) -> None:
        """Also send the log lines, as JSON, to another handler."""
        handler.setFormatter(JsonFormatter(self.redact))
        _install(handler, self.context)


def silent_logging() -> Logging:
    """Logging without an output of its own."""
    return Logging(LogContext(), Redactor())


def start_logging(
    *,
    level: str,
    form: str = "auto",
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> Logging:
    """Send the log to ``stream``, standard error if none is given.

    Args:
        form: ``text``, ``json``, or ``auto``: text on a terminal, else JSON.
        secrets: texts to hide in all lines.
    """
    stream = sys.stderr if stream is None else stream
    logging_setup = Logging(LogContext(), Redactor(secrets))
    handler = logging.StreamHandler(stream)
    terminal = Console(file=stream)  # handles NO_COLOR, FORCE_COLOR and TERM
    if form == "json" or (form == "auto" and not terminal.is_terminal):
        handler.setFormatter(JsonFormatter(logging_setup.redact))
    else:
        colour = terminal.is_terminal and not terminal.no_color
        handler.setFormatter(TextFormatter(logging_setup.redact, colour=colour))
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if _is_ours(handler)]:
        root.removeHandler(old)
    _install(handler, logging_setup.context)
    root.setLevel(level)
    logging.captureWarnings(True)
    for name in VERBOSE_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in HIDDEN_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING if level == "DEBUG" else logging.CRITICAL)
    return logging_setup


def log_uncaught_exceptions() -> None:
    """Log uncaught exceptions of threads and of the process."""

    def of_process(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, traceback)
            return
        _log(error, "the process ends")

    def of_thread(what: threading.ExceptHookArgs) -> None:
        if what.exc_value is not None:
            _log(what.exc_value, f"thread {what.thread.name if what.thread else '?'} ends")

    sys.excepthook = of_process
    threading.excepthook = of_thread


def _is_ours(handler: logging.Handler) -> bool:
    return any(isinstance(one, LogContext) for one in handler.filters)


def _install(handler: logging.Handler, context: LogContext) -> None:
    handler.addFilter(context)
    logging.getLogger().addHandler(handler)


def _log(error: BaseException, what: str) -> None:
    logging.getLogger(__name__).critical(
        "%s: %s", what, error, exc_info=(type(error), error, error.__traceback__)
    )
