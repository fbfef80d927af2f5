"""Public generators make complete clients from the OpenAPI document, if installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "openapi.yaml"
CALLS = ("progress", "complete", "failed")


def generate(program: str, *arguments: str, folder: Path) -> str:
    """Run a generator. Returns its output."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed; docs/develop.md says how")
    done = subprocess.run([found, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_openapi_python_client_makes_every_call(tmp_path: Path) -> None:
    printed = generate(
        *("openapi-python-client", "generate", "--path", str(DOCUMENT)),
        *("--output-path", "client", "--meta", "none"),
        folder=tmp_path,
    )
    assert "will not be generated" not in printed
    for call in CALLS:
        assert (tmp_path / "client" / "api" / "default" / f"{call}.py").is_file(), printed


def test_openapi_typescript_makes_every_call(tmp_path: Path) -> None:
    generate("openapi-typescript", str(DOCUMENT), "--output", "client.ts", folder=tmp_path)
    made = (tmp_path / "client.ts").read_text(encoding="utf-8")
    for call in CALLS:
        assert f'operations["{call}"]' in made
    assert 'source: "training-server"' in made
