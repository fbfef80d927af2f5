"""Fetch a task's images and their captions, and sort the usable from the refused."""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from application.ports import (
    BlobDenied,
    BlobMissing,
    BlobStore,
    BlobTooLarge,
    ImageInspector,
)
from application.stop_signal import StopSignal
from domain.image import MAX_IMAGE_BYTES, ImageRefused, ImageSet, RefusedImage, TrainingImage
from domain.location import InvalidLocation, Location

log = logging.getLogger(__name__)

MAX_CAPTION_BYTES = 16 * 1024


class ImagesDenied(BlobDenied):
    """Not one of a task's images may be read: its own matter, and no other task's."""


def fetch_images(
    images: tuple[Location, ...],
    blobs: BlobStore,
    inspector: ImageInspector,
    stop: StopSignal,
    concurrency: int,
    *,
    quiet: bool = False,
) -> ImageSet:
    """Every image of ``images``, in that order, usable or refused with its reason.

    One that is listed several times is used once, and the rest refused: else a few images
    would pass for many.

    Args:
        quiet: log nothing, for a look ahead of a job that will gather them again.

    Raises:
        ImagesDenied: not one could be read, and access was denied: the set-up is wrong, not
            the images. A single denial is no proof: S3 denies what is missing to those who
            may not list.
        Stopped: the work should end.
    """

    def fetch(image: Location) -> TrainingImage | RefusedImage | BlobDenied:
        stop.check()
        try:
            data = blobs.get(image, max_bytes=MAX_IMAGE_BYTES).data
            facts = inspector.inspect(data)
        except BlobDenied as error:
            return error
        except BlobMissing:
            return RefusedImage(image.name, "the file is not there")
        except BlobTooLarge:
            limit = MAX_IMAGE_BYTES // 1024**2
            return RefusedImage(image.name, f"the file is larger than {limit} MB")
        except ImageRefused as error:
            return RefusedImage(image.name, str(error))
        return TrainingImage(image.name, data, facts, _caption(blobs, image, quiet=quiet))

    listed = Counter(images)
    images = tuple(listed)
    if concurrency == 1:
        fetched = [fetch(image) for image in images]
    else:
        with ThreadPoolExecutor(concurrency, thread_name_prefix="fetch") as pool:
            # Each in a copy of our context, by which a log line knows its job.
            contexts = [copy_context() for _ in images]
            fetched = list(pool.map(lambda own, at: own.run(fetch, at), contexts, images))

    denials = [found for found in fetched if isinstance(found, BlobDenied)]
    if denials and not any(isinstance(found, TrainingImage) for found in fetched):
        raise ImagesDenied(str(denials[0]))
    usable, refused = [], []
    for image, found in zip(images, fetched, strict=True):
        if isinstance(found, TrainingImage):
            usable.append(found)
            continue
        if isinstance(found, BlobDenied):
            if not quiet:
                log.warning("%s: %s", image.name, found)
            found = RefusedImage(image.name, "the file is not there or may not be read")
        refused.append(found)
    for image, times in listed.items():
        if times > 1:
            reason = f"it is listed {times} times, and counts once"
            refused.append(RefusedImage(image.name, reason, times - 1))
    return ImageSet(tuple(usable), tuple(refused))


def _caption(blobs: BlobStore, image: Location, *, quiet: bool) -> str | None:
    try:
        at = image.with_suffix(".txt")
        text = blobs.get(at, max_bytes=MAX_CAPTION_BYTES).data.decode("utf-8-sig")
    except (BlobMissing, BlobDenied, InvalidLocation):  # too long a key names no blob
        return None
    except BlobTooLarge:
        fault = f"it is larger than {MAX_CAPTION_BYTES // 1024} KB"
    except UnicodeDecodeError:
        fault = "it is not UTF-8; save it as UTF-8"
    else:
        return " ".join(text.split()) or None
    if not quiet:
        log.warning("the caption %s is left out: %s", at.name, fault)
    return None
