import pytest

from domain.location import InvalidLocation, Location


def test_reads_and_writes_the_s3_form() -> None:
    at = Location.parse("s3://media/training/123/image 0.jpg")
    assert at == Location("media", "training/123/image 0.jpg")
    assert str(at) == "s3://media/training/123/image 0.jpg"
    assert at.name == "image 0.jpg"


@pytest.mark.parametrize(
    "text",
    [
        "https://media/a.jpg",
        "media/a.jpg",
        "s3://",
        "s3://media",
        "s3://media/",
        "s3:///a.jpg",
        "s3://media//a.jpg",
        "s3://media/../a.jpg",
        "s3://media/a/./b.jpg",
        "s3://../a.jpg",
        "s3://./a.jpg",
        "s3://media/a\\b.jpg",
        "s3://media/a\x00.jpg",
        "s3://media/a\x7f.jpg",
        "",
    ],
)
def test_refuses_what_could_leave_the_bucket_or_is_no_address(text: str) -> None:
    with pytest.raises(InvalidLocation):
        Location.parse(text)


def test_a_key_has_room_for_1024_bytes() -> None:
    Location("media", "ü" * 512)
    with pytest.raises(InvalidLocation):
        Location("media", "ü" * 512 + "a")


@pytest.mark.parametrize(
    ("key", "neighbour"),
    [
        ("a.jpg", "a.txt"),
        ("x/a.b.jpg", "x/a.b.txt"),
        ("x.y/a", "x.y/a.txt"),
        (".jpg", ".jpg.txt"),
    ],
)
def test_a_neighbour_shares_the_name_but_for_the_extension(key: str, neighbour: str) -> None:
    assert Location("b", key).with_suffix(".txt") == Location("b", neighbour)
