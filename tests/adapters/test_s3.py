"""Translation of S3 responses into the port's errors; no store is needed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import ProtocolError

from adapters.common.retry_after import MAX_RETRY_AFTER
from adapters.s3.client import connect
from adapters.s3.download import ChecksumMismatch, download
from adapters.s3.errors import translated
from adapters.s3.options import MIB, S3Options
from adapters.s3.store import S3BlobStore
from adapters.s3.upload import upload
from application.ports import BlobDenied, BlobTooLarge, BlobUnavailable
from domain.location import Location

AT = Location("bucket", "key")
DATA = b"x" * 3000
MD5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = "0" * 32

DATE = "Tue, 01 Jan 2030 00:00:00 GMT"


@pytest.mark.parametrize(
    ("header", "date", "seconds"),
    [
        ("7", DATE, 7.0),
        ("9" * 5000, DATE, MAX_RETRY_AFTER),
        ("Tue, 01 Jan 2030 00:02:00 GMT", DATE, 120.0),
        ("Tue, 01 Jan 2030 00:02:00 GMT", "soon", None),
        ("Tue, 01 Jan 2030 00:02:00 GMT", None, None),
        ("Tue, 01 Jan 2030 00:02:00 -0000", DATE, 120.0),
        ("Mon, 31 Dec 2029 00:00:00 GMT", DATE, 0.0),
        ("Tue, 01 Jan 2031 00:00:00 GMT", DATE, MAX_RETRY_AFTER),
        (f"Tue, 01 Jan {'9' * 20} 00:02:00 GMT", DATE, None),
        ("soon", DATE, None),
        (None, DATE, None),
    ],
)
def test_retry_after_of_a_store_is_parsed_in_both_formats_and_bounded(
    header: str | None, date: str | None, seconds: float | None
) -> None:
    named = {"retry-after": header, "date": date}
    headers = {name: value for name, value in named.items() if value is not None}
    metadata: Any = {"HTTPStatusCode": 503, "HTTPHeaders": headers}
    response = ClientError(
        {"Error": {"Code": "SlowDown"}, "ResponseMetadata": metadata}, "PutObject"
    )
    error = translated(response, "bucket", "writing s3://bucket/key")
    assert isinstance(error, BlobUnavailable)
    assert error.retry_after == seconds


def client_error(code: str, number: int) -> ClientError:
    """A store's error response; its number is the code if it has no name."""
    metadata: Any = {"HTTPStatusCode": number, "HTTPHeaders": {"retry-after": "7"}}
    error: Any = {"Code": code, "Message": "no"}
    return ClientError({"Error": error, "ResponseMetadata": metadata}, "GetObject")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (client_error("TokenRefreshRequired", 400), "expired: give the worker new ones"),
        (client_error("InvalidToken", 400), "new credentials"),
        (client_error("RequestExpired", 400), "clock is wrong"),
        (client_error("InsufficientCapacity", 403), "free space"),
        (client_error("XMinioAdminBucketQuotaExceeded", 400), "free space"),
        (client_error("507", 507), "free space"),
        (client_error("PriorRequestNotComplete", 400), "may be temporary"),
        (client_error("RequestTimeoutException", 400), "may be temporary"),
        (client_error("Throttling", 400), "lower FETCH_CONCURRENCY"),
        (client_error("ThrottlingException", 400), "lower FETCH_CONCURRENCY"),
        (client_error("RequestLimitExceeded", 400), "lower FETCH_CONCURRENCY"),
        (client_error("429", 429), "lower FETCH_CONCURRENCY"),
        (client_error("408", 408), "may be temporary"),
        (client_error("OperationAborted", 409), "may be temporary"),
        (client_error("500", 500), "may be temporary"),
        (PartialCredentialsError(provider="env", cred_var="key"), "set AWS_ACCESS_KEY_ID"),
        (CredentialRetrievalError(provider="role", error_msg="no"), "give the machine a role"),
        (ConnectTimeoutError(endpoint_url="https://s3.example"), "check the endpoint"),
        (ResponseParserError("no XML"), "no XML"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_temporary_errors_are_not_access_denied(error: Exception, message: str) -> None:
    found = translated(error, "bucket", "reading s3://bucket/key")
    assert isinstance(found, BlobUnavailable)
    assert re.match(f"reading s3://bucket/key: .*{message}", str(found))


@pytest.mark.parametrize(("code", "number"), [("SlowDown", 503), ("429", 429), ("500", 500)])
def test_a_throttling_error_carries_its_retry_delay(code: str, number: int) -> None:
    found = translated(client_error(code, number), "bucket", "reading")
    assert isinstance(found, BlobUnavailable)
    assert found.retry_after == 7.0


@pytest.mark.parametrize(
    ("code", "number", "message"),
    [
        ("IllegalLocationConstraintException", 400, "AWS_S3_REGION_NAME"),
        *((str(number), number, "AWS_S3_REGION_NAME") for number in (302, 307, 308)),
        *((str(number), number, "conditional writes") for number in (405, 501)),
        ("401", 401, "grant s3:GetObject"),
        ("AccountProblem", 403, "grant s3:GetObject"),
        ("InvalidArgument", 400, r"no \(InvalidArgument\)"),
    ],
)
def test_permanent_errors_are_access_denied(code: str, number: int, message: str) -> None:
    found = translated(client_error(code, number), "bucket", "reading s3://bucket/key")
    assert isinstance(found, BlobDenied)
    assert re.match(f"reading s3://bucket/key: .*{message}", str(found))


class Body(BytesIO):
    """A response body, which may be truncated."""

    error: Exception | None = None

    def read(self, size: int | None = -1) -> bytes:
        if self.error is not None:
            raise self.error
        return super().read(size)


class Store:
    """Returns the same object for every key."""

    def __init__(self, **response: Any) -> None:
        self.body = Body(DATA)
        self._response: dict[str, Any] = {
            "ETag": f'"{MD5}"',
            "ResponseMetadata": {},
            "Body": self.body,
            **response,
        }

    def get_object(self, **_: str) -> Any:
        return self._response


def downloaded(store: Any, max_bytes: int | None = None) -> bytes:
    return download(store, AT, max_bytes).data


def test_a_body_without_content_length_is_read_up_to_the_limit() -> None:
    assert downloaded(Store()) == DATA
    assert downloaded(Store(), len(DATA)) == DATA
    store = Store()
    with pytest.raises(BlobTooLarge):
        downloaded(store, len(DATA) - 1)
    assert store.body.closed


@pytest.mark.parametrize(
    "error",
    [
        FlexibleChecksumError(error_msg="no"),
        HTTPClientError(error="cut"),
        IncompleteReadError(actual_bytes=1, expected_bytes=2),
        ProtocolError("cut"),
    ],
)
def test_a_truncated_body_is_damaged_and_closed(error: Exception) -> None:
    store = Store(ContentLength=len(DATA))
    store.body.error = error
    with pytest.raises(ChecksumMismatch):
        downloaded(store)
    assert store.body.closed


@pytest.mark.parametrize(
    "response",
    [
        {"ETag": f'"{OTHER}"', "Metadata": {"sha256": SHA256}},
        {"ETag": f'"{OTHER}-2"'},
        {"ETag": f'"{OTHER}"', "ServerSideEncryption": "aws:kms"},
        {"ETag": f'"{OTHER}"', "SSECustomerAlgorithm": "AES256"},
        {"ETag": f'"{MD5}"', "ServerSideEncryption": "AES256"},
        {"ETag": f'"{OTHER}"', "ResponseMetadata": {"ChecksumAlgorithm": "sha256"}},
    ],
)
def test_a_complete_body_is_accepted_with_any_etag(response: dict[str, Any]) -> None:
    assert downloaded(Store(**response)) == DATA


@pytest.mark.parametrize(
    "response",
    [
        {"ETag": f'"{OTHER}"'},
        {"ETag": OTHER},
        {"ETag": f'"{OTHER}"', "ServerSideEncryption": "AES256"},
        {"ETag": f'"{MD5}"', "Metadata": {"sha256": "0" * 64}},
    ],
)
def test_a_checksum_mismatch_is_a_damaged_body(response: dict[str, Any]) -> None:
    with pytest.raises(ChecksumMismatch):
        downloaded(Store(**response))


class Interrupted(BaseException):
    """Stands for an interruption such as Ctrl-C."""


class NoSuchUpload(ClientError):
    """A class made at run time, as the client's own exceptions are."""

    def __init__(self) -> None:
        super().__init__({"Error": {"Code": "NoSuchUpload"}}, "AbortMultipartUpload")


class Uploads:
    """Accepts whole and multipart uploads, and fails on request."""

    exceptions = SimpleNamespace(NoSuchUpload=NoSuchUpload)

    def __init__(self, **fails: BaseException) -> None:
        self._fails = fails
        self.sizes: list[int] = []
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., dict[str, str]]:
        def response(**named: Any) -> dict[str, str]:
            self.calls.append(name)
            if name in self._fails:
                raise self._fails[name]
            if "Body" in named:
                self.sizes.append(len(named["Body"]))
            return {"UploadId": "1", "ETag": '"e"'}

        return response


