"""Make pika accept messages with any headers.

Some headers that a broker passes on make pika raise while it decodes a frame: a time in the year
300 billion, tables nested a thousand deep. That ends the connection, the broker redelivers the
message on the next one, and every worker would reconnect forever.
"""

from __future__ import annotations

import logging

from pika import BasicProperties, spec

log = logging.getLogger(__name__)


class ReadableProperties(BasicProperties):
    """Message properties without those that pika cannot decode."""

    def decode(self, encoded: bytes, offset: int = 0) -> BasicProperties:
        """Decode the readable properties."""
        try:
            BasicProperties.decode(self, encoded, offset)
        except Exception as error:
            log.warning("a message's headers cannot be read and are left out: %r", error)
            self.headers = None
        return self


def read_every_message() -> None:
    """Make pika use ``ReadableProperties`` for every message, process-wide."""
    spec.props[BasicProperties.INDEX] = ReadableProperties
