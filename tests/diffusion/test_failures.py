"""What is done about a lack of memory, and about nothing else."""

from __future__ import annotations

import pytest
import torch

from adapters.diffusion.failures import in_parts, with_room
from domain.failure import FailureCode, TrainingFailed

FULL = torch.OutOfMemoryError("CUDA out of memory")
DEFECT = RuntimeError("shapes cannot be multiplied")


def after(*errors: Exception) -> tuple[list[str], str]:
    """What is done, and what comes of it, where an action fails with these before it succeeds."""
    done: list[str] = []
    left = list(errors)

    def action() -> str:
        done.append("action")
        if left:
            raise left.pop(0)
        return "answer"

    try:
        return done, with_room(action, lambda: done.append("room"))
    except Exception as error:
        return done, error.failure.code if isinstance(error, TrainingFailed) else str(error)


def test_room_is_made_once_and_for_want_of_memory_only() -> None:
    assert after() == (["action"], "answer")
    assert after(FULL) == (["action", "room", "action"], "answer")
    assert after(FULL, FULL) == (["action", "room", "action"], FailureCode.GPU_OOM)
    assert after(DEFECT) == (["action"], str(DEFECT))
    assert after(FULL, DEFECT) == (["action", "room", "action"], str(DEFECT))


def halves(whole: str) -> list[str]:
    middle = len(whole) // 2
    return [half for half in (whole[:middle], whole[middle:]) if half]


@pytest.mark.parametrize(
    ("most", "answers"), [(9, ["ABCDE"]), (3, ["AB", "CDE"]), (1, [*"ABCDE"])]
)
def test_the_whole_is_done_in_as_few_parts_as_fit(most: int, answers: list[str]) -> None:
    def action(part: str) -> str:
        if len(part) > most:
            raise FULL
        return part.upper()

    assert in_parts(action, "abcde", halves) == answers


@pytest.mark.parametrize(("error", "tried"), [(FULL, ["abcd", "ab", "a"]), (DEFECT, ["abcd"])])
def test_what_does_not_fit_in_parts_either_or_is_a_defect_is_raised(
    error: Exception, tried: list[str]
) -> None:
    seen = []

    def action(part: str) -> None:
        seen.append(part)
        raise error

    with pytest.raises(type(error), match=str(error)):
        in_parts(action, "abcd", halves)
    assert seen == tried
