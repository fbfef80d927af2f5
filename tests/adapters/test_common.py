"""Helpers that several adapters share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from unittest.mock import patch

import pytest

from adapters.common.files import write_atomically
from adapters.common.loopback import is_loopback
from adapters.common.retry_after import MAX_RETRY_AFTER, http_date, retry_after

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.9.9.9", "::1", "[::1]"],
)
def test_names_and_addresses_of_this_machine_are_local(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "local", "localhost.example", "notlocalhost", "", "[]"]
)
def test_names_and_addresses_of_other_machines_are_not_local(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("9" * 5000, MAX_RETRY_AFTER),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        ("Thursday, 01-Jan-26 12:00:30 GMT", 30.0),
        ("Thu Jan  1 12:00:05 2026", 5.0),
        ("Thu, 01 Jan 2026 14:00:05 +0200", 5.0),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
        *((text, None) for text in ("", "-5", "1.5", "soon", "nan", "1e9", "١٢", "Thu, 99 Jan")),
        ("Fri, 31 Dec 9999 23:59:59 -2359", MAX_RETRY_AFTER),
        (f"Thu, 01 Jan {'9' * 20} 12:00:00 GMT", None),
    ],
)
def test_retry_after_is_parsed_in_both_formats_and_bounded(
    header: str, seconds: float | None
) -> None:
    assert retry_after(header, NOW) == seconds


def test_a_retry_after_date_is_ignored_without_the_servers_date() -> None:
    later = format_datetime(NOW + timedelta(seconds=90), usegmt=True)
    assert retry_after(later, http_date("soon")) is None
    assert retry_after(later, http_date(format_datetime(NOW, usegmt=True))) == 90.0


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path, temporary = tmp_path / "file", tmp_path / "incomplete"
    write_atomically(path, b"first", temporary=temporary)
    with (
        patch("adapters.common.files.os.fsync", side_effect=OSError("the disk is full")),
        pytest.raises(OSError, match="full"),
    ):
        write_atomically(path, b"second", temporary=temporary)
    assert path.read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
