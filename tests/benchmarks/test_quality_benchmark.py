"""The grid that the defaults are judged by asks for what the code has."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import LEARNING_RATES, OPTIONS, with_table
from domain.parameters import TrainingParameters


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options))
def test_every_setting_is_valid_and_differs_from_the_default(options: dict[str, Any]) -> None:
    defaults = {field.name: field.default for field in fields(TrainingParameters)}
    assert all(value != defaults[name] for name, value in options.items())
    TrainingParameters(**{"epochs": 1, "resolution": 64, **options})


def test_the_learning_rates_rise_and_are_valid() -> None:
    assert list(LEARNING_RATES) == sorted(LEARNING_RATES)
    for rate in LEARNING_RATES:
        TrainingParameters(epochs=1, resolution=64, learning_rate=rate)


def test_the_pages_table_is_the_committed_results() -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "quality.md").read_text(encoding="utf-8")
    results = root / "benchmarks" / "results" / "quality-cpu.json"
    assert with_table(page, json.loads(results.read_text())) == page
