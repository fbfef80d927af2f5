"""The images of one job: which serve, which were refused and why, which repeat another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from domain.failure import Failure, FailureCode, TrainingFailed

MAX_IMAGE_BYTES = 10 * 1024 * 1024
MIN_SIDE_PIXELS = 256
MIN_IMAGES = 10
NEAR_DUPLICATE_BITS = 3
"""Perceptual hashes of 64 bits that differ in at most this many are near duplicates."""


class ImageRefused(Exception):
    """A file that cannot be trained on; the text is the reason, for the artist."""


@dataclass(frozen=True)
class ImageFacts:
    """What an inspection found out about one file."""

    width: int
    """Pixels, after the EXIF orientation is applied."""
    height: int
    sha256: str
    """Of the pixels as they are trained on: equal images have it equal, whatever file holds
    them."""
    perceptual_hash: int
    """64 bits that barely change under rescaling and recompression."""
    notes: tuple[str, ...] = ()
    """What the artist should know of a file that is used all the same."""


@dataclass(frozen=True)
class PreparedImage:
    """An image that can be trained on."""

    facts: ImageFacts
    data: bytes
    """A PNG file: RGB, upright, in sRGB, scaled and cropped to the size it is trained at."""


@dataclass(frozen=True)
class TrainingImage:
    """One usable image, as the trainer gets it."""

    name: str
    data: bytes
    """A file that decodes to an upright RGB image."""
    facts: ImageFacts
    caption: str | None = None
    """The sidecar caption, where there is one."""
    repeats: int = 1
    """How often it is trained on in an epoch."""


@dataclass(frozen=True)
class RefusedImage:
    """One file that was left out."""

    name: str
    reason: str
    times: int = 1
    """How many entries of the task's list are left out with it."""


@dataclass(frozen=True)
class Duplicates:
    """Usable images that show the same thing."""

    names: tuple[str, ...]
    exact: bool
    """Whether their pixels are equal, and not only nearly so."""


@dataclass(frozen=True)
class ImageSet:
    """The outcome of fetching and checking a job's images."""

    usable: tuple[TrainingImage, ...]
    refused: tuple[RefusedImage, ...] = ()

    @property
    def duplicates(self) -> tuple[Duplicates, ...]:
        """Groups of usable images that are the same or nearly so; they train all the same."""
        groups = dict.fromkeys(groups_of_alike(self.usable))
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
            TrainingFailed: LOW_QUALITY_DATA, with every refused file and its reason.
        """
        if len(self.usable) >= minimum:
            return
        reasons = "; ".join(f"{image.name}: {image.reason}" for image in self.refused)
        usable = len(self.usable)
        if reasons:
            total = usable + sum(image.times for image in self.refused)
            message = (
                f"Only {usable} of {total} images can be used, and a style needs at least "
                f"{minimum}. Please replace or add images. Left out: {reasons}."
            )
        else:
            images = "one image" if usable == 1 else f"{usable} images"
            message = (
                f"A style needs at least {minimum} images, and got {images}. Please add more."
            )
        raise TrainingFailed(Failure(FailureCode.LOW_QUALITY_DATA, message))


def folder_repeats(key: str) -> int:
    """How often an image is trained on in an epoch, by the name of its folder.

    That is kohya's rule: those in ``10_style`` count tenfold, those in other folders once.
    """
    number, underscore, _ = key.rpartition("/")[0].rpartition("/")[2].partition("_")
    return int(number) if underscore and number.isascii() and number.isdigit() else 1


def groups_of_alike(images: Sequence[TrainingImage]) -> list[frozenset[int]]:
    """For each image the positions of those that show the same, directly or by way of others;
    its own is among them.
    """
    groups = [frozenset({position}) for position in range(len(images))]
    for one, other in combinations(range(len(images)), 2):
        if _alike(images[one], images[other]):
            union = groups[one] | groups[other]
            groups = [union if group & union else group for group in groups]
    return groups


def _alike(first: TrainingImage, second: TrainingImage) -> bool:
    """Whether they are the same image, whose hashes are equal, or nearly so."""
    distance = (first.facts.perceptual_hash ^ second.facts.perceptual_hash).bit_count()
    return distance <= NEAR_DUPLICATE_BITS
