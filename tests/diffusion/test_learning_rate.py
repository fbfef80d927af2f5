from __future__ import annotations

import math
from typing import Any

import pytest

from adapters.diffusion.optimizer import learning_rates
from domain.parameters import LearningRateSchedule, TrainingParameters


def rates(steps: int = 100, **parameters: Any) -> list[float]:
    values = {"epochs": 1, "resolution": 64, "learning_rate": 0.01, **parameters}
    return learning_rates(TrainingParameters(**values), steps)


@pytest.mark.parametrize("name", sorted(set(LearningRateSchedule) - {"constant"}))
def test_the_warm_up_is_linear_from_zero(name: LearningRateSchedule) -> None:
    assert rates(lr_scheduler=name, lr_warmup_steps=4)[:5] == pytest.approx(
        [0, 0.0025, 0.005, 0.0075, 0.01]
    )


def test_constant_has_no_warm_up() -> None:
    assert set(rates(lr_scheduler="constant", lr_warmup_steps=20)) == {0.01}


def test_cosine_with_restarts_begins_every_cycle_at_the_peak() -> None:
    found = rates(lr_scheduler="cosine_with_restarts", lr_warmup_steps=0, lr_num_cycles=4)
    cycle = [0.005 * (1 + math.cos(math.pi * step / 25)) for step in range(25)]
    assert found == pytest.approx(cycle * 4)


def test_polynomial_falls_with_its_power() -> None:
    found = rates(lr_scheduler="polynomial", lr_warmup_steps=0, lr_power=2.0)
    expected = [0.01 * (1 - step / 100) ** 2 for step in range(100)]
    assert found == pytest.approx(expected, abs=0.01 * 2e-7)


def test_cosine_falls_by_half_a_cosine() -> None:
    expected = [0.005 * (1 + math.cos(math.pi * (step - 10) / 90)) for step in range(10, 100)]
    assert rates(lr_scheduler="cosine", lr_warmup_steps=10)[10:] == pytest.approx(expected)


def test_a_run_of_one_step_trains_at_the_peak() -> None:
    assert rates(steps=1) == [0.01]
