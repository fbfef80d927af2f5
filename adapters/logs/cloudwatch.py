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
"""Maximum lines waiting to be sent; further lines are dropped."""
MAX_LINE_BYTES = 32 * 1024
"""Longer lines are cut."""
SEND_SECONDS = 5
"""Seconds for which lines are collected into a batch."""
CLOSE_SECONDS = 2
"""Seconds that the process waits at exit for the last lines."""


class CloudWatchMissing(UserError):
    """The library is not installed; the text says how to install it."""


@dataclass(frozen=True, kw_only=True)
class CloudWatchOptions:
    """Destination and credentials."""

    group: str
    """The log group. Create it beforehand; the worker creates the stream."""
    stream: str
    """The log stream. Colons and asterisks, which CloudWatch rejects, become ``_``."""
    region: str
    endpoint_url: str | None = None
    """None: the AWS endpoint."""
    access_key_id: str | None = None
    """None: boto3's default credential chain (a role, a profile)."""
    secret_access_key: str | None = None
    session_token: str | None = None


def cloudwatch_handler(options: CloudWatchOptions) -> logging.Handler:
    """A handler that sends lines in the background and never blocks on CloudWatch.

    Logs once when CloudWatch is unreachable or returns errors, and once when it works again.
    Lines that cannot be sent are missing only in CloudWatch. Makes no call here.

    Raises:
        CloudWatchMissing: watchtower is not installed.
    """
    try:
        import watchtower
    except ImportError:
        raise CloudWatchMissing(
            "CLOUDWATCH_LOG_GROUP is set, but watchtower is not installed: run pip install "
            "'style-trainer[cloudwatch]'"
        ) from None

    class Handler(watchtower.CloudWatchLogHandler):
        FLUSH_TIMEOUT = CLOSE_SECONDS

        def emit(self, record: logging.LogRecord) -> None:
            """Queue a line, unless too many wait already."""
            if sum(queue.qsize() for queue in self.queues.values()) < MAX_WAITING:
                super().emit(record)  # type: ignore[no-untyped-call]

    # Each failed attempt would warn; ``_Outcome`` logs the first one.
    warnings.filterwarnings("ignore", category=watchtower.WatchtowerWarning)
    stream = re.sub(r"[:*{}]", "_", options.stream)[:512]
    return Handler(
        log_group_name=options.group,
        log_stream_name=stream,
        boto3_client=_client(options),
        # Creating the group here would block the worker's start on CloudWatch.
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
    """Logs when sending starts to fail and when it works again."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._failing = False

    def answered(self, parsed: dict[str, Any], **_: Any) -> None:
        error = parsed.get("Error")
        if error is None:
            if self._failing:
                self._failing = False
                log.info("log lines are sent to CloudWatch again")
        elif error["Code"] == "ResourceNotFoundException" and "stream" in error["Message"]:
            pass  # watchtower then creates the stream
        else:
            self._fail(f"{error['Code']}: {error['Message']}")

    def not_answered(self, exception: Exception, **_: Any) -> None:
        self._fail(str(exception))

    def _fail(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            log.warning(
                "log lines cannot be sent to the CloudWatch group %s (%s); they are on the "
                "console only",
                self._group,
                reason,
            )
