"""The pictures of one job: which serve, which were refused and why, which repeat another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from domain.failure import Failure, FailureCode, TrainingFailed

MAX_PICTURE_BYTES = 10 * 1024 * 1024
MIN_SIDE_PIXELS = 256
FEWEST_PICTURES = 10
NEAR_DUPLICATE_BITS = 3
"""Perceptual hashes of 64 bits that differ in at most this many are near duplicates."""


class PictureRefused(Exception):
    """A file that cannot be trained on; the text is the reason, for the artist."""


@dataclass(frozen=True)
class PictureFacts:
    """What an inspection found out about one file."""

    width: int
    """Pixels, after the EXIF orientation is applied."""
    height: int
    sha256: str
    """Of the decoded pixels: equal pictures have it equal, whatever file holds them."""
    perceptual_hash: int
    """64 bits that barely change under rescaling and recompression."""


@dataclass(frozen=True)
class Picture:
    """One usable picture, as the trainer gets it."""

    name: str
    data: bytes
    """The file as it was fetched."""
    facts: PictureFacts
    caption: str | None = None
    """The sidecar caption, where there is one."""


@dataclass(frozen=True)
class RefusedPicture:
    """One file that was left out."""

    name: str
    reason: str
    times: int = 1
    """How many entries of the task's list are left out with it."""


@dataclass(frozen=True)
class Duplicate:
    """Two usable pictures that show the same thing."""

    name: str
    of: str
    exact: bool


@dataclass(frozen=True)
class PictureSet:
    """The outcome of fetching and checking a job's pictures."""

    usable: tuple[Picture, ...]
    refused: tuple[RefusedPicture, ...] = ()

    @property
    def duplicates(self) -> tuple[Duplicate, ...]:
        """Pairs of usable pictures that are the same or nearly so; they train all the same."""
        found = []
        for first, second in combinations(self.usable, 2):
            if _alike(first, second):
                exact = first.facts.sha256 == second.facts.sha256
                found.append(Duplicate(second.name, first.name, exact))
        return tuple(found)

    def require(self, fewest: int) -> None:
        """Insist on enough usable pictures.

        Raises:
            TrainingFailed: LOW_QUALITY_DATA, with every refused file and its reason.
        """
        if len(self.usable) >= fewest:
            return
        reasons = "; ".join(f"{picture.name}: {picture.reason}" for picture in self.refused)
        usable = len(self.usable)
        if reasons:
            total = usable + sum(picture.times for picture in self.refused)
            message = (
                f"Only {usable} of {total} pictures can be used, and a style needs at least "
                f"{fewest}. Please replace or add pictures. Left out: {reasons}."
            )
        else:
            pictures = "one picture" if usable == 1 else f"{usable} pictures"
            message = (
                f"A style needs at least {fewest} pictures, and got {pictures}. Please add more."
            )
        raise TrainingFailed(Failure(FailureCode.LOW_QUALITY_DATA, message))


def groups_of_alike(pictures: Sequence[Picture]) -> list[frozenset[int]]:
    """For each picture the positions of those that show the same, directly or by way of others;
    its own is among them.
    """
    groups = [frozenset({position}) for position in range(len(pictures))]
    for one, other in combinations(range(len(pictures)), 2):
        if _alike(pictures[one], pictures[other]):
            union = groups[one] | groups[other]
            groups = [union if group & union else group for group in groups]
    return groups


def _alike(first: Picture, second: Picture) -> bool:
    """Whether they are the same picture, whose hashes are equal, or nearly so."""
    distance = (first.facts.perceptual_hash ^ second.facts.perceptual_hash).bit_count()
    return distance <= NEAR_DUPLICATE_BITS
