from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from services.common.private import replace_file
from services.common.results import check_folder, check_place, discard


def test_a_place_that_cannot_be_had_is_told_by_the_name_it_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, code in (
        (tmp_path, errno.EISDIR),
        (tmp_path / "none" / "out", errno.ENOENT),
        (tmp_path / "file" / "out", errno.ENOTDIR),
    ):
        with pytest.raises(OSError, match=str(path)) as refused:
            check_place(path)
        assert refused.value.errno == code
    check_place(tmp_path / "out")
    check_place(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing was left behind"


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=str(tmp_path / "pipe")) as refused:
        check_place(tmp_path / "pipe")
    assert refused.value.errno == errno.EOPNOTSUPP


def test_a_folder_may_lack_those_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=str(tmp_path / "file" / "a")) as refused:
        check_folder(tmp_path / "file" / "a")
    assert refused.value.errno == errno.ENOTDIR
    check_folder(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path)
    check_folder(Path("report"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=str(tmp_path / "a" / "b")):
        check_folder(tmp_path / "a" / "b")


def test_what_cannot_be_removed_hides_no_other_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "x").write_text("")
    discard(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr(Path, "unlink", refused)
    discard(tmp_path / "x")


def test_a_file_that_is_not_replaced_stays_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "keys.json"
    file.write_text("before")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left") as refused:
            replace_file(file, b"behind", 0o600)
    assert refused.value.filename == str(file)
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]
    assert file.read_text() == "before"
    replace_file(file, b"behind", 0o600)
    assert file.read_text() == "behind"
