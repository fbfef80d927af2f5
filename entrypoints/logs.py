"""Send log lines to the configured services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapters.logs.setup import Logging
from entrypoints.cli import version

if TYPE_CHECKING:
    from entrypoints.settings import Settings


def start_sentry(settings: Settings, logs: Logging) -> None:
    """Send errors to Sentry, if it is configured."""
    if settings.sentry_dsn is None:
        return
    from adapters.logs.sentry import start_sentry as start

    start(
        settings.sentry_dsn.get_secret_value(),
        version=version(),
        context=logs.context,
        redact=logs.redact,
    )


def start_cloudwatch(settings: Settings, logs: Logging, worker: str) -> None:
    """Send the log lines to CloudWatch, if a log group is configured."""
    if settings.cloudwatch_log_group is None:
        return
    from adapters.logs.cloudwatch import CloudWatchOptions, cloudwatch_handler

    group = settings.cloudwatch_log_group
    options = CloudWatchOptions(group=group, stream=worker, **settings.aws_options())
    logs.also_to(cloudwatch_handler(options))
