"""A directory as place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.common.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from services.router.files.directory import DirectoryPlace
from services.router.files.place import open_place
from tests.limits import no_file_above


def test_what_was_not_committed_is_not_there(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path / "files")
    writer = place.writer("files/a")
    writer.write(b"one")
    assert place.size("files/a") is None
    with pytest.raises(NotFound):
        place.read("files/a", 0, 10)
    writer.write(b"two")
    writer.commit()
    assert place.size("files/a") == 6
    assert place.read("files/a", 2, 4) == b"et"
    assert place.read("files/a", 4, 100) == b"wo"
    assert place.read("files/a", 6, 100) == b""


def test_a_name_holds_what_was_committed_last(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path)
    for data in (b"first", b"second"):
        writer = place.writer("files/a")
        writer.write(data)
        writer.commit()
    unwanted = place.writer("files/a")
    unwanted.write(b"third")
    unwanted.abort()
    assert place.read("files/a", 0, 100) == b"second"
    assert not list((tmp_path / "tmp").iterdir())


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path / "files")
    writer = place.writer("pieces/b/1")
    writer.commit()
    for path in (tmp_path / "files", *(tmp_path / "files").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_names_are_found_and_deleted_with_their_folders(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path)
    for name in ("files/a", "pieces/b/1", "pieces/b/2"):
        place.writer(name).commit()
    assert [name for name, _ in place.names("pieces")] == ["pieces/b/1", "pieces/b/2"]
    assert [name for name, _ in place.names("nothing")] == []
    for name in ("pieces/b/1", "pieces/b/2", "pieces/b/2", "files/a"):
        place.delete(name)
    assert not (tmp_path / "pieces/b").exists()
    assert (tmp_path / "files").exists()
    place.writer("pieces/b/3").commit()


def test_what_was_left_unfinished_is_swept_when_it_is_old(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path)
    old, new = place.writer("files/a"), place.writer("files/b")
    for unfinished in (tmp_path / "tmp").iterdir():
        os.utime(unfinished, (100, 100))
        break
    place.sweep(200.0)
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    old.abort()
    new.abort()


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path)
    writer = place.writer("files/a")
    with no_file_above(1 << 16), pytest.raises(ResourceExhausted):
        writer.write(b"x" * (1 << 20))
    writer.abort()
    assert place.size("files/a") is None


def test_a_place_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="files cannot be kept"):
        open_place(str(tmp_path / "file"))
    with pytest.raises(InvalidArgument, match="s3://bucket/prefix"):
        open_place("ftp://somewhere")
    assert isinstance(open_place(f"file://{tmp_path}/new"), DirectoryPlace)
