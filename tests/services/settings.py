"""Settings for tests, without the environment."""

from __future__ import annotations

from typing import Any

from entrypoints.settings import Settings


def make_settings(**named: Any) -> Settings:
    """Settings with these values, and else the defaults."""
    return Settings.model_validate(named)
