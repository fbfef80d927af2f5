"""The address of a blob: the kind of store, a bucket and a key."""

from __future__ import annotations

from dataclasses import dataclass

SCHEMES = ("s3", "gs")
"""``s3``: Amazon S3 and compatible stores; ``gs``: Google Cloud Storage."""
FORMS = " or ".join(f"{scheme}://bucket/key" for scheme in SCHEMES)
"""The valid forms of a location, for error messages."""


class InvalidLocation(ValueError):
    """The text is not a valid location, or its key could lead outside the bucket."""


@dataclass(frozen=True, order=True)
class Bucket:
    """One bucket of one kind of store."""

    name: str
    scheme: str = "s3"

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name in {".", ".."}:
            raise InvalidLocation(f"{self.name!r} is not a bucket name")
        if self.scheme not in SCHEMES:
            raise InvalidLocation(f"{self.scheme!r} is not one of {', '.join(SCHEMES)}")

    @classmethod
    def parse(cls, text: str, scheme: str) -> Bucket:
        """Parse ``gs://name`` or ``s3://name``, or ``name`` alone for a bucket of ``scheme``.

        Raises:
            InvalidLocation: the text has another form.
        """
        before, separator, name = text.rpartition("://")
        return cls(name, before if separator else scheme)

    def at(self, key: str) -> Location:
        """The blob with this key."""
        return Location(self.name, key, self.scheme)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}"


@dataclass(frozen=True, order=True)
class Location:
    """One blob's address. The key never starts with ``/`` and has no ``.`` or ``..`` part."""

    bucket: str
    key: str
    scheme: str = "s3"
    """The kind of store, one of ``SCHEMES``."""

    def __post_init__(self) -> None:
        Bucket(self.bucket, self.scheme)
        if not self.key or len(self.key.encode(errors="replace")) > 1024:
            raise InvalidLocation(f"a key has 1 to 1024 bytes, got {self.key[:40]!r}")
        if any(part in {"", ".", ".."} for part in self.key.split("/")):
            raise InvalidLocation(f"key {self.key!r} has an empty, '.' or '..' part")
        if any(ord(character) < 32 or character in "\\\x7f" for character in self.key):
            raise InvalidLocation(f"key {self.key!r} has a control character or a backslash")

    @classmethod
    def parse(cls, text: str) -> Location:
        """Parse ``s3://bucket/key`` or ``gs://bucket/key``.

        Raises:
            InvalidLocation: the text has another form.
        """
        scheme, separator, rest = text.partition("://")
        if not separator or scheme not in SCHEMES:
            raise InvalidLocation("it does not begin with s3:// or gs://")
        bucket, _, key = rest.partition("/")
        return cls(bucket, key, scheme)

    @property
    def name(self) -> str:
        """The file name: the last part of the key."""
        return self.key.rpartition("/")[2]

    def with_suffix(self, suffix: str) -> Location:
        """The location with the file extension replaced by ``suffix``."""
        folder, slash, name = self.key.rpartition("/")
        stem = name.rpartition(".")[0] or name
        return Location(self.bucket, f"{folder}{slash}{stem}{suffix}", self.scheme)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"
