from __future__ import annotations

import pytest

from tests.application.world import KEYS, TASK_ID


def test_a_journal_key_gives_its_task_id() -> None:
    assert KEYS.recorded_task(KEYS.job(TASK_ID, "journal.json")) == TASK_ID
    assert KEYS.recorded_task(KEYS.job(TASK_ID, "lease.json")) is None


@pytest.mark.parametrize(
    "key",
    ["jobs/.DS_Store", "jobs/journal.json", "a/journal.json", "journal.json", "jobs/a/b.json"],
)
def test_other_keys_in_the_bucket_are_no_journals(key: str) -> None:
    at = KEYS.bucket.at(key)
    assert KEYS.recorded_task(at) is None
