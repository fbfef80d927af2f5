import pytest

from domain.progress import Progress, Speedometer


def test_percent_is_100_only_when_all_steps_are_done() -> None:
    assert Progress(9, 10, 999, 1000).percent == 99
    assert Progress(10, 10, 1000, 1000).percent == 100


def test_time_left_comes_from_the_measured_speed_alone() -> None:
    assert Progress(1, 10, 100, 1000).estimated_seconds is None
    assert Progress(1, 10, 100, 1000, steps_per_second=7.0).estimated_seconds == 129


@pytest.mark.parametrize("position", [(11, 10, 1, 10), (-1, 10, 1, 10), (1, 10, 11, 10)])
def test_a_position_outside_the_run_is_rejected(position: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="of 10"):
        Progress(*position)


def test_speed_needs_two_moments() -> None:
    meter = Speedometer()
    assert meter.steps_per_second is None
    meter.observe(1, at=10.0)
    assert meter.steps_per_second is None
    meter.observe(3, at=11.0)
    assert meter.steps_per_second == 2.0


def test_speed_follows_the_last_minute_and_forgets_what_was_before() -> None:
    meter = Speedometer(window_seconds=60.0)
    for second in range(100):
        meter.observe(second, at=float(second))
    for second in range(100, 170):
        meter.observe(99 + (second - 99) * 5, at=float(second))
    assert meter.steps_per_second == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("moments", "speed"), [((0, 50, 100, 104), 3 / 104), ((0, 10, 100, 110), 2 / 100)]
)
def test_slow_steps_are_measured_from_the_last_one_before_the_window(
    moments: tuple[float, ...], speed: float
) -> None:
    meter = Speedometer(window_seconds=60.0)
    for step, at in enumerate(moments):
        meter.observe(step, at)
    assert meter.steps_per_second == speed


def test_steps_of_unequal_length_have_their_mean_speed() -> None:
    meter = Speedometer()
    for step, at in enumerate([1000.0, 1001.0, 1005.0]):
        meter.observe(step, at)
    assert meter.steps_per_second == 2 / 5


@pytest.mark.parametrize("step", [4, 10])
def test_a_rollback_gives_no_speed(step: int) -> None:
    meter = Speedometer()
    meter.observe(10, at=5.0)
    meter.observe(step, at=6.0)
    assert meter.steps_per_second is None


def test_a_stopped_clock_gives_no_speed() -> None:
    meter = Speedometer()
    meter.observe(1, at=5.0)
    meter.observe(2, at=5.0)
    assert meter.steps_per_second is None
