"""Secrets stay where they are; wrong options are named."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adapters.s3.options import MIB, S3Options
from application.ports import (
    BlobDenied,
    BlobMissing,
    BlobUnavailable,
)
from domain.location import Bucket
from tests.integration.s3.world import TOKEN, make
from tests.services.http_faults import Rule, access_denied, internal_error, s3_error
from tests.services.http_proxy import FaultyProxy
from tests.services.s3 import ACCESS_KEY, SECRET_KEY

pytestmark = pytest.mark.integration


def test_no_secret_is_in_logs_errors_or_reprs(
    options: S3Options,
    bucket: str,
    proxy: FaultyProxy,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    printed = [repr(options), str(options)]
    with caplog.at_level(logging.DEBUG):
        store = make(options, bucket)
        printed += [repr(store), repr(vars(store.blobs))]
        calls: list[Callable[[], object]] = [
            lambda: store.blobs.put(store.at("a"), b"1"),
            lambda: store.blobs.put(store.at("large"), bytes(7 * MIB)),
            lambda: store.blobs.get(store.at("a")),
            lambda: store.blobs.list(Bucket(bucket), ""),
            lambda: store.blobs.delete(store.at("a")),
        ]
        secret = f"<AWSSecretAccessKey>{SECRET_KEY}</AWSSecretAccessKey>"
        for rule in (
            None,
            internal_error(),
            access_denied(),
            s3_error("SignatureDoesNotMatch", 403, extra=secret),
            Rule(fault="reset_before"),
            Rule(fault="cut"),
        ):
            proxy.rules(*([rule] if rule else []))
            for call in calls:
                try:
                    call()
                except (BlobDenied, BlobMissing, BlobUnavailable) as error:
                    logging.getLogger("test").exception("it failed")
                    printed.append(repr(error))
    captured = capfd.readouterr()
    everything = "\n".join([*printed, caplog.text, captured.out, captured.err])
    assert "it failed" in everything
    for told in (SECRET_KEY, TOKEN, ACCESS_KEY):
        assert told not in everything


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"endpoint_url": "minio:9000"}, "S3_ENDPOINT_URL=.*give https"),
        ({"endpoint_url": "https://user:hunter2@minio:9000"}, "AWS_ACCESS_KEY_ID"),
        ({"secret_access_key": None}, "both or neither"),
        ({"access_key_id": None, "secret_access_key": None}, "session_token needs"),
        ({"part_size": 1024}, "part_size must be at least 5242880"),
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
        ({"read_timeout": 0}, "read_timeout must be more than 0"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(
    options: S3Options, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as told:
        replace(options, **wrong)
    assert "hunter2" not in str(told.value)
