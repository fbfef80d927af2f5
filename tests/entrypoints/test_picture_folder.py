"""What cannot be read is the person's to mend, and no defect."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from entrypoints.exits import UsageError
from entrypoints.picture_folder import find_pictures, read_own


def refuse(*_: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_folder_that_may_not_be_read_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UsageError) as refused:
        find_pictures(tmp_path)
    assert str(refused.value) == f"{tmp_path}: cannot be read (Permission denied)"


def test_a_file_that_may_not_be_read_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UsageError) as refused:
        read_own(tmp_path / "a.png")
    assert str(refused.value) == f"{tmp_path / 'a.png'}: cannot be read (Permission denied)"
