"""Reads every message, whatever its headers.

Some headers that a broker passes on make pika raise in the middle of its input: a time in the
year 300 billion, tables nested a thousand deep. The connection is then of no use, the message
comes again on the next one, and no worker would ever get past it.
"""

from __future__ import annotations

import logging

from pika import BasicProperties, spec

log = logging.getLogger(__name__)


class LenientProperties(BasicProperties):
    """Properties of which those that can be read are there."""

    def decode(self, encoded: bytes, offset: int = 0) -> BasicProperties:
        """Read what can be read."""
        try:
            BasicProperties.decode(self, encoded, offset)
        except Exception as error:
            log.warning("a message's headers cannot be read and are left out: %r", error)
            self.headers = None
        return self


def read_every_message() -> None:
    """Have pika use it for every message from now on."""
    spec.props[BasicProperties.INDEX] = LenientProperties
