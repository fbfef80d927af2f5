"""Address, token and timeouts of the backend, checked before the first call."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from adapters.common.loopback import is_loopback
from domain.errors import UserError

SHORTEST_TOKEN = 32
"""Minimum characters of the token, by the contract."""

_ADDRESS = r"(?i:https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[A-Za-z0-9._~/-]*)?"
_REMEDY = "give https://host[:port], without user name, password or query"


class InvalidBackend(UserError, ValueError):
    """A setting of the backend is invalid; the text names the setting and the remedy."""


@dataclass(frozen=True, kw_only=True)
class WebhookOptions:
    """Settings for calls to the backend.

    Raises:
        InvalidBackend: the address or the token is invalid.
    """

    base_url: str
    """BACKEND_API_URL: ``https://host[:port][/prefix]``, or ``http://`` to a loopback host."""
    allow_http: bool = False
    """BACKEND_ALLOW_HTTP: plain HTTP to other hosts too, inside a private network."""
    allow_short_token: bool = False
    """BACKEND_ALLOW_SHORT_TOKEN: a token of fewer than 32 characters, for development."""
    token: str = field(repr=False)
    """INTERNAL_API_TOKEN."""
    user_agent: str
    """``style-trainer/<version>``."""
    ca_file: Path | None = None
    """BACKEND_CA_FILE: certificates to trust instead of the public ones, in PEM."""
    connect_timeout: float = 5.0
    """Seconds to establish a connection."""
    read_timeout: float = 30.0
    """Seconds for the whole response to an outcome webhook. Long, because a call repeated after
    a slow response is shown to the artist twice."""
    progress_timeout: float = 5.0
    """Seconds for the connection of a progress call, and again for its whole response."""

    def __post_init__(self) -> None:
        address = checked_address(self.base_url, allow_http=self.allow_http)
        object.__setattr__(self, "base_url", address)
        check_token(self.token, allow_short=self.allow_short_token)
        if self.ca_file is not None and not self.ca_file.is_file():
            raise InvalidBackend(f"BACKEND_CA_FILE: {self.ca_file} is not a file; give a PEM file")


def checked_address(url: str, *, allow_http: bool = False) -> str:
    """The backend's address without a slash at its end.

    The token is sent to this address, so plain HTTP is allowed for loopback hosts only.

    Args:
        allow_http: accept plain HTTP to any host.

    Raises:
        InvalidBackend: with the remedy; the text omits user and password of the address.
    """
    # Parsers disagree about other characters in a URL, and so about the host.
    if not re.fullmatch(_ADDRESS, url):
        raise _rejected("this is not a URL", _REMEDY)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise _rejected(str(error), _REMEDY) from None
    if parts.scheme == "http" and not allow_http and not is_loopback(host):
        remedy = (
            f"give https://{parts.netloc}{parts.path}, or set BACKEND_ALLOW_HTTP=true where "
            "the network between worker and backend is private"
        )
        raise _rejected(f"the token must not be sent to {host} unencrypted", remedy)
    return url.rstrip("/")


def check_token(token: str, *, allow_short: bool = False) -> None:
    """Check that the token can be sent in a header and is long enough.

    Args:
        allow_short: accept any length.

    Raises:
        InvalidBackend: with the remedy, and without the token.
    """
    if not re.fullmatch(r"[!-~]+", token):
        raise InvalidBackend(
            "INTERNAL_API_TOKEN is empty or has characters that are not allowed in a header, such "
            "as spaces; give the backend's token as it is"
        )
    if len(token) < SHORTEST_TOKEN and not allow_short:
        problem = f"INTERNAL_API_TOKEN has {len(token)} characters"
        raise InvalidBackend(
            f"{problem}; give the backend's token, of {SHORTEST_TOKEN} or more, or "
            "set BACKEND_ALLOW_SHORT_TOKEN=true for development"
        )


def _rejected(problem: str, remedy: str) -> InvalidBackend:
    return InvalidBackend(f"BACKEND_API_URL: {problem}; {remedy}")
