from __future__ import annotations

import pytest

from domain.location import Location
from tests.application.world import LAYOUT, TASK_ID


def test_a_tasks_lease_and_journal_are_known_by_their_places() -> None:
    lease, journal = LAYOUT.lease(TASK_ID), LAYOUT.journal(TASK_ID)
    assert (LAYOUT.leased_task(lease), LAYOUT.recorded_task(lease)) == (TASK_ID, None)
    assert (LAYOUT.leased_task(journal), LAYOUT.recorded_task(journal)) == (None, TASK_ID)


@pytest.mark.parametrize(
    "key", ["jobs/.DS_Store", "jobs/lease.json", "a/lease.json", "lease.json", "jobs/a/b.json"]
)
def test_what_else_lies_in_the_bucket_is_no_tasks(key: str) -> None:
    at = Location(LAYOUT.bucket, key)
    assert (LAYOUT.leased_task(at), LAYOUT.recorded_task(at)) == (None, None)
    assert LAYOUT.leased_task(Location("other", LAYOUT.lease(TASK_ID).key)) is None
