"""Fetch a task's images and captions, and sort the images into usable and rejected."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import copy_context

from application.ports import (
    BlobDenied,
    BlobMissing,
    BlobStore,
    BlobTooLarge,
    ImageInspector,
)
from application.stop_signal import StopSignal
from application.worker_config import WorkerConfig
from domain.captions import MAX_CAPTION_BYTES, CaptionRejected, read_caption
from domain.image import ImageRejected, ImageSet, RejectedImage, TrainingImage, folder_repeats
from domain.location import InvalidLocation, Location

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Seconds between checks of ``stop`` while images are fetched."""

Fetched = TrainingImage | RejectedImage | BlobDenied


def fetch_images(
    images: tuple[Location, ...],
    resolution: int,
    blobs: BlobStore,
    inspector: ImageInspector,
    config: WorkerConfig,
    stop: StopSignal,
    *,
    quiet: bool = False,
) -> ImageSet:
    """Fetch and check all ``images`` in order; each is usable, or rejected with a reason.

    Repeated entries are rejected, so that a few images do not count as many.

    Args:
        resolution: training resolution, as the side of a square in pixels.
        quiet: log nothing, for a check before a job that fetches the images again.

    Raises:
        BlobDenied: access to all images is denied, so the configuration is wrong. A single denial
            is no proof: without the right to list, S3 returns "access denied" for missing keys
            too.
        Stopped: ``stop`` was set. Running fetches end in the background.
    """

    def fetch(image: Location) -> Fetched:
        stop.check()
        name = names[image]
        try:
            data = blobs.get(image, max_bytes=config.max_image_bytes).data
            prepared = inspector.inspect(data, resolution, stop)
        except BlobDenied as error:
            return error
        except BlobMissing:
            return RejectedImage(name, "the file is not there")
        except BlobTooLarge:
            limit = config.max_image_bytes // 1024**2
            return RejectedImage(name, f"the file is larger than {limit} MB")
        except ImageRejected as error:
            return RejectedImage(name, str(error))
        return TrainingImage(
            name,
            prepared.data,
            prepared.facts,
            _caption(blobs, image, config.caption_suffixes, quiet=quiet),
            folder_repeats(image.key) if config.repeats_from_folders else 1,
        )

    listed = Counter(images)
    names = {at: at.key if config.repeats_from_folders else at.name for at in listed}
    fetched = _each(fetch, tuple(listed), config.fetch_concurrency, stop)

    denials = [found for found in fetched if isinstance(found, BlobDenied)]
    if denials and len(denials) == len(fetched):
        raise denials[0]
    usable, rejected = [], []
    for image, found in zip(listed, fetched, strict=True):
        if isinstance(found, TrainingImage):
            usable.append(found)
            for note in () if quiet else found.facts.notes:
                log.warning("%s is used: %s", found.name, note)
            continue
        if isinstance(found, BlobDenied):
            if not quiet:
                log.warning("%s is left out: %s", names[image], found)
            found = RejectedImage(names[image], "the file is not there or may not be read")
        rejected.append(found)
    for image, times in listed.items():
        if times > 1:
            reason = f"it is listed {times} times, and counts once"
            rejected.append(RejectedImage(names[image], reason, times - 1))
    return ImageSet(tuple(usable), tuple(rejected))


def _each(
    fetch: Callable[[Location], Fetched],
    images: Sequence[Location],
    concurrency: int,
    stop: StopSignal,
) -> list[Fetched]:
    """Apply ``fetch`` to each image, ``concurrency`` at a time; return the results in order."""
    if concurrency == 1:
        return [fetch(image) for image in images]
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="fetch")
    try:
        # Each in a copy of the context, so that log lines carry the job's id.
        futures = [pool.submit(copy_context().run, fetch, image) for image in images]
        while True:
            done, pending = wait(futures, POLL_SECONDS, FIRST_EXCEPTION)
            stop.check()
            for future in done:
                future.result()
            if not pending:
                return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _caption(
    blobs: BlobStore, image: Location, suffixes: Sequence[str], *, quiet: bool
) -> str | None:
    for suffix in suffixes:
        try:
            at = image.with_suffix(suffix)
            text = read_caption(blobs.get(at, max_bytes=MAX_CAPTION_BYTES).data)
        except (BlobMissing, BlobDenied, InvalidLocation):  # InvalidLocation: key too long
            continue
        except BlobTooLarge:
            fault = f"it is larger than {MAX_CAPTION_BYTES // 1024} KB"
        except CaptionRejected as error:
            fault = str(error)
        else:
            return text or None
        if not quiet:
            log.warning("the caption %s is left out: %s", at.name, fault)
        return None
    return None
