"""What a store's answers mean; no store is needed."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError

from adapters.s3.errors import LONGEST_WAIT, translated
from application.ports import BlobUnavailable

DATE = "Tue, 01 Jan 2030 00:00:00 GMT"


@pytest.mark.parametrize(
    ("header", "date", "seconds"),
    [
        ("7", DATE, 7.0),
        ("9" * 5000, DATE, LONGEST_WAIT),
        ("Tue, 01 Jan 2030 00:02:00 GMT", DATE, 120.0),
        ("Tue, 01 Jan 2030 00:02:00 GMT", "soon", None),
        ("Tue, 01 Jan 2030 00:02:00 GMT", None, None),
        ("Tue, 01 Jan 2030 00:02:00 -0000", DATE, None),
        ("Mon, 31 Dec 2029 00:00:00 GMT", DATE, 0.0),
        ("Tue, 01 Jan 2031 00:00:00 GMT", DATE, LONGEST_WAIT),
        (f"Tue, 01 Jan {'9' * 20} 00:02:00 GMT", DATE, None),
        ("soon", DATE, None),
        (None, DATE, None),
    ],
)
def test_the_wait_that_a_store_asks_for_is_read_in_both_forms_and_bounded(
    header: str | None, date: str | None, seconds: float | None
) -> None:
    named = {"retry-after": header, "date": date}
    headers = {name: value for name, value in named.items() if value is not None}
    metadata = {"HTTPStatusCode": 503, "HTTPHeaders": headers}
    answer = ClientError(
        {"Error": {"Code": "SlowDown"}, "ResponseMetadata": metadata}, "PutObject"
    )
    error = translated(answer, "bucket", "writing s3://bucket/key")
    assert isinstance(error, BlobUnavailable)
    assert error.retry_after == seconds
