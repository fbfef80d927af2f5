"""Write one object atomically, with a SHA-256 that the store verifies."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypedDict

from adapters.s3.download import SHA256_KEY
from adapters.s3.errors import S3_ERRORS, require_field
from adapters.s3.options import S3Options
from application.ports import Condition, IfAbsent, IfMatch
from domain.location import Location

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

log = logging.getLogger(__name__)

MAX_PARTS = 10_000
"""S3's limit on the parts of one upload."""


class _Headers(TypedDict, total=False):
    IfNoneMatch: str
    IfMatch: str


def upload(
    client: S3Client,
    options: S3Options,
    at: Location,
    data: bytes,
    content_type: str,
    condition: Condition | None,
) -> str:
    """Write an object and return its ETag.

    Raises:
        botocore.exceptions.BotoCoreError: it may or may not have been written.
        botocore.exceptions.ClientError: the store returns an error; 412: the condition failed.
    """
    if len(data) < options.multipart_threshold:
        return _in_one(client, at, data, content_type, condition)
    return _in_parts(client, options, at, data, content_type, condition)


def _in_one(
    client: S3Client, at: Location, data: bytes, content_type: str, condition: Condition | None
) -> str:
    response = client.put_object(
        Bucket=at.bucket,
        Key=at.key,
        Body=data,
        ContentType=content_type,
        ChecksumAlgorithm="SHA256",
        ChecksumSHA256=_sha256(data),
        **_headers(condition),
    )
    return require_field(response, "ETag")


def _in_parts(
    client: S3Client,
    options: S3Options,
    at: Location,
    data: bytes,
    content_type: str,
    condition: Condition | None,
) -> str:
    begun = client.create_multipart_upload(
        Bucket=at.bucket,
        Key=at.key,
        ContentType=content_type,
        ChecksumAlgorithm="SHA256",
        Metadata={SHA256_KEY: hashlib.sha256(data).hexdigest()},
    )
    upload_id = require_field(begun, "UploadId")
    try:
        parts: list[CompletedPartTypeDef] = []
        for number, part in enumerate(_parts(data, options.part_size), start=1):
            checksum = _sha256(part)
            sent = client.upload_part(
                Bucket=at.bucket,
                Key=at.key,
                UploadId=upload_id,
                PartNumber=number,
                Body=part,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=checksum,
            )
            parts.append(
                {
                    "PartNumber": number,
                    "ETag": require_field(sent, "ETag"),
                    "ChecksumSHA256": checksum,
                }
            )
        completed = client.complete_multipart_upload(
            Bucket=at.bucket,
            Key=at.key,
            UploadId=upload_id,
            MultipartUpload={"Parts": parts},
            **_headers(condition),
        )
    except BaseException:
        _abort(client, at, upload_id)
        raise
    return require_field(completed, "ETag")


def _abort(client: S3Client, at: Location, upload_id: str) -> None:
    """Abort an upload, so that no hidden parts incur costs. No-op for a completed upload."""
    try:
        client.abort_multipart_upload(Bucket=at.bucket, Key=at.key, UploadId=upload_id)
    except client.exceptions.NoSuchUpload:
        return
    except S3_ERRORS as error:
        log.warning(
            "parts of %s may remain: add a lifecycle rule that removes incomplete uploads (%s)",
            at,
            error,
        )


def _parts(data: bytes, size: int) -> Iterator[bytes]:
    size = max(size, -(-len(data) // MAX_PARTS))
    view = memoryview(data)
    for start in range(0, len(data), size):
        yield bytes(view[start : start + size])


def _sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _headers(condition: Condition | None) -> _Headers:
    match condition:
        case IfAbsent():
            return {"IfNoneMatch": "*"}
        case IfMatch(etag):
            return {"IfMatch": etag}
    return {}
