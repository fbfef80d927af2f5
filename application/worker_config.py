"""The configuration of the use cases, with defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from application.lease import LeaseTerms
from domain.captions import SUFFIXES
from domain.image import MAX_IMAGE_BYTES, MIN_IMAGES


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """How a worker processes jobs."""

    min_images: int = MIN_IMAGES
    """Jobs with fewer usable images fail with LOW_QUALITY_DATA."""
    checkpoint_every: int = 10
    """Epochs between checkpoints; the end of training always has one."""
    preview_share: float = 0.05
    """Share of training time for previews at checkpoints. The first round ignores it; 0 draws
    none."""
    max_preview_rounds: int = 20
    """Maximum number of checkpoints that get previews, in one run of the training loop."""
    keep_checkpoints: int | None = 1
    """Number of latest checkpoints kept of a finished job, with their styles, in addition to the
    best epoch's; 0 keeps none, None all."""
    progress_every: float = 30.0
    """Seconds between progress calls."""
    in_flight_seconds: float = 30.0
    """Seconds between a progress call with an unknown result, which may still arrive, and the
    outcome webhook."""
    cancel_poll: float = 5.0
    """Seconds between checks for a request to cancel."""
    max_failures: int = 5
    """Crashes and retryable failures since the last checkpoint after which the job fails."""
    max_shared_failures: int = 2
    """Failures after which a job trains without other jobs beside it, so that another job cannot
    be the cause of its crash."""
    max_retries: int = 20
    """Retries after denied access or unexpected errors before a message is dead-lettered."""
    fetch_concurrency: int = 8
    """Number of images fetched at the same time."""
    max_image_bytes: int = MAX_IMAGE_BYTES
    """Largest accepted image file."""
    repeats_from_folders: bool = False
    """Whether images in a folder named like ``10_style`` are trained on 10 times per epoch."""
    weights_in_folder: bool = False
    """Whether finished weights are stored as a PEFT folder that also holds the single file."""
    caption_suffixes: tuple[str, ...] = SUFFIXES
    """Suffixes of caption files, tried in this order after the image's base name."""
    keep_style_words: bool = False
    """Whether generated captions keep words for the medium, such as "a painting of"."""

    lease: LeaseTerms = field(default_factory=LeaseTerms)
