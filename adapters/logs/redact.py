"""Remove secrets from text: known values, and texts in the form of a secret."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, quote_plus

REDACTED = "[redacted]"

_SHORT = 8
"""A shorter secret may be part of a common word: it is replaced only as a separate word."""

_FORMS = (
    # A password in a URL: amqp://user:password@host
    (re.compile(r"(?<=://)[^\s:/@'\"]*:[^\s/@'\"]*@"), f"{REDACTED}@"),
    # Request headers: Authorization: Bearer x, {'Authorization': 'Basic x'}
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w~+/.=-]{8,}"), rf"\1 {REDACTED}"),
    # Signed S3 URLs, the status page's token, upload sessions of Google Cloud Storage
    (
        re.compile(
            r"(?i)([?&;](?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|"
            r"AWSAccessKeyId|token|access_token|sig|upload_id)=)[^&\s'\"]+"
        ),
        rf"\1{REDACTED}",
    ),
)


class Redactor:
    """Replaces every secret in a text.

    Args:
        secrets: the values to hide: plain, quoted for a URL, as base64, or with special
            characters escaped as in JSON and Python.
    """

    def __init__(self, secrets: Iterable[str | None] = ()) -> None:
        variants = {variant for secret in secrets if secret for variant in _variants(secret)}
        # The longest first: one secret may be a prefix of another.
        patterns = [_pattern(text) for text in sorted(variants, key=len, reverse=True)]
        self._known = re.compile("|".join(patterns)) if patterns else None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if self._known is not None:
            text = self._known.sub(REDACTED, text)
        for form, instead in _FORMS:
            text = form.sub(instead, text)
        return text

    def deep(self, value: Any) -> Any:
        """Redact every text in a structure of JSON values, keys included."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, bytes):
            return self(value.decode(errors="replace"))
        if isinstance(value, dict):
            return {self.deep(key): self.deep(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.deep(item) for item in value]
        return value


def _variants(secret: str) -> set[str]:
    return {
        secret,
        quote(secret, safe=""),
        quote_plus(secret),
        base64.b64encode(secret.encode()).decode(),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        ascii(secret)[1:-1],
    }


def _pattern(text: str) -> str:
    pattern = re.escape(text)
    return rf"(?<!\w){pattern}(?!\w)" if len(text) < _SHORT else pattern
