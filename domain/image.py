"""The images of one job: usable ones, rejected ones with their reasons, and duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from domain.failure import Failure, FailureCode, TrainingFailed

MAX_IMAGE_BYTES = 10 * 1024 * 1024
MIN_SIDE_PIXELS = 256
MIN_IMAGES = 10
NEAR_DUPLICATE_BITS = 3
"""Images whose 64-bit perceptual hashes differ in at most this many bits are near duplicates."""


class ImageRejected(Exception):
    """The file is unusable for training; the text is the reason, for the artist."""


@dataclass(frozen=True)
class ImageFacts:
    """The facts found by inspecting one image file."""

    width: int
    """Pixels, after applying the EXIF orientation."""
    height: int
    sha256: str
    """Hash of the prepared pixels: the same for equal images in different file formats."""
    perceptual_hash: int
    """64 bits that barely change under rescaling and recompression."""
    notes: tuple[str, ...] = ()
    """Warnings for the artist about a usable file."""


@dataclass(frozen=True)
class PreparedImage:
    """An image prepared for training."""

    facts: ImageFacts
    data: bytes
    """A PNG file: upright, RGB in sRGB, scaled and cropped to its training size."""


@dataclass(frozen=True)
class TrainingImage:
    """One usable image, as passed to the trainer."""

    name: str
    data: bytes
    """A file that decodes to an upright RGB image."""
    facts: ImageFacts
    caption: str | None = None
    """The caption from the image's text file, if there is one."""
    repeats: int = 1
    """Number of times per epoch that the image is trained on."""
    generated_caption: str | None = None
    """The caption that a model made for an image without a caption."""


@dataclass(frozen=True)
class RejectedImage:
    """One file that is not used."""

    name: str
    reason: str
    times: int = 1
    """Number of entries of the task's list that it stands for."""


@dataclass(frozen=True)
class Duplicates:
    """A group of equal or nearly equal usable images."""

    names: tuple[str, ...]
    exact: bool
    """True if their pixels are equal, False if nearly equal."""


@dataclass(frozen=True)
class ImageSet:
    """The outcome of fetching and checking a job's images."""

    usable: tuple[TrainingImage, ...]
    rejected: tuple[RejectedImage, ...] = ()

    @property
    def duplicates(self) -> tuple[Duplicates, ...]:
        """Groups of equal or nearly equal usable images, which are all trained on."""
        groups = dict.fromkeys(duplicate_groups(self.usable))
        return tuple(
            Duplicates(
                tuple(self.usable[i].name for i in sorted(group)),
                exact=len({self.usable[i].facts.sha256 for i in group}) == 1,
            )
            for group in groups
            if len(group) > 1
        )

    def require(self, minimum: int) -> None:
        """Require enough usable images.

        Raises:
            TrainingFailed: LOW_QUALITY_DATA, with every rejected file and its reason.
        """
        if len(self.usable) >= minimum:
            return
        reasons = "; ".join(f"{image.name}: {image.reason}" for image in self.rejected)
        usable = len(self.usable)
        if reasons:
            total = usable + sum(image.times for image in self.rejected)
            message = (
                f"Only {usable} of {total} images can be used, and a style needs at least "
                f"{minimum}. Please replace or add images. Left out: {reasons}."
            )
        else:
            images = "one image" if usable == 1 else f"{usable} images"
            message = (
                f"A style needs at least {minimum} images, but got {images}. Please add more."
            )
        raise TrainingFailed(Failure(FailureCode.LOW_QUALITY_DATA, message))


def folder_repeats(key: str) -> int:
    """Number of times per epoch that an image is trained on, by the name of its folder.

    As in kohya's trainer: 10 for images in ``10_style``, 1 in folders without a number.
    """
    number, underscore, _ = key.rpartition("/")[0].rpartition("/")[2].partition("_")
    return int(number) if underscore and number.isascii() and number.isdigit() else 1


def duplicate_groups(images: Sequence[TrainingImage]) -> list[frozenset[int]]:
    """For each image, the positions of its group: itself and all near duplicates, including near
    duplicates of near duplicates.
    """
    groups = [frozenset({position}) for position in range(len(images))]
    for one, other in combinations(range(len(images)), 2):
        if groups[one] is not groups[other] and _near_duplicates(images[one], images[other]):
            union = groups[one] | groups[other]
            for position in union:
                groups[position] = union
    return groups


def _near_duplicates(first: TrainingImage, second: TrainingImage) -> bool:
    """Whether the images are equal or near duplicates, by their perceptual hashes."""
    distance = (first.facts.perceptual_hash ^ second.facts.perceptual_hash).bit_count()
    return distance <= NEAR_DUPLICATE_BITS
