"""The ``Retry-After`` header of HTTP (RFC 9110, 10.2.3)."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER = 3600.0
"""Upper limit in seconds for ``Retry-After``."""


def retry_after(header: str | None, now: datetime | None) -> float | None:
    """Seconds to wait, from 0 to ``MAX_RETRY_AFTER``; None if missing or invalid.

    Args:
        now: reference time for a header that is a date; None ignores such a header.
    """
    text = (header or "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), MAX_RETRY_AFTER)
    moment = http_date(text)
    if moment is None or now is None:
        return None
    return min(max(0.0, (moment - now).total_seconds()), MAX_RETRY_AFTER)


def http_date(text: str | None) -> datetime | None:
    """The time in a header such as ``Date`` (UTC if it has no zone); None if invalid."""
    try:
        moment = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
