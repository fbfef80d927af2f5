import pytest

from domain.failure import FailureCode, TrainingFailed
from domain.picture import (
    Duplicate,
    Picture,
    PictureFacts,
    PictureSet,
    RefusedPicture,
    groups_of_alike,
)


def picture(name: str, sha256: str, perceptual_hash: int) -> Picture:
    return Picture(name, b"", PictureFacts(512, 512, sha256, perceptual_hash))


def test_duplicates_are_exact_or_near() -> None:
    pictures = PictureSet(
        (
            picture("a", "1", 0b0000_0000),
            picture("b", "1", 0b0000_0000),
            picture("c", "2", 0b0000_0111),
            picture("d", "3", 0xFFFF_0000_0000),
        )
    )
    assert pictures.duplicates == (
        Duplicate("b", "a", exact=True),
        Duplicate("c", "a", exact=False),
        Duplicate("c", "b", exact=False),
    )


def test_pictures_that_are_alike_by_way_of_another_are_one_group() -> None:
    pictures = (
        picture("a", "1", 0b00_0111),
        picture("b", "2", 0xFFFF_0000_0000),
        picture("c", "3", 0b11_1111),
        picture("d", "4", 0b00_0000),
    )
    alike = frozenset({0, 2, 3})
    assert groups_of_alike(pictures) == [alike, frozenset({1}), alike, alike]


def test_too_few_pictures_fail_with_every_refusal_in_the_message() -> None:
    pictures = PictureSet(
        tuple(picture(str(n), str(n), n << 32) for n in range(9)),
        (RefusedPicture("cat.gif", "GIF is not supported"),),
    )
    with pytest.raises(TrainingFailed) as caught:
        pictures.require(10)
    failure = caught.value.failure
    assert failure.code is FailureCode.LOW_QUALITY_DATA
    assert not failure.retryable
    assert "Only 9 of 10 pictures" in failure.message
    assert "cat.gif: GIF is not supported" in failure.message


def test_every_entry_of_a_list_counts_in_the_message() -> None:
    pictures = PictureSet(
        (picture("a.jpg", "1", 0),), (RefusedPicture("a.jpg", "it is listed 10 times", times=9),)
    )
    with pytest.raises(TrainingFailed, match="Only 1 of 10 pictures"):
        pictures.require(10)


def test_too_few_good_pictures_are_not_said_to_be_unusable() -> None:
    pictures = PictureSet(tuple(picture(str(n), str(n), n << 32) for n in range(9)))
    with pytest.raises(TrainingFailed, match="at least 10 pictures, and got 9 pictures") as caught:
        pictures.require(10)
    assert "can be used" not in caught.value.failure.message


def test_enough_pictures_pass() -> None:
    PictureSet(tuple(picture(str(n), str(n), n) for n in range(10))).require(10)


def test_none_at_all_fail_without_an_empty_list_of_refusals() -> None:
    with pytest.raises(TrainingFailed) as caught:
        PictureSet(()).require(1)
    assert "Left out" not in caught.value.failure.message
