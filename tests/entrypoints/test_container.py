"""What the container gives its parts, where it depends on the settings."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from adapters.s3.store import S3BlobStore
from entrypoints.container import open_container
from entrypoints.default_base import load_base_model
from entrypoints.devices import choose_devices
from entrypoints.exits import UsageError
from entrypoints.settings import Settings


def connections(jobs_together: str) -> int:
    """To the store, that a worker keeps."""
    settings = Settings(
        _env_file=None,
        s3_endpoint_url="http://127.0.0.1:9",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
        jobs_together=jobs_together,
    )
    with open_container(settings) as container:
        store = container.blobs()
        assert isinstance(store, S3BlobStore)
        return int(store._client.meta.config.max_pool_connections)


def test_jobs_in_hand_together_have_connections_to_the_store_of_their_own() -> None:
    assert connections("3") == 3 * connections("1")


def test_a_device_that_is_not_there_is_told_by_the_settings_name() -> None:
    with pytest.raises(UsageError, match=r"^DEVICE='cuda:99': "):
        choose_devices(Settings(_env_file=None, device="cuda:99"))


def test_a_base_model_that_is_none_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "base.ckpt").touch()
    with pytest.raises(UsageError, match=r"^base model '.*base\.ckpt': is a pickle"):
        load_base_model(Settings(_env_file=None, base_model=str(tmp_path / "base.ckpt")), "cpu")


def test_what_is_on_its_way_to_the_store_is_waited_for_while_somebody_watches_the_time() -> None:
    """Not by the interpreter's end, when the grace is no longer watched."""
    with open_container(Settings(_env_file=None)) as container:
        upload = container.uploads().submit(time.sleep, 0.2)
    assert upload.done()
