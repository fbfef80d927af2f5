"""One object read whole, and proved to be what was stored."""

from __future__ import annotations

import hashlib
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from botocore.exceptions import FlexibleChecksumError, HTTPClientError, IncompleteReadError
from urllib3.exceptions import HTTPError

from adapters.s3.errors import require_field
from adapters.s3.options import S3Options
from application.ports import Blob, BlobTooLarge, BlobUnavailable
from domain.location import Location

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

SHA256_KEY = "sha256"
"""Metadata of what we upload in parts: S3 keeps no SHA-256 of the whole of it."""

MIN_BYTES_PER_SECOND = 100_000
"""A body that comes more slowly does not arrive in time."""

GZIP = b"\x1f\x8b"
"""First bytes of a gzip file. Some objects are said to be one and are not."""

_MD5_ETAG = re.compile(r'"?([0-9a-f]{32})"?')


class ChecksumMismatch(Exception):
    """What arrived is not what was stored."""


def download(
    client: S3Client,
    at: Location,
    max_bytes: int | None,
    body_seconds: float = S3Options.body_seconds,
) -> Blob:
    """Read an object with one request; one stored with ``Content-Encoding: gzip`` is unpacked.

    Args:
        body_seconds: for the body of a small object, at whatever pace its bytes come; a large
            one has more.

    Raises:
        BlobTooLarge: the answer's head says so, and the body was left unread; or it is, unpacked.
        BlobUnavailable: the body does not arrive in time.
        ChecksumMismatch: the body breaks off, or does not fit its checksum.
        botocore.exceptions.BotoCoreError: there is no answer.
        botocore.exceptions.ClientError: the store refuses.
    """
    answer = client.get_object(Bucket=at.bucket, Key=at.key, ChecksumMode="ENABLED")
    body = answer["Body"]
    try:
        size = answer.get("ContentLength")
        if max_bytes is not None and size is not None and size > max_bytes:
            raise BlobTooLarge(f"{at} has {size} bytes, more than {max_bytes}")
        seconds = body_seconds + (size or max_bytes or 0) / MIN_BYTES_PER_SECOND
        with _deadline(body, at, seconds):
            data = _read(body, at, None if size is not None else max_bytes)
    except (FlexibleChecksumError, HTTPClientError, IncompleteReadError, HTTPError) as error:
        raise ChecksumMismatch(f"{at} does not arrive whole: {error}") from error
    finally:
        # A body read to its end has given its connection back; any other loses it.
        body.close()
    tag = require_field(answer, "ETag")
    _verify(data, tag, answer, at)
    if "gzip" in answer.get("ContentEncoding", "").lower() and data.startswith(GZIP):
        data = _unpacked(data, at, max_bytes)
    return Blob(data, tag)


@contextmanager
def _deadline(body: StreamingBody, at: Location, seconds: float) -> Iterator[None]:
    """Break off a body that does not arrive in time, at whatever pace its bytes come.

    A read timeout would count anew from each byte.
    """
    over = threading.Event()

    def end() -> None:
        over.set()
        body._raw_stream.shutdown()  # type: ignore[attr-defined]  # urllib3's: ends a read under way

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception:
        if not over.is_set():
            raise
    finally:
        timer.cancel()
    if over.is_set():
        raise BlobUnavailable(f"{at} does not arrive within {seconds:.0f} s")


def _read(body: StreamingBody, at: Location, max_bytes: int | None) -> bytes:
    """The whole body; botocore compares its length and, where there is one, its checksum."""
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
    """What was compressed for the web, as ``aws s3 cp --content-encoding gzip`` says."""
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        unpacked = unpacker.decompress(data, 0 if max_bytes is None else max_bytes + 1)
    except zlib.error as error:
        raise ChecksumMismatch(f"{at} is not the gzip that it is said to be: {error}") from error
    if max_bytes is not None and len(unpacked) > max_bytes:
        raise BlobTooLarge(f"{at} has more than {max_bytes} bytes, unpacked")
    if not unpacker.eof:
        raise ChecksumMismatch(f"{at} breaks off within its gzip")
    return unpacked


def _verify(data: bytes, tag: str, answer: GetObjectOutputTypeDef, at: Location) -> None:
    if "ChecksumAlgorithm" in answer["ResponseMetadata"]:
        return  # botocore has checked it while reading
    expected = answer.get("Metadata", {}).get(SHA256_KEY)
    if expected is not None:
        if hashlib.sha256(data).hexdigest() != expected:
            raise ChecksumMismatch(f"{at}: its SHA-256 is not the stored one")
        return
    # Keys of the store's own or the customer's make other ETags, and so do parts.
    opaque = answer.get("ServerSideEncryption", "AES256") != "AES256"
    md5 = _MD5_ETAG.fullmatch(tag)
    if opaque or "SSECustomerAlgorithm" in answer or md5 is None:
        return
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5[1]:
        raise ChecksumMismatch(f"{at}: its MD5 is not its ETag")
