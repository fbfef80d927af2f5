"""Log formats: text for terminals, JSON for programs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from adapters.common.text import printable

CONTEXT = ("worker", "task_id", "style_id", "attempt")
"""Fields that ``LogContext`` adds to a record."""

_COLOURS = {
    logging.DEBUG: "2",
    logging.WARNING: "33",
    logging.ERROR: "31",
    logging.CRITICAL: "1;31",
}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, the job, and the traceback.

    Args:
        redact: removes secrets from a text.
    """

    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        fields: dict[str, Any] = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": self._redact(_message(record)),
        }
        for name in CONTEXT:
            value = getattr(record, name, None)
            if value is not None:
                fields[name] = value
        if record.exc_info:
            fields["exception"] = self._redact(self.formatException(record.exc_info))
        if record.stack_info:
            fields["stack"] = self._redact(record.stack_info)
        return printable(json.dumps(fields, ensure_ascii=False))


class TextFormatter(logging.Formatter):
    """One readable line; further lines, such as a traceback, are indented.

    Args:
        redact: removes secrets from a text.
        colour: use ANSI colours.
    """

    def __init__(self, redact: Callable[[str], str], *, colour: bool = False) -> None:
        super().__init__()
        self._redact = redact
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        message = _message(record)
        details = [record.stack_info or ""]
        if record.exc_info:
            details.append(self.formatException(record.exc_info))
        text = "\n".join([f"{_whose(record, message)}{message}", *filter(None, details)])
        first, *rest = map(printable, self._redact(text).rstrip("\n").split("\n"))
        at = _time(record).astimezone().strftime("%H:%M:%S")
        level = f"{record.levelname:<7}"
        colour = _COLOURS.get(record.levelno)
        if self._colour and colour:
            level = f"\x1b[{colour}m{level}\x1b[0m"
        return "\n    ".join([f"{at} {level} {first}", *rest])


def _whose(record: logging.LogRecord, message: str) -> str:
    """The job, unless the message names it."""
    task_id = getattr(record, "task_id", None)
    if task_id is None or task_id in message:
        return ""
    attempt = getattr(record, "attempt", None)
    number = "" if attempt is None else f", attempt {attempt}"
    return f"[style {getattr(record, 'style_id', '?')}, task {task_id[:8]}{number}] "


def _message(record: logging.LogRecord) -> str:
    """The message; unformatted if its arguments do not match."""
    try:
        return record.getMessage()
    except Exception:
        return f"{record.msg} {record.args!r}"


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
