"""The ``Retry-After`` header of HTTP (RFC 9110, 10.2.3)."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER = 3600.0
"""Seconds. A server that asks for more is called again after this time."""


def retry_after(header: str | None, now: datetime | None) -> float | None:
    """Seconds to wait, from 0 to ``MAX_RETRY_AFTER``; None where the header does not say.

    Args:
        now: compared with a header that is a date; None leaves such a header out.
    """
    text = (header or "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), MAX_RETRY_AFTER)
    moment = http_date(text)
    if moment is None or now is None:
        return None
    return min(max(0.0, (moment - now).total_seconds()), MAX_RETRY_AFTER)


def http_date(text: str | None) -> datetime | None:
    """The moment that a header such as ``Date`` names, in UTC if it has no zone; else None."""
    try:
        moment = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
