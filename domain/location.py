"""Where a blob lies: a bucket and a key, whatever kind of store holds them."""

from __future__ import annotations

from dataclasses import dataclass

_SCHEME = "s3://"


class InvalidLocation(ValueError):
    """The text is not of the form ``s3://bucket/key``, or its key could leave the bucket."""


@dataclass(frozen=True, order=True)
class Location:
    """One blob's address. The key never starts with ``/`` and has no ``.`` or ``..`` part."""

    bucket: str
    key: str

    def __post_init__(self) -> None:
        if not self.bucket or "/" in self.bucket or self.bucket in {".", ".."}:
            raise InvalidLocation(f"{self.bucket!r} is not a bucket name")
        if not self.key or len(self.key.encode(errors="replace")) > 1024:
            raise InvalidLocation(f"a key has 1 to 1024 bytes, got {self.key[:40]!r}")
        if any(part in {"", ".", ".."} for part in self.key.split("/")):
            raise InvalidLocation(f"key {self.key!r} has an empty, '.' or '..' part")
        if any(ord(character) < 32 or character in "\\\x7f" for character in self.key):
            raise InvalidLocation(f"key {self.key!r} has a control character or a backslash")

    @classmethod
    def parse(cls, text: str) -> Location:
        """Read ``s3://bucket/key``.

        Raises:
            InvalidLocation: for anything else.
        """
        if not text.startswith(_SCHEME):
            raise InvalidLocation(f"{text[:80]!r} does not start with {_SCHEME}")
        bucket, _, key = text.removeprefix(_SCHEME).partition("/")
        return cls(bucket, key)

    @property
    def name(self) -> str:
        """The last part of the key: what a person calls the file."""
        return self.key.rpartition("/")[2]

    def with_suffix(self, suffix: str) -> Location:
        """The neighbour that shares this blob's name but for its extension."""
        folder, slash, name = self.key.rpartition("/")
        stem = name.rpartition(".")[0] or name
        return Location(self.bucket, f"{folder}{slash}{stem}{suffix}")

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.key}"
