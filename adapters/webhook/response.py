"""What an answer of the backend means for the call."""

from __future__ import annotations

import json
from datetime import datetime
from html import escape
from urllib.parse import quote

from adapters.common.retry_after import retry_after
from adapters.webhook.transport import Answer, TransportError
from application.ports import NotifierRefused, NotifierUnavailable

MAX_REASON_CHARACTERS = 300

_REMEDIES = {
    400: "a field is missing or wrong: this worker's version and the backend's do not agree",
    401: "set INTERNAL_API_TOKEN to the backend's token",
    403: "it must get the header 'X-Request-Source: training-server' as we send it; "
    "see whether a proxy changes headers",
    404: "the style is gone, or BACKEND_API_URL is not the backend's address",
}


def check_response(
    answer: Answer, now: datetime, secret: str
) -> NotifierUnavailable | NotifierRefused | None:
    """None where the backend has taken the call, else the error to raise.

    The backend repeats what a repeated call asks for, so an answer that says 2xx is never
    followed by another try. With ``{"success": true}`` or with a body that was lost on its way it
    stands for success; with any other body, such as a web page of some other host, the call is
    refused, for a person to look at.

    Args:
        now: for a ``Retry-After`` with a date.
        secret: the token; no error's text has it, even where the backend says it.
    """
    reason = _reason(answer, secret)
    if 200 <= answer.status < 300:
        if answer.body is None or json_object(answer.body).get("success") is True:
            return None
        text = (
            'instead of {"success": true}; see whether BACKEND_API_URL is the backend\'s address'
        )
        return NotifierRefused(f"{reason}, {text}")
    if answer.status in (408, 429) or answer.status >= 500:
        asked = retry_after(answer.headers.get("Retry-After", ""), now)
        return NotifierUnavailable(reason, retry_after=asked)
    if 300 <= answer.status < 400:
        target = readable(answer.headers.get("Location", "nowhere"), secret)
        text = f"redirects to {target}; the token does not follow: set BACKEND_API_URL"
        return NotifierRefused(f"{reason}, {text} to the final address")
    remedy = _REMEDIES.get(answer.status, "see whether BACKEND_API_URL is the backend's address")
    return NotifierRefused(f"{reason}; {remedy}")


def connection_error(silence: TransportError, url: str, secret: str) -> NotifierUnavailable:
    """The error to raise when nobody answered."""
    reason = readable(silence.reason, secret)
    if silence.sent:
        return NotifierUnavailable(f"{url} may have taken the call, or not: {reason}")
    if silence.untrusted:
        text = f"TLS with {url} fails ({reason}); see whether its certificate is for this host, "
        return NotifierUnavailable(f"{text}in date, and of an authority that is trusted here")
    return NotifierUnavailable(f"{url} cannot be reached, the call was not sent: {reason}")


def readable(text: str, secret: str) -> str:
    """Foreign text as one bounded line, without control characters and the secret."""
    for form in (secret, json.dumps(secret)[1:-1], quote(secret, safe=""), escape(secret)):
        text = text.replace(form, "[token]")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    most = MAX_REASON_CHARACTERS
    return line if len(line) <= most else line[: most - 1] + "…"


def _reason(answer: Answer, secret: str) -> str:
    said = ""
    if answer.body:
        fields = json_object(answer.body)
        told = next((fields[k] for k in ("error", "detail", "message") if fields.get(k)), None)
        said = told if isinstance(told, str) else answer.body.decode(errors="replace")
    status = f"the backend answers {answer.status}"
    return f"{status} ({readable(said, secret)})" if said else status


def json_object(body: bytes) -> dict[str, object]:
    """The JSON object that a body holds; empty where it holds none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
