"""The benchmark of the service's own cost, and the calls that a job needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from application.settlement import Ack
from application.stop_signal import StopSignal
from benchmarks.service.counting_store import CountingBlobStore, kind
from benchmarks.service.rates import shares, together
from benchmarks.service.tables import service_tables
from tests.application.world import CONFIG, KEYS, TASK_ID, World, a_task

IMAGES = 10
CHECKPOINTS = 3


def test_a_new_job_makes_no_call_that_neither_safety_nor_its_results_need() -> None:
    """Each additional call costs every job a round trip to the store."""
    world = World()
    store = CountingBlobStore(world.blobs)
    config = replace(CONFIG, cancel_poll=1e6, progress_every=1e6, preview_share=0.0)
    config = replace(config, lease=replace(config.lease, seconds=1e6))
    assert world.worker(blobs=store, config=config)(a_task(IMAGES), StopSignal()) == Ack()
    assert store.calls == Counter(
        {
            "read journal": 2,  # before and under the lease
            "write request": 1,
            "write lease": 1,
            "read cancellation": 1,
            "read image": IMAGES,
            "read caption": 2 * IMAGES,  # .txt and .TXT, which are not there
            "write checkpoint": CHECKPOINTS,
            "write style of a checkpoint": CHECKPOINTS,
            # Preparing, training, checkpoints but the last, trained, stored, announcing, done.
            "write journal": 6 + CHECKPOINTS - 1,
            "write weights": 1,
            "list preview": 1,
            "write report": 1,
            "delete lease": 1,
            "list files of the job": 1,
            "delete checkpoint": CHECKPOINTS - 1,
            "delete style of a checkpoint": CHECKPOINTS - 1,
        }
    )


def test_each_blob_is_counted_by_what_it_is_for() -> None:
    assert kind(KEYS.job(TASK_ID, "journal.json").key) == "journal"
    assert kind(KEYS.report(TASK_ID, "previews/epoch_00010_1.png").key) == "preview"
    assert kind(KEYS.report(TASK_ID, "report.html").key) == "report"
    assert kind(KEYS.weights(7).key) == "weights"
    assert kind("training/1/image_1.jpg") == "image"


def test_the_speed_is_that_of_the_time_in_which_all_processes_work() -> None:
    assert shares(10, 4) == [3, 3, 2, 2]
    early = [float(second) for second in range(1, 11)]
    late = [second + 4 for second in early]
    # Both work from 6 s on, the first until 10 s: 4 tasks each.
    assert together([early, late]) == 2.0
    # The second begins after the first has ended: 19 tasks after the first one, in 109 s.
    assert together([early, [second + 100 for second in early]]) == 19 / 109


def test_the_table_shows_both_speeds_and_the_calls() -> None:
    row = {"store": "folders", "backlog": 100, "workers": 4, "tasks": 100}
    results = {
        "date": "2026-11-30", "cores": 2, "versions": {"pika": "1.4"}, "images": 10, "epochs": 20,
        "rows": [{**row, "tasks_per_s": 12.5, "bare_messages_per_s": 900}],
        "calls": {"read journal": 2, "write lease": 1},
    }  # fmt: skip
    table = service_tables(results)
    assert "| folders | 100 | 4 | 12.5 | 900 |" in table
    assert "| all | 3 |" in table
