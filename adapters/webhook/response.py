"""Map the backend's response to success or an error."""

from __future__ import annotations

import json
from datetime import datetime
from html import escape
from urllib.parse import quote

from adapters.common.retry_after import retry_after
from adapters.common.text import printable
from adapters.webhook.transport import Response, TransportError
from application.ports import NotifierRejected, NotifierUnavailable, StyleGone

MAX_REASON_CHARACTERS = 300

_REMEDIES = {
    400: "a field is missing or wrong: this worker's version and the backend's do not agree",
    401: "set INTERNAL_API_TOKEN to the backend's token",
    403: "the backend must receive the header 'X-Request-Source: training-server'; check "
    "whether a proxy removes or changes it",
    404: "the style is gone, or BACKEND_API_URL is not the backend's address",
}

_FROM_A_PROXY = {502, 504}
"""Bad gateway, gateway timeout: the call was forwarded, its response lost or late."""


def check_response(
    response: Response, now: datetime, secret: str
) -> NotifierUnavailable | NotifierRejected | None:
    """None if the backend has accepted the call, else the error to raise.

    The backend does not deduplicate calls, so a 2xx response is never retried. With
    ``{"success": true}`` or a truncated body it is a success. With any other body, such as a web
    page of another host, the call counts as rejected, and an operator has to look at it.

    Args:
        now: for a ``Retry-After`` with a date.
        secret: the token; removed from error texts, even if the response contains it.
    """
    reason = _reason(response, secret)
    if 200 <= response.status < 300:
        if response.body is None or json_object(response.body).get("success") is True:
            return None
        text = (
            'instead of {"success": true}; check whether BACKEND_API_URL is the backend\'s address'
        )
        return NotifierRejected(f"{reason}, {text}")
    if response.status in (408, 429) or response.status >= 500:
        if response.status in _FROM_A_PROXY:
            reason += ", from a proxy: the backend may or may not have received the call"
        asked = retry_after(response.headers.get("Retry-After", ""), now)
        return NotifierUnavailable(reason, retry_after=asked)
    if 300 <= response.status < 400:
        target = readable(response.headers.get("Location", "nowhere"), secret)
        text = f"redirects to {target}; the token is not sent there: set BACKEND_API_URL"
        return NotifierRejected(f"{reason}, {text} to the final address")
    if response.status == 404:
        return StyleGone(f"{reason}; {_REMEDIES[404]}")
    remedy = _REMEDIES.get(
        response.status, "check whether BACKEND_API_URL is the backend's address"
    )
    return NotifierRejected(f"{reason}; {remedy}")


def connection_error(silence: TransportError, url: str, secret: str) -> NotifierUnavailable:
    """The error to raise when there was no response."""
    reason = readable(silence.reason, secret)
    if silence.sent:
        return NotifierUnavailable(f"{url} may or may not have received the call: {reason}")
    if silence.untrusted:
        text = f"TLS with {url} fails ({reason}); check that its certificate is for this host, "
        return NotifierUnavailable(
            f"{text}is valid today, and is signed by an authority trusted here"
        )
    return NotifierUnavailable(
        f"{url} cannot be reached, the call was not sent: {reason}; check the backend, the "
        "network and BACKEND_API_URL"
    )


def readable(text: str, secret: str) -> str:
    """Foreign text as one printable line of limited length, without the secret."""
    for form in (secret, json.dumps(secret)[1:-1], quote(secret, safe=""), escape(secret)):
        text = text.replace(form, "[token]")
    line = printable(" ".join(text.split()))
    most = MAX_REASON_CHARACTERS
    return line if len(line) <= most else line[: most - 1] + "…"


def _reason(response: Response, secret: str) -> str:
    said = ""
    if response.body:
        fields = json_object(response.body)
        text = next((fields[k] for k in ("error", "detail", "message") if fields.get(k)), None)
        said = text if isinstance(text, str) else response.body.decode(errors="replace")
    status = f"the backend returned {response.status}"
    return f"{status} ({readable(said, secret)})" if said else status


def json_object(body: bytes) -> dict[str, object]:
    """The JSON object in a body; empty if there is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
