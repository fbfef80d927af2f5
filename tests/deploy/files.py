"""Readers of the files of `deploy`, and of the settings in the code that they must match."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from adapters.status_page.configuration import is_secret
from entrypoints.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"

SETTINGS = {name.upper(): field for name, field in Settings.model_fields.items()}
SECRETS = {name for name, field in SETTINGS.items() if is_secret(field)} | {"AWS_ACCESS_KEY_ID"}
STATUS_PORT: int = Settings.model_fields["status_port"].default


def read_yaml(name: str) -> Any:
    """The one document in a file."""
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def read_all(name: str) -> list[Any]:
    """Every document in a file."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def read_json(name: str) -> Any:
    """The file's content, parsed."""
    return json.loads((DEPLOY / name).read_text(encoding="utf-8"))


def accepted(environment: dict[str, str]) -> Settings:
    """The settings that an environment gives, without this machine's own.

    Raises:
        pydantic.ValidationError: a worker would refuse to start.
    """
    named = {name.lower(): value for name, value in environment.items() if value != ""}
    return Settings.model_validate(
        {name: field.get_default() for name, field in Settings.model_fields.items()} | named
    )
