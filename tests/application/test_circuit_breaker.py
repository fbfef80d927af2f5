"""The circuit breaker of a worker on which every task fails."""

from __future__ import annotations

from application.circuit_breaker import FIRST_PAUSE, MAX_PAUSE, MAX_TASKS, CircuitBreaker
from tests.application.world import World


def test_different_failing_tasks_open_it_and_each_further_one_doubles_the_pause(
    world: World,
) -> None:
    breaker = CircuitBreaker(world.clock)
    for number in range(MAX_TASKS):
        assert breaker.pause_reason is None
        breaker.failed(f"task-{number}")
    assert f"{MAX_TASKS} tasks in a row" in (breaker.pause_reason or "")
    for _ in range(10):
        world.clock.advance(FIRST_PAUSE)
        if breaker.pause_reason is None:
            break
    breaker.failed("one more")
    world.clock.advance(FIRST_PAUSE)
    assert breaker.pause_reason is not None
    for number in range(20):
        breaker.failed(f"again-{number}")
    world.clock.advance(MAX_PAUSE)
    assert breaker.pause_reason is None


def test_one_task_that_fails_again_and_again_does_not_open_it(world: World) -> None:
    breaker = CircuitBreaker(world.clock)
    for _ in range(10 * MAX_TASKS):
        breaker.failed("the same")
    assert breaker.pause_reason is None


def test_a_successful_task_closes_it(world: World) -> None:
    breaker = CircuitBreaker(world.clock)
    for number in range(2 * MAX_TASKS):
        breaker.failed(f"task-{number}")
    breaker.succeeded()
    assert breaker.pause_reason is None
    breaker.failed("another")
    assert breaker.pause_reason is None
