"""The one client that all threads share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from adapters.s3.options import S3Options

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def connect(options: S3Options) -> S3Client:
    """A client, which threads may share, from a session of its own, which they may not.

    Nothing is sent yet.

    Raises:
        botocore.exceptions.BotoCoreError: what boto3 finds in its own files is wrong.
    """
    _keep_secrets_out_of_logs()
    session = boto3.session.Session(
        aws_access_key_id=options.access_key_id,
        aws_secret_access_key=options.secret_access_key,
        aws_session_token=options.session_token,
        region_name=options.region,
    )
    client = session.client(
        "s3",
        endpoint_url=options.endpoint_url,
        config=Config(
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            # Not "adaptive": that one paces requests by the wall clock, and once a store has asked
            # to slow down, a clock that is set back holds all of them up until it has caught up.
            retries={"mode": "standard", "total_max_attempts": options.max_attempts},
            max_pool_connections=options.max_pool_connections,
            s3={"addressing_style": options.effective_addressing_style},
            # Uploads bring a checksum of their own; the default would add another one in a
            # trailer, which other stores than Amazon's do not all read.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_supported",
            tcp_keepalive=True,
        ),
    )
    client.meta.events.register_first("needs-retry.s3", _heed_retry_after)
    client.meta.events.register_first("needs-retry.s3", _follow_no_blind_redirect)
    return client


def _keep_secrets_out_of_logs() -> None:
    """At DEBUG botocore prints every header, session token and signature included."""
    botocore = logging.getLogger("botocore")
    if botocore.level == logging.NOTSET:
        botocore.setLevel(logging.INFO)


def _heed_retry_after(response: tuple[Any, Any] | None, **_event: object) -> None:
    """Botocore waits as long as its own header says (ms), and does not know HTTP's (s)."""
    if response is None:
        return
    headers = response[0].headers
    asked = headers.get("Retry-After", "")
    if asked.isdecimal() and "x-amz-retry-after" not in headers:
        headers["x-amz-retry-after"] = f"{asked}000"


def _follow_no_blind_redirect(
    response: tuple[Any, Any] | None, request_dict: dict[str, Any], **_event: object
) -> None:
    """Botocore asks again where a redirect without a region leads, and again about that answer.

    A web server that sends everybody to another address would keep it asking for ever. S3's own
    redirects name the region.
    """
    if response is None or response[0].status_code not in {301, 302, 307}:
        return
    named = response[0].headers.get("x-amz-bucket-region") or response[1].get("Error", {}).get(
        "Region"
    )
    if not named:
        request_dict["context"].setdefault("s3_redirect", {})["redirected"] = True
