"""The grid that the defaults are judged by asks for what the code has."""

from __future__ import annotations

from dataclasses import fields

import pytest

from benchmarks.quality import LEARNING_RATES, OPTIONS
from domain.parameters import TrainingParameters


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options))
def test_every_setting_is_valid_and_differs_from_the_default(options: dict[str, object]) -> None:
    defaults = {field.name: field.default for field in fields(TrainingParameters)}
    assert all(value != defaults[name] for name, value in options.items())
    TrainingParameters(**{"epochs": 1, "resolution": 64, **options})


def test_the_learning_rates_rise_and_are_valid() -> None:
    assert list(LEARNING_RATES) == sorted(LEARNING_RATES)
    for rate in LEARNING_RATES:
        TrainingParameters(epochs=1, resolution=64, learning_rate=rate)
