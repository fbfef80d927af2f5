"""No parameter at an end of its range, alone or with others, ends a job with an unexpected error:
the worker would retry the task, and report a problem on its side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from application.settlement import Ack
from application.stop_signal import StopSignal
from domain.failure import FailureCode
from domain.job import TrainingJob
from domain.limits import (
    Boolean,
    BoundedText,
    Choice,
    FloatRange,
    IntRange,
    InvalidParameter,
    Limit,
    Prompts,
)
from domain.parameters import ADAMW_LEARNING_RATE, LEARNING_RATES, LIMITS
from tests.application.world import World, a_task
from tests.diffusion.test_style_not_learned import outcome

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]


def ends_of(limit: Limit) -> Sequence[Any]:
    """The ends of a range, and for texts what tokenizers, regular expressions and files treat
    specially."""
    match limit:
        case IntRange():
            return limit.low, limit.high
        case FloatRange():
            low = math.nextafter(limit.low, math.inf) if limit.above_low else limit.low
            return low, limit.high
        case Boolean():
            return False, True
        case Choice():
            return [str(name) for name in limit.names]
        case BoundedText():
            longest = limit.max_length
            special = "é\0\n<|endoftext|>,([)"
            return "x", special, ", " * (longest // 2), "\U0001f600" * longest
        case Prompts():
            return (), tuple(ends_of(limit.each)) * (limit.max_count // 4)


VALUES: dict[str, Sequence[Any]] = {name: ends_of(limit) for name, limit in LIMITS.items()}
VALUES |= {name: (*VALUES[name], ADAMW_LEARNING_RATE.high) for name in LEARNING_RATES}
VALUES |= {
    # The largest would take too long.
    "epochs": (1, 3),
    "resolution": (64, 128),
    # A run from a LoRA has its own tests.
    "network_weights": (None,),
    "dim_from_weights": (False,),
}
PAIRS = [(name, value) for name, values in VALUES.items() for value in values]
OPTIONS = st.lists(st.sampled_from(PAIRS), min_size=1, max_size=4, unique_by=lambda pair: pair[0])


def check(job: TrainingJob) -> None:
    assert job.is_terminal
    if job.failure is not None:
        wrong = {FailureCode.STYLE_NOT_LEARNED, FailureCode.LOSS_DIVERGED}
        if job.failure.code is FailureCode.INVALID_TASK:
            assert "optimizer" in job.failure.message, "its library is not installed"
        else:
            assert job.failure.code in wrong


def named(options: list[tuple[str, Any]]) -> dict[str, Any]:
    values = {name: value for name, value in options if value is not None}
    try:
        a_task(**values)
    except InvalidParameter:
        assume(False)  # a rate that only Prodigy can have
    return values


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(OPTIONS)
def test_a_worker_decides_every_task(options: list[tuple[str, Any]]) -> None:
    world = World()
    assert world.worker()(a_task(**named(options)), StopSignal()) == Ack()
    check(world.job())


OVERFLOWING = {
    "learning_rate": 0.1,
    "alpha": 1024.0,
    "rank": 256,
    "use_rslora": True,
    "lora_targets": "attention+ff+conv",
    "lr_scheduler": "constant",
    "validation_split": 0.5,
    "epochs": 1,
}
"""After the only epoch the weights are finite, and the measured loss is not."""
UNDERFLOWING = {
    "optimizer": "prodigy",
    "learning_rate": 10.0,
    "train_text_encoder": True,
    "text_encoder_lr": 5e-324,
    "epochs": 1,
}
"""The ratio of the learning rates is 0."""


@pytest.mark.integration
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=SLOW)
@example(list(OVERFLOWING.items()))
@example(list(UNDERFLOWING.items()))
@given(OPTIONS)
def test_the_trainer_ends_every_run(options: list[tuple[str, Any]]) -> None:
    check(outcome(**named(options)))


@pytest.mark.long
@pytest.mark.parametrize(("name", "value"), PAIRS)
def test_the_trainer_ends_the_run_with_each_value(name: str, value: Any) -> None:
    optimizer = {"optimizer": "prodigy"} if name in LEARNING_RATES else {}
    check(outcome(**named([(name, value), *optimizer.items()])))


@pytest.mark.long
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(OPTIONS)
def test_the_trainer_ends_many_runs(options: list[tuple[str, Any]]) -> None:
    check(outcome(**named(options)))
