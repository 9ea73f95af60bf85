"""A directory as place: files written beside, and renamed once they are whole."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from services.common.errors import NotFound, ResourceExhausted, Unavailable
from services.common.private import make_private

_UNFINISHED = "tmp"


class DirectoryPlace:
    """For its owner alone; routers of one host, or of one volume, share it."""

    def __init__(self, root: Path) -> None:
        """Raises Unavailable for a directory that cannot be had."""
        self._root = root
        with _translated():
            make_private(root)
            (root / _UNFINISHED).mkdir(exist_ok=True, mode=0o700)

    def writer(self, name: str) -> DirectoryWriter:
        return DirectoryWriter(self._root, name)

    def size(self, name: str) -> int | None:
        with _translated():
            try:
                return self._path(name).stat().st_size
            except FileNotFoundError:
                return None

    def read(self, name: str, start: int, stop: int) -> bytes:
        with _translated():
            try:
                with self._path(name).open("rb", buffering=0) as file:
                    file.seek(start)
                    return _all_of(file, stop - start)
            except FileNotFoundError:
                raise NotFound(f"{name} is not kept", field="file_id") from None

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _translated():
            path.unlink(missing_ok=True)
            with suppress(OSError):  # others are in it, or begin to be
                if path.parent.parent != self._root:
                    path.parent.rmdir()

    def names(self, folder: str) -> Iterator[tuple[str, float]]:
        with _translated():
            found = sorted((self._root / folder).rglob("*"))
        for path in found:
            with suppress(FileNotFoundError):
                if path.is_file():
                    yield path.relative_to(self._root).as_posix(), path.stat().st_mtime

    def sweep(self, before_s: float) -> None:
        with _translated():
            for path in (self._root / _UNFINISHED).iterdir():
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < before_s:
                        path.unlink()

    def _path(self, name: str) -> Path:
        return self._root / name


class DirectoryWriter:
    """One file on its way in."""

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._target = root / name
        self._unfinished = unfinished = root / _UNFINISHED / uuid.uuid4().hex
        with _translated():
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._file: BinaryIO = os.fdopen(descriptor, "wb")

    def write(self, data: bytes) -> None:
        with _translated():
            self._file.write(data)

    def commit(self) -> None:
        with _translated():
            with self._file as file:
                file.flush()
                os.fsync(file.fileno())
            for folder in reversed(self._target.relative_to(self._root).parents):
                make_private(self._root / folder)
            self._unfinished.replace(self._target)
            _sync(self._target.parent)

    def abort(self) -> None:
        with suppress(OSError):  # what is left is swept
            self._file.close()
        with suppress(OSError):
            self._unfinished.unlink(missing_ok=True)


def _all_of(file: BinaryIO, size_bytes: int) -> bytes:
    """So many bytes, or all that there are; one read may bring fewer."""
    parts: list[bytes] = []
    while size_bytes and (part := file.read(size_bytes)):
        parts.append(part)
        size_bytes -= len(part)
    return b"".join(parts)


def _sync(directory: Path) -> None:
    """Makes a rename durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceExhausted("no space is left for files", field="files") from None
        raise Unavailable(f"files cannot be kept: {error.strerror}", field="files") from None
