"""Fetch a task's pictures and their captions, and sort the usable from the refused."""

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
    PictureInspector,
)
from application.stop import StopSignal
from domain.location import InvalidLocation, Location
from domain.picture import MAX_PICTURE_BYTES, Picture, PictureRefused, PictureSet, RefusedPicture

log = logging.getLogger(__name__)

MAX_CAPTION_BYTES = 16 * 1024


class PicturesDenied(BlobDenied):
    """Not one of a task's pictures may be read: its own matter, and no other task's."""


def gather_pictures(
    images: tuple[Location, ...],
    blobs: BlobStore,
    inspector: PictureInspector,
    stop: StopSignal,
    concurrency: int,
    *,
    quiet: bool = False,
) -> PictureSet:
    """Every picture of ``images``, in that order, usable or refused with its reason.

    One that is listed several times is used once, and the rest refused: else a few pictures
    would pass for many.

    Args:
        quiet: log nothing, for a look ahead of a job that will gather them again.

    Raises:
        PicturesDenied: not one could be read, and access was denied: the set-up is wrong, not
            the pictures. A single denial is no proof: S3 denies what is missing to those who
            may not list.
        Stopped: the work should end.
    """

    def fetch(image: Location) -> Picture | RefusedPicture | BlobDenied:
        stop.check()
        try:
            data = blobs.get(image, max_bytes=MAX_PICTURE_BYTES).data
            facts = inspector.inspect(data)
        except BlobDenied as error:
            return error
        except BlobMissing:
            return RefusedPicture(image.name, "the file is not there")
        except BlobTooLarge:
            limit = MAX_PICTURE_BYTES // 1024**2
            return RefusedPicture(image.name, f"the file is larger than {limit} MB")
        except PictureRefused as error:
            return RefusedPicture(image.name, str(error))
        return Picture(image.name, data, facts, _caption(blobs, image, quiet=quiet))

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
    if denials and not any(isinstance(found, Picture) for found in fetched):
        raise PicturesDenied(str(denials[0]))
    usable, refused = [], []
    for image, found in zip(images, fetched, strict=True):
        if isinstance(found, Picture):
            usable.append(found)
            continue
        if isinstance(found, BlobDenied):
            if not quiet:
                log.warning("%s: %s", image.name, found)
            found = RefusedPicture(image.name, "the file is not there or may not be read")
        refused.append(found)
    for image, times in listed.items():
        if times > 1:
            reason = f"it is listed {times} times, and counts once"
            refused.append(RefusedPicture(image.name, reason, times - 1))
    return PictureSet(tuple(usable), tuple(refused))


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
