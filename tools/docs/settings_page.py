"""The page of all settings, generated from the code."""

from __future__ import annotations

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from adapters.common.text import one_line
from entrypoints.settings import Settings

SECTIONS = {
    "base_model": "Training device and base model",
    "rabbitmq_host": "Broker",
    "storage_dir": "Object store",
    "backend_allow_http": "Backend",
    "worker_name": "Jobs",
    "log_level": "Logs",
    "status_host": "Status page, metrics and health checks",
}
"""Heading of each group, by the group's first setting in ``Settings``."""
_HEAD = """\
# Settings

Generated from `entrypoints/settings.py` by `python -m tools.docs.documents`; a test compares both.

Settings are read from the environment and from a file `.env` in the current folder; the
environment wins. `.env.example` is a file to start from. `python -m entrypoints.worker --check`
tests the settings. A wrong value ends the command with exit code 2 and one line for each problem.
The log reports names that look like misspelt settings.
"""
_TABLE = "\n| setting | default | meaning |\n| --- | --- | --- |\n"


def settings_page() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    for name, field in Settings.model_fields.items():
        if name in SECTIONS:
            parts.append(f"\n## {SECTIONS[name]}\n{_TABLE}")
        parts.append(
            f"| `{name.upper()}` | {_default(field)} | {one_line(field.description or '')} |\n"
        )
    return "".join(parts)


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, tuple):
        value = ",".join(f"{part:g}" if isinstance(part, float) else part for part in value)
    return "" if value in (None, "") else f"`{value}`"
