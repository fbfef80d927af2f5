"""Translate S3 errors into the port's errors, each with a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from adapters.common.retry_after import http_date, retry_after
from application.ports import BlobDenied, BlobMissing, BlobUnavailable


class UnexpectedResponse(BotoCoreError):
    """A success without the fields of an S3 response; another server's."""

    fmt = (
        "the response reports success without {name}, so it is not from an S3 store: check the "
        "endpoint, and whether a proxy is in between"
    )


S3_ERRORS = (BotoCoreError, ClientError, ResponseParserError)
"""Every error that a call of the client raises."""

DAMAGED = {
    "BadDigest",
    "IncompleteBody",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
"""The store received a damaged body and stored nothing."""


# A worker with wrong credentials must not fail every task, and a key can be replaced while the
# task waits: all these count as "unavailable", not as "denied".
_CREDENTIALS = {
    "InvalidAccessKeyId": "the access key does not exist in this store: "
    "check AWS_ACCESS_KEY_ID, and that it belongs to this store",
    "SignatureDoesNotMatch": "the secret does not match the access key: "
    "check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired: give the worker new ones",
    "TokenRefreshRequired": "the credentials have expired: give the worker new ones",
    "InvalidToken": "the session token is not valid: give the worker new credentials",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it (NTP)",
    "RequestExpired": "this machine's clock is wrong: set it (NTP)",
}
_FULL = {
    "InsufficientCapacity",
    "InsufficientStorage",
    "QuotaExceeded",
    "XMinioAdminBucketQuotaExceeded",
    "XMinioStorageFull",
}
_SLOW = {"RequestTimeout", "RequestTimeoutException", "PriorRequestNotComplete"}
"""Returned with status 400 for a valid request that arrived too slowly."""
_THROTTLED = {"SlowDown", "RequestLimitExceeded", "Throttling", "ThrottlingException"}
_WRONG_REGION = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
    "Redirect",
}
_UNSUPPORTED = {"MethodNotAllowed", "NotImplemented"}


def error_code(error: ClientError) -> str:
    """S3's error code, or the HTTP status if the response has none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status(error: ClientError) -> int:
    """The response's HTTP status."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def require_field(response: Mapping[str, Any], name: str) -> str:
    """A field that every S3 response of this kind has.

    Raises:
        UnexpectedResponse: the field is missing.
    """
    value = response.get(name)
    if not isinstance(value, str):
        raise UnexpectedResponse(name=name)
    return value


def translated(error: Exception, bucket: str, what: str) -> Exception:
    """The port's error for one of ``S3_ERRORS``.

    Args:
        bucket: the bucket of the call.
        what: the call and its target: ``reading s3://bucket/key``.
    """
    if isinstance(error, ClientError):
        return _answered(error, bucket, what)
    return _unanswered(error, what)


def _answered(error: ClientError, bucket: str, what: str) -> Exception:
    code, number = error_code(error), status(error)
    text = f"{what}: {error.response.get('Error', {}).get('Message') or code}"
    if code == "NoSuchKey":
        return BlobMissing(f"{what}: there is no such object")
    if code == "NoSuchBucket":
        return BlobDenied(
            f"{what}: there is no bucket {bucket!r}: create it, or correct "
            "AWS_STORAGE_BUCKET_NAME, MODEL_BUCKET_NAME or the endpoint"
        )
    if code in _CREDENTIALS:
        return BlobUnavailable(f"{what}: {_CREDENTIALS[code]} ({code})")
    if code in _FULL or number == 507:
        return BlobUnavailable(f"{text}; the store is full: free space or raise the quota")
    if code in _WRONG_REGION or number in {301, 302, 307, 308}:
        return BlobDenied(_wrong_region(error, bucket, what))
    if code == "InvalidObjectState":
        return BlobDenied(
            f"{what}: the object is archived: restore it to a readable storage class"
        )
    if code in _UNSUPPORTED or number in {405, 501}:
        return BlobDenied(
            f"{text} ({code}); the store lacks what the worker needs: use one that has S3's "
            "conditional writes and multipart uploads, and check the endpoint"
        )
    if code in _THROTTLED or number == 429:
        return BlobUnavailable(
            f"{what}: the store limits the request rate ({code}): if this persists, lower "
            f"FETCH_CONCURRENCY or run fewer workers",
            retry_after=_retry_after(error),
        )
    if code in _SLOW:
        return BlobUnavailable(
            f"{text} ({code}): the connection to the store is slow, which may be temporary"
        )
    if number in {401, 403}:
        return BlobDenied(
            f"{text} ({code}): grant s3:GetObject, s3:PutObject and s3:DeleteObject on the "
            "bucket's objects as far as the worker needs them, and s3:ListBucket on the bucket, "
            "without which a missing object looks denied too"
        )
    if number == 404:
        return BlobUnavailable(
            f"{what}: the response 404 ({code}) is not from an S3 store: check the endpoint"
        )
    if 400 <= number < 500 and number not in {408, 409}:
        return BlobDenied(f"{text} ({code})")
    return BlobUnavailable(
        f"{text} (status {number}, {code}): the store has an internal error, which may be "
        f"temporary",
        retry_after=_retry_after(error),
    )


def _unanswered(error: Exception, what: str) -> Exception:
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
        return BlobUnavailable(
            f"{what}: there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or give the machine a role"
        )
    if isinstance(error, ParamValidationError):
        return BlobDenied(f"{what}: no store accepts this bucket name: {error}")
    if isinstance(error, SSLError):
        return BlobUnavailable(
            f"{what}: no trusted TLS connection: check that the endpoint uses TLS, or write "
            "http://; check its certificate, or set AWS_CA_BUNDLE to the authority that signed it "
            f"({error})"
        )
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError):
        return BlobUnavailable(
            f"{what}: the store cannot be reached: check the endpoint, the region and the "
            f"network ({error})"
        )
    if isinstance(error, UnexpectedResponse):
        return BlobUnavailable(f"{what}: {error}")
    if isinstance(error, ReadTimeoutError):
        return BlobUnavailable(f"{what}: the store did not respond in time ({error})")
    return BlobUnavailable(f"{what}: {type(error).__name__}: {error}")


def _wrong_region(error: ClientError, bucket: str, what: str) -> str:
    headers = _headers(error)
    region = error.response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region")
    if region:
        return f"{what}: bucket {bucket!r} is in region {region}: set AWS_S3_REGION_NAME={region}"
    where = headers.get("location", "another address")
    return (
        f"{what}: the response points to {where}: set the endpoint to it, or AWS_S3_REGION_NAME "
        f"to the region of bucket {bucket!r}"
    )


def _headers(error: ClientError) -> Mapping[str, str]:
    metadata: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    headers: Mapping[str, str] = metadata.get("HTTPHeaders", {})
    return headers


def _retry_after(error: ClientError) -> float | None:
    """Seconds to wait by ``Retry-After``; a date counts from the response's own ``Date``."""
    headers = _headers(error)
    return retry_after(headers.get("retry-after"), http_date(headers.get("date")))
