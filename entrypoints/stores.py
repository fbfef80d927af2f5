"""Open the configured stores: folders, or S3 and Google Cloud Storage together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.filesystem import FileBlobStore
from adapters.routing import BlobStoreByScheme
from application.ports import BlobStore
from domain.errors import UserError

if TYPE_CHECKING:
    from adapters.clock import SystemClock
    from entrypoints.settings import Settings

SPARE_CONNECTIONS = 4
"""Connections per job in addition to those that fetch images: lease, cancellation, journal,
checkpoint."""


def open_blobs(
    settings: Settings, clock: SystemClock, *, slots: int = 1, supplies: bool = False
) -> BlobStore:
    """Open the blob store. Object stores are opened lazily, at their first use. Raises
    ``UserError`` if the library of one is missing.

    Args:
        slots: number of jobs processed at the same time.
        supplies: also allow writes to the images' bucket, for submitting a folder.
    """
    if not settings.has_object_store:
        return FileBlobStore(bucket_folders(settings, supplies=supplies))
    if "gs" in settings.schemes:
        _require_gcs_library()
    own = {settings.models, settings.state}
    if supplies:
        own.add(settings.images)
    openers: dict[str, Callable[..., BlobStore]] = {"s3": _open_s3, "gs": _open_gcs}
    stores = {
        scheme: partial(
            openers[scheme],
            settings,
            clock,
            readable={b.name for b in settings.image_buckets if b.scheme == scheme},
            writable={bucket.name for bucket in own if bucket.scheme == scheme},
            connections=slots * (settings.fetch_concurrency + SPARE_CONNECTIONS),
        )
        for scheme in settings.schemes
    }
    return BlobStoreByScheme(stores)


def _require_gcs_library() -> None:
    try:
        import adapters.gcs.store  # noqa: F401 - only to see whether it can be imported
    except ModuleNotFoundError as error:
        raise UserError(
            f"gs:// needs a library that is not installed ({error.name}): "
            "run pip install 'style-trainer[gcs]'"
        ) from None


def bucket_folders(settings: Settings, *, supplies: bool = False) -> dict[str, Path]:
    """The folders used as buckets, by bucket name; ``supplies`` as in ``open_blobs``."""
    buckets = {settings.models, settings.state, *settings.image_buckets}
    if supplies:
        buckets.add(settings.images)
    return {bucket.name: settings.storage_folder / bucket.name for bucket in buckets}


def _open_s3(
    settings: Settings,
    clock: SystemClock,
    *,
    readable: set[str],
    writable: set[str],
    connections: int,
) -> BlobStore:
    from adapters.s3.options import S3Options
    from adapters.s3.store import S3BlobStore

    options = S3Options(
        endpoint_url=settings.s3_endpoint_url,
        addressing_style=settings.s3_addressing_style,
        max_pool_connections=connections,
        **settings.aws_options(),
    )
    return S3BlobStore(options, readable=readable, writable=writable, sleep=clock.sleep)


def _open_gcs(
    settings: Settings,
    clock: SystemClock,
    *,
    readable: set[str],
    writable: set[str],
    connections: int,
) -> BlobStore:
    from adapters.gcs.options import GcsOptions
    from adapters.gcs.store import GcsBlobStore

    options = GcsOptions(
        project=settings.gcs_project_id,
        credentials_file=settings.google_application_credentials,
        emulator_url=settings.storage_emulator_host,
        max_pool_connections=connections,
    )
    return GcsBlobStore(options, readable=readable, writable=writable, sleep=clock.sleep)
