"""Errors to Sentry, where an operator has one. The library is an optional extra."""

from __future__ import annotations

import logging
from typing import Any

from adapters.logs.context import LogContext
from adapters.logs.redact import Redactor
from domain.errors import UserError


class SentryMissing(UserError):
    """The library is not installed, or the address is none; the text says what to do."""


def start_sentry(
    dsn: str, *, version: str, context: LogContext, redact: Redactor, **options: Any
) -> None:
    """Send what is logged as an error, and what nobody catches, with the job as tags.

    Args:
        dsn: the project's address at Sentry.
        version: of the program.
        context: knows the job in hand.
        redact: takes secrets out of what is sent.
        options: more for ``sentry_sdk.init``.

    Raises:
        SentryMissing: it cannot be started.
    """
    try:
        import sentry_sdk
        from sentry_sdk.utils import BadDsn
    except ImportError:
        raise SentryMissing(
            "SENTRY_DSN is set, but the library is not there: pip install 'style-trainer[sentry]'"
        ) from None

    def prepare(event: Any, _hint: Any) -> Any:
        record = logging.makeLogRecord({})
        context.filter(record)
        tags = {name: getattr(record, name) for name in ("task_id", "style_id", "attempt")}
        scrubbed = redact.deep(event)
        known = {name: str(value) for name, value in tags.items() if value is not None}
        scrubbed["tags"] = {**(scrubbed.get("tags") or {}), **known}
        return scrubbed

    try:
        sentry_sdk.init(
            dsn=dsn,
            release=f"style-trainer@{version}",
            server_name=context.worker,
            # The values of local variables are images and tokens.
            include_local_variables=False,
            before_send=prepare,
            **options,
        )
    except BadDsn as error:
        raise SentryMissing(f"SENTRY_DSN is no address of a Sentry project: {error}") from None
