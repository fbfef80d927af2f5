"""Caption a job's images that have no caption, the same way in every attempt of the job."""

from __future__ import annotations

import logging
from dataclasses import replace

from application.job_store import JobStore
from application.ports import Captioner
from application.stop_signal import StopSignal
from domain.captions import without_style_words
from domain.image import ImageSet, TrainingImage

log = logging.getLogger(__name__)


def caption_images(
    images: ImageSet,
    task_id: str,
    store: JobStore,
    captioner: Captioner | None,
    keep_style_words: bool,
    stop: StopSignal,
) -> ImageSet:
    """Return the images, with ``generated_caption`` where an image has no caption of its own.

    The job's stored captions are used if there are any; otherwise ``captioner`` makes them, and
    they are stored. Raises as ``Captioner.describe`` and ``JobStore.captions``.
    """
    without = [image for image in images.usable if image.caption is None]
    if not without:
        return images
    made = store.captions(task_id)
    if made is None and captioner is not None:
        made = store.add_captions(
            task_id, make_captions(without, captioner, keep_style_words, stop)
        )
    if not made:
        return images
    usable = [
        image
        if image.caption is not None
        else replace(image, generated_caption=made.get(image.facts.sha256) or None)
        for image in images.usable
    ]
    return replace(images, usable=tuple(usable))


def make_captions(
    images: list[TrainingImage], captioner: Captioner, keep_style_words: bool, stop: StopSignal
) -> dict[str, str]:
    """Make a caption for each image, and return them by the images' hashes. Raises as
    ``Captioner.describe``.
    """
    made = {}
    described = captioner.describe([image.data for image in images], stop)
    for image, text in zip(images, described, strict=True):
        caption = " ".join(text.split())
        made[image.facts.sha256] = caption if keep_style_words else without_style_words(caption)
        log.info("%s: generated caption: %s", image.name, made[image.facts.sha256])
    return made
