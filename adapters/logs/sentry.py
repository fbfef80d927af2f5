"""Send errors to Sentry. The library is an optional extra."""

from __future__ import annotations

import logging
from typing import Any

from adapters.logs.context import LogContext
from adapters.logs.redact import Redactor
from domain.errors import UserError


class SentryMissing(UserError):
    """The library is not installed, or the DSN is invalid; the text has the remedy."""


def start_sentry(
    dsn: str, *, version: str, context: LogContext, redact: Redactor, **options: Any
) -> None:
    """Send logged errors and uncaught exceptions, with the job as tags.

    Args:
        dsn: the Sentry project's DSN.
        version: of the program.
        context: provides the current job.
        redact: removes secrets from events.
        options: further arguments of ``sentry_sdk.init``.

    Raises:
        SentryMissing: Sentry cannot be started.
    """
    try:
        import sentry_sdk
        from sentry_sdk.utils import BadDsn
    except ImportError:
        raise SentryMissing(
            "SENTRY_DSN is set, but sentry-sdk is not installed: run pip install "
            "'style-trainer[sentry]'"
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
            # Local variables may hold images and tokens.
            include_local_variables=False,
            before_send=prepare,
            **options,
        )
    except BadDsn as error:
        raise SentryMissing(
            f"SENTRY_DSN is not the address of a Sentry project: {error}"
        ) from None
