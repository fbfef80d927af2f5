"""The settings as the page shows them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from adapters.common.text import one_line


def visible_settings(settings: BaseModel) -> list[dict[str, str]]:
    """Every setting's name, value and meaning; for secrets only whether they are set."""
    rows = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        rows.append(
            {
                "name": name.upper(),
                "value": _shown(value, secret=is_secret(field)),
                "meaning": one_line(field.description or "").replace("`", ""),
            }
        )
    return rows


def _shown(value: Any, *, secret: bool) -> str:
    if secret:
        return "not set" if value is None else "set"
    if value is None or value == ():
        return "not set"
    if isinstance(value, tuple):
        return ", ".join(str(part) for part in value)
    return without_password(str(value))


def without_password(text: str) -> str:
    """A URL without user and password; any other text unchanged."""
    if "://" not in text:
        return text
    parts = urlsplit(text)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def is_secret(setting: FieldInfo) -> bool:
    """Whether a setting's value must never be shown."""
    return "SecretStr" in str(setting.annotation)
