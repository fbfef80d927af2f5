"""HTTP exchanges with the backend: bounded in time, token sent to the backend only."""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError

from adapters.common.deadline import BoundedAdapter, Deadline
from adapters.webhook.options import WebhookOptions

CONNECTIONS = 8
"""Idle connections kept open; more may be open at a time."""
MAX_ANSWER_BYTES = 64 * 1024


@dataclass(frozen=True)
class Response:
    """The backend's response. It may contain the token: show text only through ``readable``."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)
    """None if truncated; empty if longer than ``MAX_ANSWER_BYTES``."""


@dataclass(frozen=True)
class TransportError:
    """There was no response."""

    reason: str = field(repr=False)
    sent: bool = True
    """False if the call certainly did not reach the backend."""
    untrusted: bool = False
    """True if TLS failed."""


class Transport:
    """Calls one backend, from any thread, over persistent connections.

    Ignores proxies, ``.netrc`` and certificate bundles from the environment: the first two could
    leak or replace the token. Follows no redirects and keeps no cookies.
    """

    def __init__(self, options: WebhookOptions) -> None:
        self._options = options
        self._session = _Session()
        self._session.trust_env = False
        self._session.auth = _Bearer(options.token)
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.verify = str(options.ca_file) if options.ca_file else True
        self._session.headers.update(
            {
                "User-Agent": options.user_agent,
                "X-Request-Source": "training-server",
                "Content-Type": "application/json",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
            }
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, BoundedAdapter(pool_maxsize=CONNECTIONS))

    def exchange(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        *,
        connect: float,
        read: float,
        public: bool = False,
    ) -> Response | TransportError:
        """Send one call and read its response.

        Args:
            public: send no token, because a public page may reject a token that it does not know.

        Takes at most ``connect`` plus ``read`` seconds, however slowly bytes arrive. The DNS
        lookup is extra; the resolver has its own limits.
        """
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        before = sys.exception()
        with Deadline(connect + read) as deadline:
            try:
                response = self._session.request(
                    method,
                    self._options.base_url + path,
                    data=data,
                    headers=dict(headers),
                    auth=_anonymous if public else None,
                    timeout=(connect, read),
                    allow_redirects=False,
                    stream=True,
                )
                with response:
                    content = _content(response.raw, deadline)
                    return Response(response.status_code, response.headers, content)
            except (HTTPError, OSError, HTTPException) as error:  # requests' own are OSErrors
                return _explained(error, deadline, before)

    def close(self) -> None:
        """Close idle connections."""
        self._session.close()


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: redirects are not read."""


class _Bearer(AuthBase):
    """The token as an auth object, hidden when the session or its headers are printed."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _anonymous(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _content(raw: Any, deadline: Deadline) -> bytes | None:
    content = b""
    try:
        while piece := raw.read1(MAX_ANSWER_BYTES, decode_content=True):
            content += piece
            if len(content) > MAX_ANSWER_BYTES:
                return b""
    except (HTTPError, OSError, HTTPException):
        return None
    # A connection that was cut may look like one that ended normally.
    return None if deadline.over else content


def _explained(
    error: Exception, deadline: Deadline, before: BaseException | None
) -> TransportError:
    links = _links(error, before)
    # Requests and urllib3 wrap their errors; the innermost has the message.
    inner = links[-1]
    reason = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    if deadline.over or any(isinstance(link, TimeoutError) for link in links):
        reason = "no response in time" if deadline.sent else "no connection in time"
    tls = any(isinstance(link, ssl.SSLError) for link in links)
    return TransportError(reason, deadline.sent, untrusted=tls)


def _links(error: BaseException, before: BaseException | None) -> list[BaseException]:
    """The error and those that it wraps, the innermost last.

    Args:
        before: the error that the caller was handling already. Python makes it the context of
            every new error, but it is unrelated to the call.
    """
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        links.append(link)
        wrapped = (*link.args, getattr(link, "reason", None), link.__cause__, link.__context__)
        known = (*links, before)
        link = next((w for w in wrapped if isinstance(w, BaseException) and w not in known), None)
    return links
