"""The one client that all threads share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import boto3
from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from botocore.config import Config

from adapters.common.deadline import Watched
from adapters.common.retry_after import retry_after
from adapters.s3.options import S3Options

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def connect(options: S3Options) -> S3Client:
    """A client on its own boto3 session. Threads may share the client, not the session.

    Sends nothing yet.

    Raises:
        botocore.exceptions.BotoCoreError: boto3's own configuration files are invalid.
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
            # Not "adaptive": it paces requests by the wall clock. After a SlowDown response, a
            # clock that is set back blocks all requests until it has caught up.
            retries={"mode": "standard", "total_max_attempts": options.max_attempts},
            max_pool_connections=options.max_pool_connections,
            s3={"addressing_style": options.effective_addressing_style},
            # Uploads carry their own checksum; the default would add another one in a
            # trailer, which some S3-compatible stores cannot read.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_supported",
            tcp_keepalive=True,
        ),
    )
    # botocore has no setting for the class of its connections, and no types for these attributes.
    manager = client._endpoint.http_session._manager  # type: ignore[attr-defined]
    manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}
    client.meta.events.register_first("needs-retry.s3", _heed_retry_after)
    client.meta.events.register_first("needs-retry.s3", _follow_no_blind_redirect)
    return client


class _PlainConnection(Watched, AWSHTTPConnection):  # type: ignore[misc] # botocore's types
    pass


class _TlsConnection(Watched, AWSHTTPSConnection):  # type: ignore[misc] # botocore's types
    pass


class _PlainPool(AWSHTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(AWSHTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def _keep_secrets_out_of_logs() -> None:
    """Keep botocore above DEBUG, where it logs session tokens and signatures."""
    botocore = logging.getLogger("botocore")
    if botocore.level == logging.NOTSET:
        botocore.setLevel(logging.INFO)


def _heed_retry_after(response: tuple[Any, Any] | None, **_event: object) -> None:
    """Copy HTTP's ``Retry-After`` (s) to the header that botocore reads (ms)."""
    if response is None:
        return
    headers = response[0].headers
    asked = retry_after(headers.get("Retry-After"), now=None)  # seconds only
    if asked is not None and "x-amz-retry-after" not in headers:
        headers["x-amz-retry-after"] = f"{1000 * asked:.0f}"


def _follow_no_blind_redirect(
    response: tuple[Any, Any] | None, request_dict: dict[str, Any], **_event: object
) -> None:
    """Stop botocore from following redirects that name no region.

    S3's own redirects name the region. A web server that redirects every request would keep
    botocore in an endless loop.
    """
    if response is None or response[0].status_code not in {301, 302, 307}:
        return
    named = response[0].headers.get("x-amz-bucket-region") or response[1].get("Error", {}).get(
        "Region"
    )
    if not named:
        request_dict["context"].setdefault("s3_redirect", {})["redirected"] = True
