import time

import pytest

from domain.failure import FailureCode, TrainingFailed
from domain.image import (
    Duplicates,
    ImageFacts,
    ImageSet,
    RejectedImage,
    TrainingImage,
    duplicate_groups,
    folder_repeats,
)


def image(name: str, sha256: str, perceptual_hash: int) -> TrainingImage:
    return TrainingImage(name, b"", ImageFacts(512, 512, sha256, perceptual_hash))


def test_duplicates_are_exact_or_near() -> None:
    images = ImageSet(
        (
            image("a", "1", 0b0000_0000),
            image("b", "1", 0b0000_0000),
            image("c", "2", 0b0000_0111),
            image("d", "3", 0xFFFF_0000_0000),
            image("e", "4", 0xFFFF_0000),
            image("f", "4", 0xFFFF_0000),
        )
    )
    assert images.duplicates == (
        Duplicates(("a", "b", "c"), exact=False),
        Duplicates(("e", "f"), exact=True),
    )


def test_near_duplicates_are_grouped_transitively() -> None:
    images = (
        image("a", "1", 0b00_0111),
        image("b", "2", 0xFFFF_0000_0000),
        image("c", "3", 0b11_1111),
        image("d", "4", 0b00_0000),
    )
    alike = frozenset({0, 2, 3})
    assert duplicate_groups(images) == [alike, frozenset({1}), alike, alike]


def test_many_near_duplicates_are_grouped_quickly() -> None:
    images = tuple(image(str(n), str(n), n % 8) for n in range(200))
    began = time.process_time()
    groups = duplicate_groups(images)
    assert time.process_time() - began < 2.0
    assert set(groups) == {frozenset(range(200))}


def test_too_few_images_fail_with_every_rejection_in_the_message() -> None:
    images = ImageSet(
        tuple(image(str(n), str(n), n << 32) for n in range(9)),
        (RejectedImage("cat.gif", "GIF is not supported"),),
    )
    with pytest.raises(TrainingFailed) as caught:
        images.require(10)
    failure = caught.value.failure
    assert failure.code is FailureCode.LOW_QUALITY_DATA
    assert not failure.retryable
    assert "Only 9 of 10 images" in failure.message
    assert "cat.gif: GIF is not supported" in failure.message


def test_every_entry_of_a_list_counts_in_the_message() -> None:
    images = ImageSet(
        (image("a.jpg", "1", 0),), (RejectedImage("a.jpg", "it is listed 10 times", times=9),)
    )
    with pytest.raises(TrainingFailed, match="Only 1 of 10 images"):
        images.require(10)


def test_too_few_good_images_are_not_reported_as_unusable() -> None:
    images = ImageSet(tuple(image(str(n), str(n), n << 32) for n in range(9)))
    with pytest.raises(TrainingFailed, match="at least 10 images, but got 9 images") as caught:
        images.require(10)
    assert "can be used" not in caught.value.failure.message


def test_enough_images_pass() -> None:
    ImageSet(tuple(image(str(n), str(n), n) for n in range(10))).require(10)


def test_no_images_at_all_fail_without_an_empty_list_of_rejections() -> None:
    with pytest.raises(TrainingFailed) as caught:
        ImageSet(()).require(1)
    assert "Left out" not in caught.value.failure.message


@pytest.mark.parametrize(
    ("key", "repeats"),
    [
        ("10_cats/1.png", 10),
        ("training/3_my_style/1.png", 3),
        ("10_cats/more/1.png", 1),
        ("cats/10_1.png", 1),
        ("10/1.png", 1),
        ("1.png", 1),
    ],
)
def test_a_kohya_folder_name_sets_the_repeats(key: str, repeats: int) -> None:
    assert folder_repeats(key) == repeats
