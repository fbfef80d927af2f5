"""The object store of a campaign, S3 or Google Cloud Storage, for the campaign's own use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.services.gcs import Emulator, running_gcs
from tests.services.s3 import ACCESS_KEY, REGION, SECRET_KEY, Server, running_s3

IMAGES, MODELS = "images", "models"


class Store(Protocol):
    """The campaign's direct access to a store, not through its proxy."""

    @property
    def url(self) -> str:
        """Where the store listens."""

    @property
    def scheme(self) -> str:
        """``s3`` or ``gs``."""

    @property
    def distinguishes_workers(self) -> bool:
        """Whether requests identify their worker, so that a single one can be cut off."""

    def settings(self, url: str) -> dict[str, str]:
        """Settings of a worker that uses the store at ``url``."""

    def upload(self, image: Path) -> None:
        """Upload a file to the images."""

    def put(self, key: str, data: bytes) -> None:
        """Write a blob to the bucket of the weights."""

    def read(self, key: str) -> bytes:
        """A blob of the bucket of the weights; empty if there is none."""

    def names(self) -> list[str]:
        """All blobs in the bucket of the weights."""

    def weights_key(self, style_id: int, task_id: str) -> str:
        """Key of a finished style's single file."""


@dataclass(frozen=True)
class AmazonStore:
    """S3, simulated by moto."""

    server: Server
    scheme: str = "s3"
    distinguishes_workers: bool = True

    @property
    def url(self) -> str:
        return self.server.url

    def settings(self, url: str) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_S3_REGION_NAME": REGION,
            "S3_ENDPOINT_URL": url,
            "AWS_STORAGE_BUCKET_NAME": IMAGES,
            "MODEL_BUCKET_NAME": MODELS,
        }

    def upload(self, image: Path) -> None:
        self.server.client().upload_file(str(image), IMAGES, image.name)

    def put(self, key: str, data: bytes) -> None:
        self.server.client().put_object(Bucket=MODELS, Key=key, Body=data)

    def read(self, key: str) -> bytes:
        client = self.server.client()
        try:
            return client.get_object(Bucket=MODELS, Key=key)["Body"].read()
        except client.exceptions.NoSuchKey:
            return b""

    def names(self) -> list[str]:
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=MODELS)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def weights_key(self, style_id: int, task_id: str) -> str:
        return f"models/style_{style_id}.safetensors"


@dataclass(frozen=True)
class GoogleStore:
    """Google Cloud Storage, simulated by an emulator."""

    emulator: Emulator
    scheme: str = "gs"
    distinguishes_workers: bool = False

    @property
    def url(self) -> str:
        return self.emulator.url

    def settings(self, url: str) -> dict[str, str]:
        return {
            "STORAGE_EMULATOR_HOST": url,
            "GCS_BUCKET_NAME": IMAGES,
            "MODEL_BUCKET_NAME": f"gs://{MODELS}",
        }

    def upload(self, image: Path) -> None:
        self.emulator.client().bucket(IMAGES).blob(image.name).upload_from_filename(str(image))

    def put(self, key: str, data: bytes) -> None:
        self.emulator.client().bucket(MODELS).blob(key).upload_from_string(data)

    def read(self, key: str) -> bytes:
        blob = self.emulator.client().bucket(MODELS).get_blob(key)
        return b"" if blob is None else bytes(blob.download_as_bytes())

    def names(self) -> list[str]:
        return [blob.name for blob in self.emulator.client().list_blobs(MODELS)]

    def weights_key(self, style_id: int, task_id: str) -> str:
        return f"models/style-{style_id}/{task_id}/style_{style_id}.safetensors"


@contextmanager
def a_store(kind: str) -> Iterator[Store]:
    """A store with both buckets, empty; ``kind`` is ``s3`` or ``gcs``."""
    if kind == "gcs":
        with running_gcs(IMAGES, MODELS) as emulator:
            yield GoogleStore(emulator)
        return
    with running_s3(IMAGES, MODELS) as server:
        yield AmazonStore(server)
