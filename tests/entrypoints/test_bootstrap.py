"""How the container configures its parts from the settings."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from dependency_injector import providers

from adapters.diffusion.base.names import BaseModelInvalid
from adapters.logs.job_log import JobLog
from adapters.memory import ManualClock, MemoryBlobStore, MemoryTrainer
from adapters.metrics.calls import MeteredBlobStore, MeteredNotifier, MeteredQueue
from adapters.schemas.task import encode_task
from application.lease import LeaseLost
from application.ports import BlobDenied
from application.settlement import Requeue
from domain.errors import UserError
from domain.job import TrainingJob
from domain.location import Location
from domain.task import InvalidTask, TrainingTask
from entrypoints.bootstrap import Container, open_container
from entrypoints.check import require_fit_store
from entrypoints.connections import queue_place
from entrypoints.devices import choose_devices
from entrypoints.models import load_base_model
from tests.application.world import TASK_ID, a_task, received, settled
from tests.services.settings import make_settings


def connections(jobs_together: str) -> int:
    """Maximum number of store connections of a worker."""
    settings = make_settings(
        s3_endpoint_url="http://127.0.0.1:9",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
        jobs_together=jobs_together,
    )
    with (
        patch("adapters.s3.store.connect", side_effect=ValueError) as connect,
        open_container(settings) as container,
        pytest.raises(BlobDenied),
    ):
        container.plain_blobs().get(settings.models.at("key"))
    (options,) = connect.call_args.args
    return int(options.max_pool_connections)


def test_concurrent_jobs_have_their_own_store_connections() -> None:
    assert connections("3") == 3 * connections("1")


def test_a_missing_device_is_reported_with_the_settings_name() -> None:
    with pytest.raises(UserError, match=r"^DEVICE='cuda:99': "):
        choose_devices(make_settings(device="cuda:99"))


def test_an_invalid_base_model_is_reported(tmp_path: Path) -> None:
    (tmp_path / "base.ckpt").touch()
    with pytest.raises(BaseModelInvalid, match=r"^base model '.*base\.ckpt': is a pickle"):
        load_base_model(make_settings(base_model=str(tmp_path / "base.ckpt")), "cpu")


def test_folders_stand_for_the_buckets_that_images_may_come_from(tmp_path: Path) -> None:
    settings = make_settings(storage_dir=tmp_path, allowed_image_buckets="a,b")
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"1")
    with open_container(settings) as container:
        blobs = container.blobs()
        assert [blobs.get(Location(name, "1.png")).data for name in "ab"] == [b"1", b"1"]
        with pytest.raises(BlobDenied, match=r"'c'.*ALLOWED_IMAGE_BUCKETS"):
            blobs.get(Location("c", "1.png"))


def test_images_come_from_the_bucket_of_models_only_where_that_is_allowed() -> None:
    bucket = "stylelicense-models"
    task = TrainingTask(
        task_id="550e8400-e29b-41d4-a716-446655440000",
        style_id=9,
        images=(Location(bucket, "jobs/1/report/previews.png"),),
    )
    with open_container(make_settings()) as container:
        with pytest.raises(InvalidTask, match=r"data\.images\.0 is .*give images from ") as caught:
            container.parse_task()(encode_task(task))
        assert (caught.value.style_id, caught.value.task_id) == (9, task.task_id)
    allowed = make_settings(allowed_image_buckets=bucket)
    with open_container(allowed) as container:
        assert container.parse_task()(encode_task(task)).images == task.images


@pytest.mark.parametrize("name", ["train_text_encoder", "use_dora"])
def test_a_lora_that_readers_of_a_folder_cannot_load_is_rejected(name: str) -> None:
    body = encode_task(a_task(**{name: True}))
    folder = make_settings(weights_form="folder")
    with open_container(folder) as container:
        with pytest.raises(InvalidTask, match=rf"parameters\.{name} .*WEIGHTS_FORM") as caught:
            container.parse_task()(body)
        assert caught.value.task_id == TASK_ID
    with open_container(make_settings()) as container:
        container.parse_task()(body)


@pytest.mark.parametrize(
    ("named", "place"),
    [
        ({"spool_dir": "in"}, "the folder in"),
        ({"rabbitmq_host": "h", "rabbitmq_ssl": True}, "model_training at h:5671"),
        ({"rabbitmq_url": "amqp://u:secret@h", "rabbitmq_queue": "q"}, "q at h:5672"),
    ],
)
def test_the_task_source_is_logged_without_credentials(named: dict[str, Any], place: str) -> None:
    assert queue_place(make_settings(**named)) == place


def test_pending_uploads_are_awaited_under_a_deadline() -> None:
    """At interpreter exit, the shutdown timeout would no longer be enforced."""
    with open_container(make_settings()) as container:
        upload = container.uploads().submit(time.sleep, 0.2)
    assert upload.done()


def test_idle_seconds_are_those_of_the_setting() -> None:
    with open_container(make_settings(idle_seconds="60")) as container:
        container.trainer.override(providers.Object(MemoryTrainer(ManualClock())))
        assert container.worker_loop().idle_seconds == 60


@pytest.fixture
def namesakes() -> Iterator[list[Container]]:
    """Two workers with one WORKER_NAME and one store."""
    settings, blobs = make_settings(worker_name="pool"), MemoryBlobStore()
    with open_container(settings) as first, open_container(settings) as second:
        for worker in (first, second):
            worker.plain_blobs.override(providers.Object(blobs))
        yield [first, second]


def test_workers_of_one_name_test_the_store_independently(
    namesakes: list[Container], caplog: pytest.LogCaptureFixture
) -> None:
    class Interrupted(MemoryBlobStore):
        """Lets the second worker test it in the middle of the first one's test."""

        def put(self, at: Location, data: bytes, **how: Any) -> str:
            etag = super().put(at, data, **how)
            if namesakes:
                require_fit_store(namesakes.pop())
            return etag

    blobs, first = Interrupted(), namesakes[0]
    for worker in namesakes:
        worker.plain_blobs.override(providers.Object(blobs))
    del namesakes[0]
    require_fit_store(first)
    assert caplog.text == ""
    assert blobs.blobs == {}


