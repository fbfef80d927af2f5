"""Translate Google Cloud Storage errors into the port's errors."""

from __future__ import annotations

import re

from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from requests import Response
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import RequestException, SSLError, Timeout

from adapters.common.retry_after import http_date, retry_after
from application.ports import BlobDenied, BlobUnavailable, PreconditionFailed

GCS_ERRORS = (
    GoogleAPICallError,
    RetryError,
    GoogleAuthError,
    DataCorruption,
    InvalidResponse,
    RequestException,
    ConnectionError,
)
"""Every error that a call of the client raises."""


THROTTLED = {"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded"}
"""Google's reasons for a temporary 403."""

NO_CREDENTIALS = (
    "set GOOGLE_APPLICATION_CREDENTIALS to a service account's key file, or run on a machine "
    "that has a service account"
)

_QUERY = re.compile(r"\?[^\s'\"()]+")
"""The query of a URL in a message. That of an upload session lets anybody continue the upload."""


class UnexpectedResponse(RequestException):
    """A success without the fields of a Google Cloud Storage response; another server's."""


def translate(error: Exception, what: str) -> Exception:
    """The port's error for one of ``GCS_ERRORS``.

    Args:
        what: the call and its target: ``reading gs://bucket/key``.
    """
    if isinstance(error, RetryError) and isinstance(error.cause, Exception):
        error = error.cause
    text = _QUERY.sub("", str(error))
    if isinstance(error, GoogleAPICallError | InvalidResponse) and error.response is not None:
        return _of_response(error.response, what)
    if isinstance(error, DefaultCredentialsError):
        return BlobUnavailable(f"{what}: there are no credentials: {NO_CREDENTIALS} ({text})")
    if isinstance(error, TransportError):
        return BlobUnavailable(f"{what}: Google's token server cannot be reached ({text})")
    if isinstance(error, GoogleAuthError):
        return BlobUnavailable(
            f"{what}: the credentials are expired or revoked: {NO_CREDENTIALS} ({text})"
        )
    if isinstance(error, SSLError):
        return BlobUnavailable(f"{what}: no trusted TLS connection to the store ({text})")
    if isinstance(error, Timeout):
        return BlobUnavailable(f"{what}: the store did not respond in time ({text})")
    if isinstance(error, NoConnection | ConnectionError):
        return BlobUnavailable(
            f"{what}: the store cannot be reached: check the network and "
            f"STORAGE_EMULATOR_HOST ({text})"
        )
    return BlobUnavailable(
        f"{what}: the response is not from Google Cloud Storage: check STORAGE_EMULATOR_HOST, "
        f"and whether a proxy is in between ({text})"
    )


def _of_response(response: Response, what: str) -> Exception:
    number = response.status_code
    message, reasons = _explanation(response)
    if number == 412:
        return PreconditionFailed(f"{what}: the blob has changed since it was read")
    if number == 429 or (number == 403 and reasons & THROTTLED):
        return BlobUnavailable(
            f"{what}: the store limits the request rate: if this persists, lower "
            f"FETCH_CONCURRENCY or run fewer workers ({message})",
            retry_after=_retry_after(response),
        )
    if number == 401:
        return BlobUnavailable(
            f"{what}: the store does not accept the credentials: {NO_CREDENTIALS} ({message})"
        )
    if number == 403:
        return BlobDenied(
            f"{what}: access is denied: grant the worker's service account the role Storage "
            "Object User on its own buckets and Storage Object Viewer on those of the images; "
            f"without storage.objects.list a missing object looks denied too ({message})"
        )
    if 300 <= number < 400:
        return BlobDenied(f"{what}: the response is a redirect: check STORAGE_EMULATOR_HOST")
    if 400 <= number < 500 and number != 408:
        return BlobDenied(f"{what}: {message}")
    return BlobUnavailable(
        f"{what}: the store returned status {number}, which may be temporary ({message})",
        retry_after=_retry_after(response),
    )


def _explanation(response: Response) -> tuple[str, set[str]]:
    """Google's message, and its reasons in one word each."""
    try:
        error = response.json()["error"]
        reasons = {entry["reason"] for entry in error.get("errors", ())}
        return " ".join(str(error["message"]).split()), reasons
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"status {response.status_code}", set()


def no_bucket(bucket: str, what: str) -> BlobDenied:
    """The error for a bucket that does not exist."""
    return BlobDenied(
        f"{what}: there is no bucket {bucket!r}: create it, or correct GCS_BUCKET_NAME, "
        "MODEL_BUCKET_NAME or STATE_BUCKET_NAME"
    )


def _retry_after(response: Response) -> float | None:
    headers = response.headers
    return retry_after(headers.get("Retry-After"), http_date(headers.get("Date")))
