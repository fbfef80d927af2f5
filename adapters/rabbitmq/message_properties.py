"""Message properties and headers: the worker's own, and those passed on from others."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pika import BasicProperties
from pika.data import encode_table

from adapters.common.queue_ports import DeadMessage

log = logging.getLogger(__name__)

RETRIES = "trainer-retries"
REASON = "trainer-reason"
SINCE = "trainer-since"
WORKER = "trainer-worker"
DETAILS = "trainer-details"
DELIVERY_COUNT = "x-delivery-count"
_OURS = {RETRIES, REASON, SINCE, WORKER, DETAILS}

_NOT_PASSED_ON = {
    # They would route the copy to further queues.
    *("CC", "BCC"),
    # The broker's record of former hops, by which it drops messages that seem to cycle.
    *("x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason"),
    *("x-last-death-exchange", "x-last-death-queue", "x-last-death-reason"),
    # A quorum queue's counters: on a copy they would look like the copy's own.
    *(DELIVERY_COUNT, "x-acquired-count"),
}

# All headers must fit into one frame, 128 KiB by default.
MAX_REASON = 4000
MAX_DETAIL = 1000
MAX_DETAILS = 20
MAX_OTHERS = 64 * 1024
"""Bytes of foreign headers that are passed on."""

_PERSISTENT = 2


def new_task() -> BasicProperties:
    """Properties of a new task, as the backend publishes it."""
    return BasicProperties(content_type="application/json", delivery_mode=_PERSISTENT)


def retries(properties: BasicProperties) -> int:
    """How often the message was delayed for a retry that counts."""
    count = (properties.headers or {}).get(RETRIES)
    return count if type(count) is int and count >= 0 else 0


def delivery_count(properties: BasicProperties) -> int:
    """Times the message came back to its quorum queue; a classic queue does not count: 0."""
    count = (properties.headers or {}).get(DELIVERY_COUNT)
    return count if isinstance(count, int) else 0


def copy(properties: BasicProperties) -> BasicProperties:
    """Properties of a copy that replaces a message in its queue; own headers stay as they are."""
    headers = properties.headers or {}
    return _passed_on(properties, {key: headers[key] for key in _OURS if key in headers})


def delayed(properties: BasicProperties, reason: str, *, counts: bool = True) -> BasicProperties:
    """Properties of a delayed message: one more retry if it counts."""
    ours = {RETRIES: retries(properties) + counts, REASON: _cut(reason, MAX_REASON)}
    return _passed_on(properties, ours)


def dead_letter(
    properties: BasicProperties,
    reason: str,
    details: Mapping[str, str],
    worker: str,
    since: datetime,
) -> BasicProperties:
    """Properties of a dead letter."""
    ours = {
        RETRIES: retries(properties),
        REASON: _cut(reason, MAX_REASON),
        SINCE: since.isoformat(),
        WORKER: _cut(worker, MAX_DETAIL),
        DETAILS: {
            _cut(str(key), 100): _cut(str(value), MAX_DETAIL)
            for key, value in list(details.items())[:MAX_DETAILS]
        },
    }
    return _passed_on(properties, ours)


def replayed(properties: BasicProperties) -> BasicProperties:
    """Properties of a message that starts over, without the worker's own headers."""
    return _passed_on(properties, {})


def dead_message(properties: BasicProperties, body: bytes) -> DeadMessage:
    """A dead letter for an operator, even if another program dead-lettered it."""
    headers = properties.headers or {}
    details = headers.get(DETAILS)
    shown = {WORKER.removeprefix("trainer-"): headers[WORKER]} if WORKER in headers else {}
    if isinstance(details, dict):
        shown |= details
    return DeadMessage(
        body,
        _text(headers.get(REASON, "no reason is recorded")),
        {_text(key): _text(value) for key, value in shown.items()},
        _moment(headers.get(SINCE)),
    )


def _passed_on(properties: BasicProperties, ours: Mapping[str, Any]) -> BasicProperties:
    """The same properties, persistent, with the worker's headers replaced by ``ours``.

    Drops ``expiration``, which would expire a delayed message, and ``user_id``, which the broker
    accepts only from that user.
    """
    return BasicProperties(
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        headers={**_others(properties.headers or {}), **ours},
        delivery_mode=_PERSISTENT,
        priority=properties.priority,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        message_id=properties.message_id,
        timestamp=properties.timestamp,
        type=properties.type,
        app_id=properties.app_id,
    )


def _others(headers: Mapping[Any, Any]) -> dict[Any, Any]:
    others = {
        key: value
        for key, value in headers.items()
        if key not in _OURS and key not in _NOT_PASSED_ON
    }
    try:
        fits = encode_table([], others) <= MAX_OTHERS
    except Exception:  # any error that a foreign header causes in the encoder
        fits = False
    if not fits:
        log.warning(
            "message headers of other programs are dropped: too large, or not encodable: %.500s",
            ", ".join(map(repr, others)),
        )
        return {}
    return others


def _cut(text: str, most: int) -> str:
    """The text cut to at most ``most`` bytes."""
    data = text.encode("utf-8", "backslashreplace")
    return data[:most].decode("utf-8", "ignore")


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _moment(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(_text(value))
    except ValueError:
        return None
