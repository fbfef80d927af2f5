"""Read one object whole and verify it."""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import TYPE_CHECKING

from botocore.exceptions import FlexibleChecksumError, HTTPClientError, IncompleteReadError
from urllib3.exceptions import HTTPError

from adapters.common.deadline import Deadline, blob_deadline
from adapters.s3.errors import require_field
from adapters.s3.options import S3Options
from application.ports import Blob, BlobTooLarge
from domain.location import Location

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

SHA256_KEY = "sha256"
"""Metadata of multipart uploads, for which S3 keeps no SHA-256 of the whole object."""

GZIP = b"\x1f\x8b"
"""First bytes of a gzip file. Some objects are labelled gzip and are not."""

_MD5_ETAG = re.compile(r'"?([0-9a-f]{32})"?')


class ChecksumMismatch(Exception):
    """The received body differs from the stored object."""


def download(
    client: S3Client,
    at: Location,
    max_bytes: int | None,
    blob_seconds: float = S3Options.blob_seconds,
) -> Blob:
    """Read an object with one request; one stored with ``Content-Encoding: gzip`` is unpacked.

    Args:
        blob_seconds: time limit for a small object, headers included; a large one has more.

    Raises:
        BlobTooLarge: by its headers, before the body is read, or after unpacking.
        BlobUnavailable: the object does not arrive in time.
        ChecksumMismatch: the body is truncated or does not match its checksum.
        botocore.exceptions.BotoCoreError: there is no response.
        botocore.exceptions.ClientError: the store returns an error.
    """
    with blob_deadline(blob_seconds, f"reading {at}") as deadline:
        response, data = _fetch(client, at, max_bytes, deadline)
    tag = require_field(response, "ETag")
    _verify(data, tag, response, at)
    if "gzip" in response.get("ContentEncoding", "").lower() and data.startswith(GZIP):
        data = _unpacked(data, at, max_bytes)
    return Blob(data, tag)


def _fetch(
    client: S3Client, at: Location, max_bytes: int | None, deadline: Deadline
) -> tuple[GetObjectOutputTypeDef, bytes]:
    """The response and its whole body."""
    response = client.get_object(Bucket=at.bucket, Key=at.key, ChecksumMode="ENABLED")
    body = response["Body"]
    try:
        size = response.get("ContentLength")
        if max_bytes is not None and size is not None and size > max_bytes:
            raise BlobTooLarge(f"{at} has {size} bytes, more than {max_bytes}")
        deadline.extend(size or max_bytes or 0)
        return response, _read(body, at, None if size is not None else max_bytes)
    except (FlexibleChecksumError, HTTPClientError, IncompleteReadError, HTTPError) as error:
        raise ChecksumMismatch(f"{at} arrived incomplete: {error}") from error
    finally:
        # A body read to its end has released its connection; any other closes it.
        body.close()


def _read(body: StreamingBody, at: Location, max_bytes: int | None) -> bytes:
    """The whole body; botocore verifies its length and, if present, its checksum."""
    if max_bytes is None:
        return body.read()
    pieces, left = [], max_bytes
    while piece := body.read(1024**2):
        left -= len(piece)
        if left < 0:
            raise BlobTooLarge(f"{at} has more than {max_bytes} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _unpacked(data: bytes, at: Location, max_bytes: int | None) -> bytes:
    """Unpack an object stored with ``aws s3 cp --content-encoding gzip``."""
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        unpacked = unpacker.decompress(data, 0 if max_bytes is None else max_bytes + 1)
    except zlib.error as error:
        raise ChecksumMismatch(
            f"{at} is labelled as gzip, but cannot be unpacked: {error}"
        ) from error
    if max_bytes is not None and len(unpacked) > max_bytes:
        raise BlobTooLarge(f"{at} has more than {max_bytes} bytes, unpacked")
    if not unpacker.eof:
        raise ChecksumMismatch(f"{at} ends in the middle of its gzip data")
    return unpacked


def _verify(data: bytes, tag: str, response: GetObjectOutputTypeDef, at: Location) -> None:
    if "ChecksumAlgorithm" in response["ResponseMetadata"]:
        return  # botocore has checked it while reading
    expected = response.get("Metadata", {}).get(SHA256_KEY)
    if expected is not None:
        if hashlib.sha256(data).hexdigest() != expected:
            raise ChecksumMismatch(f"{at}: its SHA-256 differs from the stored one")
        return
    # With KMS or customer keys, or in parts, the ETag is not an MD5.
    opaque = response.get("ServerSideEncryption", "AES256") != "AES256"
    md5 = _MD5_ETAG.fullmatch(tag)
    if opaque or "SSECustomerAlgorithm" in response or md5 is None:
        return
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5[1]:
        raise ChecksumMismatch(f"{at}: its MD5 differs from its ETag")
