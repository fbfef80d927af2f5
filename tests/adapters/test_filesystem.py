"""The filesystem blob store: concurrent processes, crashes, symlinks, files of other programs."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from adapters.filesystem import RESERVED, FileBlobStore
from application.ports import (
    BlobDenied,
    BlobMissing,
    BlobTooLarge,
    BlobUnavailable,
    IfAbsent,
    IfMatch,
    PreconditionFailed,
)
from domain.location import Bucket, Location

AT = Location("out", "models/style_1.safetensors")
COUNTER = Location("out", "counter")
INCREMENTS = 25
processes = multiprocessing.get_context("spawn")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def blobs(root: Path) -> FileBlobStore:
    return FileBlobStore({"out": root})


def files(root: Path) -> list[str]:
    """Every file and folder except the internal ones and the lock."""
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path not in {root / RESERVED, root / RESERVED / "lock"}
    )


def increment(root: Path) -> None:
    blobs = FileBlobStore({"out": root})
    done = 0
    while done < INCREMENTS:
        seen = blobs.get(COUNTER)
        try:
            blobs.put(COUNTER, b"%d" % (int(seen.data) + 1), condition=IfMatch(seen.etag))
        except PreconditionFailed:
            continue
        done += 1


def die_before_replacing(root: Path) -> None:
    def die(*_arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Path, "replace", die)  # noqa: B010 - mypy knows no method that may be assigned
    FileBlobStore({"out": root}).put(AT, b"interrupted")


def test_concurrent_processes_lose_no_increment_of_a_counter(
    root: Path, blobs: FileBlobStore
) -> None:
    blobs.put(COUNTER, b"0")
    workers = [processes.Process(target=increment, args=(root,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert blobs.get(COUNTER).data == b"%d" % (2 * INCREMENTS)


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_killed_writer_leaves_the_old_blob_and_no_lock(
    root: Path, blobs: FileBlobStore, before: bytes | None
) -> None:
    if before is not None:
        blobs.put(AT, before)
    writer = processes.Process(target=die_before_replacing, args=(root,))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert (root / RESERVED / "coming").read_bytes() == b"interrupted"

    assert blobs.list(Bucket("out"), "") == ([] if before is None else [AT])
    if before is None:
        with pytest.raises(BlobMissing):
            blobs.get(AT)
    else:
        assert blobs.get(AT).data == before

    blobs.put(AT, b"new")
    assert blobs.get(AT).data == b"new"
    assert files(root) == ["models", AT.key]


def test_a_read_only_bucket_is_not_touched_at_all(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"1")
    before = sorted(images.rglob("*")), images.stat().st_mtime_ns
    blobs = FileBlobStore({"images": images}, read_only=("images",))
    image = Location("images", "a.png")

    assert blobs.get(image).data == b"1"
    assert blobs.list(Bucket("images"), "") == [image]
    with pytest.raises(BlobMissing):
        blobs.get(Location("images", "a.txt"))
    with pytest.raises(BlobDenied, match="images"):
        blobs.put(image, b"2")
    with pytest.raises(BlobDenied, match="images"):
        blobs.delete(image)

    assert (sorted(images.rglob("*")), images.stat().st_mtime_ns) == before
    assert (images / "a.png").read_bytes() == b"1"


def test_links_in_a_users_own_folder_are_followed(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "elsewhere.png").write_bytes(b"1")
    (images / "a.png").symlink_to(tmp_path / "elsewhere.png")
    blobs = FileBlobStore({"images": images}, read_only=("images",))
    assert blobs.get(Location("images", "a.png")).data == b"1"


def test_a_missing_folder_is_an_empty_bucket(root: Path, blobs: FileBlobStore) -> None:
    with pytest.raises(BlobMissing):
        blobs.get(AT)
    assert blobs.list(Bucket("out"), "") == []
    assert not root.exists()


def test_an_unknown_bucket_is_denied_by_name(blobs: FileBlobStore) -> None:
    stranger = Location("stranger", "a")
    for access in (
        lambda: blobs.get(stranger),
        lambda: blobs.put(stranger, b"1"),
        lambda: blobs.delete(stranger),
        lambda: blobs.list(Bucket("stranger"), ""),
    ):
        with pytest.raises(BlobDenied, match=r"'stranger'.*out.*ALLOWED_IMAGE_BUCKETS"):
            access()


@pytest.mark.parametrize("key", ["file", "folder/secret", "folder/new"])
def test_a_link_does_not_lead_out_of_the_bucket(
    tmp_path: Path, root: Path, blobs: FileBlobStore, key: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "file").symlink_to(outside / "secret")
    (root / "folder").symlink_to(outside)
    at = Location("out", key)
    for access in (
        lambda: blobs.get(at),
        lambda: blobs.put(at, b"overwritten"),
        lambda: blobs.delete(at),
    ):
        with pytest.raises(BlobDenied, match="link"):
            access()
    assert files(outside) == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


def test_a_link_inside_the_bucket_is_followed(root: Path, blobs: FileBlobStore) -> None:
    blobs.put(AT, b"1")
    (root / "newest").symlink_to(root / AT.key)
    assert blobs.get(Location("out", "newest")).data == b"1"


def test_a_bucket_may_itself_be_a_link(tmp_path: Path, root: Path) -> None:
    (tmp_path / "disk").mkdir()
    root.symlink_to(tmp_path / "disk")
    blobs = FileBlobStore({"out": root})
    blobs.put(AT, b"1")
    assert blobs.get(AT).data == b"1"


def test_the_internal_folder_holds_no_blobs(blobs: FileBlobStore) -> None:
    blobs.put(AT, b"1")
    own = Location("out", f"{RESERVED}/lock")
    with pytest.raises(BlobDenied, match=RESERVED):
        blobs.get(own)
    with pytest.raises(BlobDenied, match=RESERVED):
        blobs.put(own, b"1")
    assert blobs.list(Bucket("out"), "") == [AT]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, BlobUnavailable),
        (errno.EDQUOT, BlobUnavailable),
        (errno.EIO, BlobUnavailable),
        (errno.EACCES, BlobDenied),
        (errno.EPERM, BlobDenied),
        (errno.EROFS, BlobDenied),
    ],
)
def test_a_write_that_fails_names_the_file_and_the_cause_and_leaves_nothing(
    root: Path,
    blobs: FileBlobStore,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    expected: type[Exception],
) -> None:
    blobs.put(AT, b"old")

    def fail(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(expected, match=f"{AT.key}: {os.strerror(code)}"):
            blobs.put(AT, b"new")
    assert blobs.get(AT).data == b"old"
    assert files(root) == ["models", AT.key]


@pytest.mark.parametrize(
    ("code", "expected"), [(errno.EACCES, BlobDenied), (errno.EIO, BlobUnavailable)]
)
def test_a_read_that_fails_names_the_file_and_the_cause(
    blobs: FileBlobStore, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception]
) -> None:
    blobs.put(AT, b"1")

    def fail(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(expected, match=f"{AT.key}: {os.strerror(code)}"):
        blobs.get(AT)


@pytest.mark.parametrize(
    ("code", "expected"), [(errno.EACCES, BlobDenied), (errno.EIO, BlobUnavailable)]
)
def test_failures_to_delete_or_list_are_raised(
    blobs: FileBlobStore, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception]
) -> None:
    blobs.put(AT, b"1")

    def fail(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(expected, match=f"{AT.key}: {os.strerror(code)}"):
        blobs.delete(AT)
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(expected, match=os.strerror(code)):
        blobs.list(Bucket("out"), "")


def test_writes_and_deletions_are_synced_to_disk(
    root: Path, blobs: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bytes]] = []
    blobs.put(COUNTER, b"0")

    def sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        content = b"" if path.is_dir() else path.read_bytes()
        synced.append((os.path.relpath(path, root), content))

    monkeypatch.setattr(os, "fsync", sync)
    opened = len(os.listdir("/proc/self/fd"))
    blobs.put(AT, b"new")
    contents = [content for _, content in synced if content]
    assert contents == [b"new"], "the content is on disk before the rename"
    assert {path for path, _ in synced} >= {".", "models"}, "every folder with a new name"
    assert synced[-1] == ("models", b""), "the name is on disk after the content"
    synced.clear()
    blobs.delete(AT)
    assert synced == [("models", b"")]
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_blob_cannot_replace_a_folder_or_lie_below_a_blob(blobs: FileBlobStore) -> None:
    blobs.put(AT, b"1")
    for key in ("models", f"{AT.key}/below", f"{AT.key}/far/below"):
        for condition in (None, IfAbsent()):
            with pytest.raises(BlobDenied, match=key):
                blobs.put(Location("out", key), b"2", condition=condition)
    assert blobs.list(Bucket("out"), "") == [AT]


@pytest.mark.parametrize(
    ("name", "expected"), [("x" * 300, BlobMissing), ("lone \udcff\ud800 surrogate", BlobDenied)]
)
def test_an_invalid_file_name_is_rejected(
    blobs: FileBlobStore, name: str, expected: type[Exception]
) -> None:
    blobs.put(AT, b"1")
    at = Location("out", name)
    with pytest.raises(expected):
        blobs.get(at)
    with pytest.raises(BlobDenied):
        blobs.put(at, b"1")


def test_files_put_there_by_hand_are_blobs_if_a_key_can_name_them(
    root: Path, blobs: FileBlobStore
) -> None:
    root.mkdir()
    for name in ("image.png", "back\\slash", "new\nline"):
        (root / name).write_bytes(b"1")
    (root / "empty folder").mkdir()
    (root / "link.png").symlink_to(root / "nowhere")
    (root / "below" / RESERVED).mkdir(parents=True)
    (root / "below" / RESERVED / "file").write_bytes(b"1")
    found = [Location("out", f"below/{RESERVED}/file"), Location("out", "image.png")]
    assert blobs.list(Bucket("out"), "") == found


def test_a_huge_file_is_rejected_unread(root: Path, blobs: FileBlobStore) -> None:
    root.mkdir()
    with (root / "huge.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BlobTooLarge, match=str(2**40)):
        blobs.get(Location("out", "huge.png"), max_bytes=1000)


def test_deleting_the_last_blob_of_a_folder_removes_the_folder(
    root: Path, blobs: FileBlobStore
) -> None:
    blobs.put(Location("out", "jobs/1/lease.json"), b"1")
    blobs.put(Location("out", "jobs/2/lease.json"), b"1")
    blobs.delete(Location("out", "jobs/1/lease.json"))
    assert files(root) == ["jobs", "jobs/2", "jobs/2/lease.json"]
    blobs.put(Location("out", "jobs/1"), b"a blob where a folder was")
    blobs.put(Location("out", "far/below/all/of it"), b"1")
    blobs.delete(Location("out", "far/below/all/of it"))
    assert "far" not in files(root)