IN_PARTS = S3Options(multipart_threshold=len(DATA), part_size=5 * MIB)


def put(client: Any, data: bytes, options: S3Options = IN_PARTS) -> None:
    upload(client, options, AT, data, "text/plain", None)


def test_a_blob_above_the_threshold_is_a_multipart_upload() -> None:
    below, at = Uploads(), Uploads()
    put(below, DATA[1:])
    put(at, DATA)
    assert below.calls == ["put_object"]
    assert at.calls == ["create_multipart_upload", "upload_part", "complete_multipart_upload"]


def test_part_size_grows_to_limit_the_number_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.s3.upload.MAX_PARTS", 2)
    client = Uploads()
    put(client, bytes(15 * MIB + 1))
    assert len(client.sizes) == 2
    assert sum(client.sizes) == 15 * MIB + 1


@pytest.mark.parametrize("ending", [None, NoSuchUpload()])
def test_an_interrupted_upload_is_aborted(
    ending: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    fails: dict[str, BaseException] = {"upload_part": Interrupted()}
    if ending is not None:
        fails["abort_multipart_upload"] = ending
    client = Uploads(**fails)
    with pytest.raises(Interrupted):
        put(client, DATA)
    assert client.calls[-1] == "abort_multipart_upload"
    assert not caplog.records


def test_a_failed_abort_is_logged_and_hides_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unreachable = HTTPClientError(error="cut")
    with pytest.raises(Interrupted):
        put(Uploads(upload_part=Interrupted(), abort_multipart_upload=unreachable), DATA)
    assert "may remain" in caplog.text


def open_store(monkeypatch: pytest.MonkeyPatch, client: Any = None) -> S3BlobStore:
    """A store that may read ``images`` and write ``bucket``."""
    monkeypatch.setattr("adapters.s3.store.connect", lambda _: client)
    return S3BlobStore(
        S3Options(), readable=["images"], writable=[AT.bucket], sleep=lambda _: None
    )


def test_deleting_a_missing_blob_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = ClientError({"Error": {"Code": "NoSuchKey"}}, "DeleteObject")
    client = Uploads(delete_object=missing)
    open_store(monkeypatch, client).delete(AT)
    assert client.calls == ["delete_object"]


@pytest.mark.parametrize("error", [ValueError("no endpoint"), ProfileNotFound(profile="ours")])
def test_a_configuration_without_a_valid_client_is_denied(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: S3Options) -> None:
        raise error

    monkeypatch.setattr("adapters.s3.store.connect", fail)
    with pytest.raises(BlobDenied, match="the S3 client could not be created"):
        S3BlobStore(S3Options(), readable=[], writable=[], sleep=lambda _: None)


def test_the_client_has_the_timeouts_and_pool_size_of_its_options() -> None:
    options = S3Options(
        region="eu-west-1",
        connect_timeout=2.0,
        read_timeout=3.0,
        max_attempts=2,
        max_pool_connections=9,
    )
    config: Any = connect(options).meta.config
    assert (config.connect_timeout, config.read_timeout) == (2.0, 3.0)
    assert (config.retries["total_max_attempts"], config.max_pool_connections) == (2, 9)


KEYS: dict[str, Any] = {
    "access_key_id": "AKIA-of-ours",
    "secret_access_key": "s3cret",
    "session_token": "t0ken",
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"connect_timeout": 0.0}, "connect_timeout must be more than 0"),
        ({"read_timeout": 0.0}, "read_timeout must be more than 0"),
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
        ({"multipart_threshold": 0}, "multipart_threshold must be at least 1"),
        ({"max_pool_connections": 0}, "max_pool_connections must be at least 1"),
        ({"part_size": 5 * MIB - 1}, "part_size must be at least 5242880"),
        ({"access_key_id": "x"}, "both or neither"),
        ({"secret_access_key": "x"}, "both or neither"),
        ({"session_token": "x"}, "session_token needs access_key_id"),
        ({"endpoint_url": "https://hunter2@minio"}, "credentials: .*AWS_ACCESS_KEY_ID"),
        ({"endpoint_url": "https://:hunter2@minio"}, "credentials: .*AWS_ACCESS_KEY_ID"),
        ({"endpoint_url": "https:///minio"}, "give https://host"),
        ({"endpoint_url": "minio:9000"}, "give https://host"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        S3Options(**wrong)
    assert "hunter2" not in str(raised.value)


def test_minimum_options_are_accepted_and_no_secret_is_shown() -> None:
    options = S3Options(
        part_size=5 * MIB, max_attempts=1, multipart_threshold=1, max_pool_connections=1, **KEYS
    )
    assert not any(secret in repr(options) for secret in KEYS.values())
