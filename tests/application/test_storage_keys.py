from __future__ import annotations

import pytest

from domain.location import Location
from tests.application.world import KEYS, TASK_ID


def test_a_tasks_lease_and_journal_are_known_by_their_places() -> None:
    lease, journal = KEYS.lease(TASK_ID), KEYS.journal(TASK_ID)
    assert (KEYS.leased_task(lease), KEYS.recorded_task(lease)) == (TASK_ID, None)
    assert (KEYS.leased_task(journal), KEYS.recorded_task(journal)) == (None, TASK_ID)


@pytest.mark.parametrize(
    "key", ["jobs/.DS_Store", "jobs/lease.json", "a/lease.json", "lease.json", "jobs/a/b.json"]
)
def test_what_else_lies_in_the_bucket_is_no_tasks(key: str) -> None:
    at = KEYS.bucket.at(key)
    assert (KEYS.leased_task(at), KEYS.recorded_task(at)) == (None, None)
    assert KEYS.leased_task(Location("other", KEYS.lease(TASK_ID).key)) is None
