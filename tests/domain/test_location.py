import pytest

from domain.location import SCHEMES, Bucket, InvalidLocation, Location


@pytest.mark.parametrize("scheme", SCHEMES)
def test_urls_of_each_store_are_parsed_and_formatted(scheme: str) -> None:
    text = f"{scheme}://media/training/123/image 0.jpg"
    at = Location.parse(text)
    assert at == Location("media", "training/123/image 0.jpg", scheme)
    assert str(at) == text
    assert at.name == "image 0.jpg"
    assert at.with_suffix(".txt").scheme == scheme


def test_the_same_key_in_another_store_is_another_blob() -> None:
    assert Location.parse("s3://media/a") != Location.parse("gs://media/a")


@pytest.mark.parametrize(
    ("text", "bucket"),
    [
        ("media", Bucket("media", "gs")),
        ("gs://media", Bucket("media", "gs")),
        ("s3://media", Bucket("media", "s3")),
    ],
)
def test_a_bucket_is_named_with_or_without_its_store(text: str, bucket: Bucket) -> None:
    assert Bucket.parse(text, "gs") == bucket
    assert bucket.at("a/b") == Location("media", "a/b", bucket.scheme)


@pytest.mark.parametrize("text", ["", "gs://", "gs://media/", "media/a", "https://media", ".."])
def test_invalid_buckets_are_rejected(text: str) -> None:
    with pytest.raises(InvalidLocation):
        Bucket.parse(text, "gs")


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
def test_path_traversal_and_invalid_locations_are_rejected(text: str) -> None:
    with pytest.raises(InvalidLocation):
        Location.parse(text)


def test_a_key_has_at_most_1024_bytes() -> None:
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
def test_a_sibling_differs_only_in_the_extension(key: str, neighbour: str) -> None:
    assert Location("b", key).with_suffix(".txt") == Location("b", neighbour)
