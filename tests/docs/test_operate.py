"""docs/operate.md explains every error code, exit code and alert."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from domain.failure import FailureCode
from entrypoints import exit_codes

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", list(FailureCode))
def test_every_error_code_has_a_remedy(code: FailureCode) -> None:
    assert re.search(rf"^\| `{code}` \| .+ \| .+ \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(
    "code", [0, *(value for name, value in vars(exit_codes).items() if name.startswith("EXIT_"))]
)
def test_every_exit_code_has_a_remedy(code: int) -> None:
    assert re.search(rf"^\| (?:\d+, )?{code}(?:, \d+)? \| .+ \| .+ \| .+ \|$", PAGE, re.MULTILINE)


def test_every_alert_links_to_its_remedy() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    section = PAGE[PAGE.index("## Alerts") : PAGE.index("## A job seems stuck")]
    assert set(re.findall(r"^\| `(\w+)` \| .+ \|$", section, re.MULTILINE)) == alerts
