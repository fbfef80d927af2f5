"""Addresses that may serve the page: loopback, or any with a token."""

from __future__ import annotations

import re

from adapters.common.loopback import is_loopback
from domain.errors import UserError

SHORTEST_TOKEN = 16


class InvalidBinding(UserError, ValueError):
    """The page would be open to the network; the text says what to do."""


def check_binding(host: str, token: str | None) -> None:
    """Check that a token can be sent, and that an address open to the network has one.

    Raises:
        InvalidBinding: with the remedy.
    """
    if token is not None and not re.fullmatch(r"[!-~]*", token):
        raise InvalidBinding("the token is sent in a header; give ASCII characters without spaces")
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise InvalidBinding(
            f"the token has {len(token)} characters; give {SHORTEST_TOKEN} or more"
        )
    if token is None and not is_loopback(host):
        raise InvalidBinding(
            f"STATUS_HOST={host} is open to the network; give a token of {SHORTEST_TOKEN} "
            "characters or more, or set STATUS_HOST=127.0.0.1"
        )
