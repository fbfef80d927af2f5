from __future__ import annotations

import pytest

from tests.application.world import KEYS, TASK_ID


def test_a_tasks_journal_is_known_by_its_place() -> None:
    assert KEYS.recorded_task(KEYS.journal(TASK_ID)) == TASK_ID
    assert KEYS.recorded_task(KEYS.lease(TASK_ID)) is None


@pytest.mark.parametrize(
    "key",
    ["jobs/.DS_Store", "jobs/journal.json", "a/journal.json", "journal.json", "jobs/a/b.json"],
)
def test_what_else_lies_in_the_bucket_is_no_tasks(key: str) -> None:
    at = KEYS.bucket.at(key)
    assert KEYS.recorded_task(at) is None
