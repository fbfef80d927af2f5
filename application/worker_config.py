"""The configuration of the use cases, with defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from application.captions import SUFFIXES
from application.lease import LeaseTerms
from domain.image import MAX_IMAGE_BYTES, MIN_IMAGES


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """How a worker processes jobs."""

    min_images: int = MIN_IMAGES
    """Usable images below which a job fails with LOW_QUALITY_DATA."""
    checkpoint_every: int = 10
    """Epochs between checkpoints; the end of training is one always."""
    preview_share: float = 0.05
    """Part of the training's time that previews at checkpoints may take, after the first ones;
    0 draws none but those of the report."""
    max_previews: int = 20
    """Largest number of checkpoints of a job that get previews."""
    keep_checkpoints: int | None = 1
    """Checkpoints of a finished job that are kept with their styles, the latest ones, and the best
    epoch's beside them; 0 keeps none, None all."""
    progress_every: float = 30.0
    """Seconds between progress calls."""
    in_transit: float = 30.0
    """Seconds that the final call waits after a progress call that failed without being refused:
    it may still arrive."""
    cancel_poll: float = 5.0
    """Seconds between checks for a request to cancel."""
    max_failures: int = 5
    """Crashes and unexplained failures without a checkpoint in between, before giving up."""
    max_shared_failures: int = 2
    """Of a job that trains beside others; from then on it trains alone, so that a crash is its own
    doing and no other job's."""
    max_retries: int = 20
    """Retries of a message whose processing fails unexpectedly, before it is dead-lettered."""
    fetch_concurrency: int = 8
    """Images fetched at the same time."""
    max_image_bytes: int = MAX_IMAGE_BYTES
    """Of one image's file; a larger one is refused."""
    repeats_from_folders: bool = False
    """Whether an image in a folder named like ``10_style`` is trained on 10 times an epoch."""
    caption_suffixes: tuple[str, ...] = SUFFIXES
    """A caption has its image's name with one of these, looked for in this order."""
    upload_timeout: float = 600.0
    """Seconds for which the upload of a finished style is retried."""
    lease: LeaseTerms = field(default_factory=LeaseTerms)
