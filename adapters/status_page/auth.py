"""Access control of the page: clients on this machine, or clients with the token."""

from __future__ import annotations

import hmac
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.common.loopback import is_loopback
from adapters.status_page.binding import check_binding

COOKIE = "style_trainer_status"
OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/page.css", "/icon.svg"})
"""Paths without a token: health checks, and the files of the login page."""

_MAX_FORM = 4096
_SESSION_SECONDS = 12 * 3600
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class AuthMiddleware:
    """ASGI middleware: checks access, and sets the security headers of every response.

    Args:
        host: the address that the server listens on.
        token: required from clients; None if only this machine can connect.
        login_page: shown to a browser without the token.

    Raises:
        InvalidBinding: ``host`` requires a token.
    """

    def __init__(self, app: ASGIApp, *, host: str, token: str | None, login_page: str) -> None:
        check_binding(host, token)
        self._app = app
        self._token = token
        # A website may resolve its own name to 127.0.0.1 and read this page from a browser
        # (DNS rebinding); its requests carry that name.
        self._local_names_only = is_loopback(host)
        self._login_page = login_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Return an error or the login page, or pass the request to the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope, receive)
        response = await self._reject(request)
        await (response or self._app)(scope, receive, send_with_headers)

    async def _reject(self, request: Request) -> Response | None:
        """The response to a request without access; None to pass it on."""
        if self._local_names_only and not is_loopback(_host_name(request.headers)):
            return PlainTextResponse(
                "Use localhost or 127.0.0.1 as the host in the URL.\n", status_code=421
            )
        # Not ``request.url``, which may contain the Host header, chosen by the client.
        path = request.scope["path"]
        if self._token is None or path in OPEN_PATHS:
            return None
        if path == "/login" and request.method == "POST":
            return self._log_in(request, await _form_token(request))
        if path == "/" and "token" in request.query_params:
            # The redirect removes the token from the address bar and the history.
            return self._log_in(request, request.query_params["token"])
        if self._is_authenticated(request):
            return None
        if path == "/" and request.method == "GET":
            return self._login_response()
        return PlainTextResponse(
            "Send the header Authorization: Bearer STATUS_TOKEN\n",
            status_code=401,
            headers={"WWW-Authenticate": 'Bearer realm="style trainer"'},
        )

    def _is_authenticated(self, request: Request) -> bool:
        assert self._token is not None  # called only with a token
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(given.strip(), self._token):
            return True
        cookies = SimpleCookie()
        try:
            cookies.load(request.headers.get("Cookie", ""))
        except CookieError:
            return False
        session = cookies.get(COOKIE)
        return session is not None and _equal(session.value, _session(self._token))

    def _log_in(self, request: Request, given: str) -> Response:
        assert self._token is not None  # as above
        if not _equal(given, self._token):
            return self._login_response(wrong=True)
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(
            COOKIE,
            _session(self._token),
            max_age=_SESSION_SECONDS,
            httponly=True,
            # Lax, so that a link with the token works from another page. Requests change
            # nothing here.
            samesite="lax",
            secure=request.scope["scheme"] == "https",
        )
        return response

    def _login_response(self, *, wrong: bool = False) -> Response:
        page = self._login_page.replace("<!-- wrong -->", _WRONG if wrong else "")
        return Response(page, status_code=401, media_type="text/html")


_WRONG = '<p class="trouble" role="alert">Wrong token.</p>'


def _equal(given: str, expected: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def _session(token: str) -> str:
    """The cookie's value: proves knowledge of the token without revealing it."""
    return hmac.new(token.encode(), b"status page session", sha256).hexdigest()


def _host_name(headers: Headers) -> str:
    host = headers.get("Host", "")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


async def _form_token(request: Request) -> str:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_FORM:
            return ""
    return parse_qs(body.decode(errors="replace")).get("token", [""])[0]