def test_a_superseded_worker_does_not_take_its_namesakes_record_for_its_own(
    namesakes: list[Container],
) -> None:
    fresh = TrainingJob(task_id=TASK_ID, style_id=7)
    first, second = [worker.store().open(fresh) for worker in namesakes]
    first.apply(fresh.start())
    with pytest.raises(LeaseLost):
        second.apply(fresh.start())


PARTS = ("blobs", "notifier", "trainer", "store", "worker_pool")


@pytest.mark.parametrize("order", list(permutations(PARTS)), ids="-".join)
def test_every_part_is_measured_in_any_order_of_construction(order: tuple[str, ...]) -> None:
    with open_container(make_settings()) as container:
        container.plain_blobs.override(providers.Object(MemoryBlobStore()))
        container.trainer.override(providers.Object(MemoryTrainer(ManualClock())))
        parts = {name: getattr(container, name)() for name in order}
        (loop,) = parts["worker_pool"].loops
        run, events = loop.run, loop.events
        assert isinstance(loop.queue, MeteredQueue)
        assert isinstance(parts["blobs"], MeteredBlobStore)
        assert run.store is loop.reject.store is parts["store"]
        assert run.store.blobs is parts["blobs"]
        assert run.store.events is events
        assert run.trainer is parts["trainer"]
        assert isinstance(run.notify_outcome.notifier, MeteredNotifier)
        assert run.notify_outcome.notifier is run.loop.notifier is parts["notifier"]
        parts["blobs"].put(Location("models", "a"), b"12345")
        written = container.metrics().registry.get_sample_value(
            "style_trainer_storage_written_bytes_total"
        )
        assert written == 5


def test_job_events_reach_metrics_status_page_and_log() -> None:
    with open_container(make_settings()) as container:
        blobs = MemoryBlobStore()
        container.plain_blobs.override(providers.Object(blobs))
        container.events()(received(a_task()))
        assert container.metrics().registry.get_sample_value("style_trainer_active_jobs") == 1
        assert container.worker_state().snapshot()["job"]["task_id"] == TASK_ID
        container.store().open(TrainingJob(task_id=TASK_ID, style_id=7)).apply_unsaved(
            TrainingJob(task_id=TASK_ID, style_id=7).start()
        )
        logging.getLogger("tests").warning("a line")
        container.events()(settled(a_task(), Requeue()))
        assert any("/logs/" in at.key for at in blobs.blobs)
    assert not any(isinstance(handler, JobLog) for handler in logging.getLogger().handlers)
