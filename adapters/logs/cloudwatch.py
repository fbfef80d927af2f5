"""Sends log lines to Amazon CloudWatch Logs. The library, watchtower, is an optional extra."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from typing import Any

from domain.errors import UserError

log = logging.getLogger(__name__)

MAX_WAITING = 4_000
"""Lines that wait to be sent; of more, the newest are not sent."""
MAX_LINE_BYTES = 32 * 1024
"""A longer line loses its end."""
SEND_SECONDS = 5
"""How long a line waits for others to be sent with."""
CLOSE_SECONDS = 2
"""How long the end of the process waits for the last lines."""


class CloudWatchMissing(UserError):
    """The library is not installed; the text says how to install it."""


@dataclass(frozen=True, kw_only=True)
class CloudWatchOptions:
    """Where the lines go, and with which credentials."""

    group: str
    """The log group. It must exist; the stream in it is created."""
    stream: str
    """The log stream. CloudWatch allows no colon and no asterisk; they become ``_``."""
    region: str
    endpoint_url: str | None = None
    """None: AWS's own."""
    access_key_id: str | None = None
    """None: boto3 looks for credentials (a role, a profile)."""
    secret_access_key: str | None = None
    session_token: str | None = None


def cloudwatch_handler(options: CloudWatchOptions) -> logging.Handler:
    """A handler that sends lines in the background, and never waits for CloudWatch.

    CloudWatch that cannot be reached or refuses is logged once, and once more when it works
    again. Lines that cannot be sent meanwhile are missing there only. No call is made here.

    Raises:
        CloudWatchMissing: watchtower is not installed.
    """
    try:
        import watchtower
    except ImportError:
        raise CloudWatchMissing(
            "CLOUDWATCH_LOG_GROUP is set, but watchtower is not installed: "
            "pip install 'style-trainer[cloudwatch]'"
        ) from None

    class Handler(watchtower.CloudWatchLogHandler):
        FLUSH_TIMEOUT = CLOSE_SECONDS

        def emit(self, record: logging.LogRecord) -> None:
            """Queue a line, unless too many wait already."""
            if sum(queue.qsize() for queue in self.queues.values()) < MAX_WAITING:
                super().emit(record)  # type: ignore[no-untyped-call]

    # Each failed try would be one; ``_Outcome`` logs the first of them.
    warnings.filterwarnings("ignore", category=watchtower.WatchtowerWarning)
    stream = re.sub(r"[:*{}]", "_", options.stream)[:512]
    return Handler(
        log_group_name=options.group,
        log_stream_name=stream,
        boto3_client=_client(options),
        # It would be made here, and the worker's start would wait for CloudWatch.
        create_log_group=False,
        send_interval=SEND_SECONDS,
        max_message_size=MAX_LINE_BYTES,
    )


def _client(options: CloudWatchOptions) -> Any:
    import boto3
    from botocore.config import Config

    client = boto3.session.Session().client(
        "logs",
        region_name=options.region,
        endpoint_url=options.endpoint_url,
        aws_access_key_id=options.access_key_id,
        aws_secret_access_key=options.secret_access_key,
        aws_session_token=options.session_token,
        config=Config(
            connect_timeout=5,
            read_timeout=10,
            retries={"mode": "standard", "total_max_attempts": 3},
        ),
    )
    outcome = _Outcome(options.group)
    event = "cloudwatch-logs.PutLogEvents"
    client.meta.events.register(f"after-call.{event}", outcome.answered)
    client.meta.events.register(f"after-call-error.{event}", outcome.not_answered)
    return client


class _Outcome:
    """Logs when sending begins to fail and when it works again."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._failing = False

    def answered(self, parsed: dict[str, Any], **_: Any) -> None:
        error = parsed.get("Error")
        if error is None:
            if self._failing:
                self._failing = False
                log.info("CloudWatch takes log lines again")
        elif error["Code"] == "ResourceNotFoundException" and "stream" in error["Message"]:
            pass  # watchtower creates the stream now
        else:
            self._fail(f"{error['Code']}: {error['Message']}")

    def not_answered(self, exception: Exception, **_: Any) -> None:
        self._fail(str(exception))

    def _fail(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            log.warning(
                "CloudWatch does not take log lines for the group %s (%s); they are on the "
                "console only",
                self._group,
                reason,
            )
