"""One HTTP exchange with the backend: it ends in time, and the token goes nowhere else."""

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

from adapters.webhook.deadline import BoundedAdapter, Deadline
from adapters.webhook.options import WebhookOptions

CONNECTIONS = 8
"""Kept open for the next call; more may be open at a time."""
MAX_ANSWER_BYTES = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """What the backend said. Its words may hold the token: not shown unless ``readable``."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)
    """None where it broke off; empty where it has more than ``MAX_ANSWER_BYTES``."""


@dataclass(frozen=True)
class TransportError:
    """Nothing came back."""

    reason: str = field(repr=False)
    sent: bool = True
    """False where the call certainly did not reach the backend."""
    untrusted: bool = False
    """True where TLS is the reason."""


class Transport:
    """Calls one backend, from any thread, over connections that are kept.

    Proxies, ``.netrc`` and certificate bundles named in the environment are not looked at: the
    first two could carry the token elsewhere or put another in its place. Redirects are not
    followed and cookies not kept.
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
    ) -> Answer | TransportError:
        """Send one call and read its answer.

        Args:
            public: send no token: for what anyone may read, and a foreign token may hide.

        Takes at most ``connect`` and ``read`` seconds, at whatever pace the bytes come. Looking
        up the host's name is outside of that; the resolver has its own limits.
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
                    return Answer(response.status_code, response.headers, content)
            except (HTTPError, OSError, HTTPException) as error:  # requests' own are OSErrors
                return _explained(error, deadline, before)

    def close(self) -> None:
        """Close what is kept open."""
        self._session.close()


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: where the backend points us to is not even read."""


class _Bearer(AuthBase):
    """The token, out of sight of whoever prints the session or its headers."""

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
    # A connection that is cut may look like one that has ended.
    return None if deadline.over else content


def _explained(
    error: Exception, deadline: Deadline, before: BaseException | None
) -> TransportError:
    links = _links(error, before)
    # Requests and urllib3 wrap their errors in one another; the innermost has the words.
    inner = links[-1]
    reason = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    if deadline.over or any(isinstance(link, TimeoutError) for link in links):
        reason = "no answer in time" if deadline.sent else "no connection in time"
    tls = any(isinstance(link, ssl.SSLError) for link in links)
    return TransportError(reason, deadline.sent, untrusted=tls)


def _links(error: BaseException, before: BaseException | None) -> list[BaseException]:
    """The error and what it wraps, the innermost last.

    Args:
        before: what the caller was handling already. Python makes it the context of every new
            error, and it says nothing about the call.
    """
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        links.append(link)
        wrapped = (*link.args, getattr(link, "reason", None), link.__cause__, link.__context__)
        known = (*links, before)
        link = next((w for w in wrapped if isinstance(w, BaseException) and w not in known), None)
    return links
