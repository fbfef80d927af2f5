"""The settings of the quality benchmark exist in the code."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from benchmarks import captions, quality, style_measures
from benchmarks.quality import LEARNING_RATES, OPTIONS, with_text
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


@pytest.mark.parametrize(
    ("benchmark", "file"),
    [
        (quality, "quality-cpu.json"),
        (captions, "captions-cpu.json"),
        (style_measures, "style-measures-cpu.json"),
    ],
    ids=["quality", "captions", "style measures"],
)
def test_the_pages_tables_are_the_committed_results(benchmark: Any, file: str) -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "quality.md").read_text(encoding="utf-8")
    results = json.loads((root / "benchmarks" / "results" / file).read_text())
    assert with_text(page, benchmark.BEGIN, benchmark.END, benchmark.markdown(results)) == page
