"""The README and the pages of figures agree with the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.pages import PAGES, filled
from entrypoints.settings import Settings
from tools.docs.settings_page import SECTIONS, settings_page

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_setting_has_a_row_in_a_section() -> None:
    page = settings_page()
    for name in Settings.model_fields:
        assert f"\n| `{name.upper()}` |" in page
    assert page.index("\n## ") < page.index("\n| `")
    assert page.count("\n## ") == len(SECTIONS)


def test_the_settings_of_the_readme_exist() -> None:
    names = re.findall(r"`([A-Z][A-Z0-9]+_[A-Z0-9_]+)`", README)
    assert names
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_ci_calls_a_test_command_of_the_contributors_page() -> None:
    assert "make test-all" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "| `make test-all` |" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_figures_are_those_that_were_measured(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "<!-- figures: " in text
    assert filled(text) == text


def test_the_readmes_duration_of_a_whole_job_is_the_measured_one() -> None:
    rows = [
        row
        for file in (ROOT / "benchmarks" / "results").glob("*.json")
        for row in json.loads(file.read_text("utf-8")).get("rows", [])
    ]
    measured = {round(row["total_s"]) for row in rows if row.get("name") == "whole job"}
    (named,) = re.findall(r"20 images and 200 epochs took (\d+) s", README)
    assert int(named) in measured
