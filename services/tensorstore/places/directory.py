"""A directory as backend: objects/ab/<digest>, models/<name>, all written elsewhere and renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from services.common.errors import DataLoss, NotFound, ResourceExhausted, ShuntError, Unavailable
from services.common.results import discard
from services.tensorstore.format.names import (
    check_digest,
    check_model_name,
    is_digest,
    is_model_name,
)
from services.tensorstore.places.backend import PIECE_BYTES, Pieces, StoredObject


class DirectoryBackend:
    """Objects are read-only files of their own, which engines on the same host may map."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._objects = root / "objects"
        self._models = root / "models"
        self._scratch = root / "tmp"

    @property
    def root(self) -> Path:
        return self._root

    def path(self, digest: str) -> Path:
        """Where an object's file lies."""
        return self._objects / digest[:2] / digest

    def size(self, digest: str) -> int | None:
        found = self.stat(digest)
        return None if found is None else found.size_bytes

    def stat(self, digest: str) -> StoredObject | None:
        try:
            found = self.path(check_digest(digest)).stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise translate(error) from None
        return StoredObject(digest, found.st_size, found.st_mtime)

    def touch(self, digest: str, size_bytes: int, older_s: float) -> bool:
        found = self.stat(digest)
        if found is None or found.size_bytes != size_bytes:
            return False
        if time.time() - found.modified_s > older_s:
            try:
                os.utime(self.path(digest))  # puts its verified tiles in doubt, so not every time
            except (FileNotFoundError, PermissionError):  # gone, or written by somebody else
                return False
            except OSError as error:
                raise translate(error) from None
        return True

    def put(self, digest: str, source: Path) -> None:
        target = self.path(check_digest(digest))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(source, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.fchmod(descriptor, 0o444)
            finally:
                os.close(descriptor)
            if source.parent == self._scratch:
                source.replace(target)
            else:
                with self._scratch_file() as own:
                    shutil.copyfile(source, own)
                    own.chmod(0o444)
                    own.replace(target)
            sync_directory(target.parent)
        except OSError as error:
            raise translate(error) from None

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        try:
            descriptor = os.open(self.path(check_digest(digest)), os.O_RDONLY)
        except FileNotFoundError:
            raise NotFound(f"object {digest} is not in the store", field="digest") from None
        except OSError as error:
            raise translate(error) from None
        try:
            yield from read_pieces(descriptor, digest, start, stop)
        finally:
            os.close(descriptor)

    def delete(self, digest: str) -> None:
        try:
            self.path(check_digest(digest)).unlink(missing_ok=True)
        except OSError as error:
            raise translate(error) from None

    def objects(self) -> Iterator[StoredObject]:
        for directory in _entries(self._objects):
            for path in _entries(directory) if len(directory.name) == 2 else ():
                if is_digest(path.name) and (found := self.stat(path.name)) is not None:
                    yield found

    def resolve(self, name: str) -> str | None:
        try:
            text = (self._models / check_model_name(name)).read_bytes()[:100]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise translate(error) from None
        return pointer_digest(name, text)

    def publish(self, name: str, digest: str) -> None:
        target = self._models / check_model_name(name)
        try:
            self._models.mkdir(parents=True, exist_ok=True)
            with self._scratch_file() as temporary:
                with temporary.open("wb") as file:
                    file.write(check_digest(digest).encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            sync_directory(self._models)
        except OSError as error:
            raise translate(error) from None

    def withdraw(self, name: str) -> bool:
        try:
            (self._models / check_model_name(name)).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise translate(error) from None
        return True

    def names(self) -> list[str]:
        return [path.name for path in _entries(self._models) if is_model_name(path.name)]

    def scratch(self) -> Path:
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise translate(error) from None
        return self._scratch

    def sweep(self, before_s: float) -> int:
        """Scratch files, and the logs of what was verified of models that are gone."""
        logs = _entries(self._root / "verified")
        gone = [path for path in logs if not self.path(path.name).exists()]
        return remove_older(self._scratch, before_s) + _remove(gone)

    @contextlib.contextmanager
    def _scratch_file(self) -> Iterator[Path]:
        path = self.scratch() / uuid.uuid4().hex
        try:
            yield path
        finally:
            discard(path)


def _entries(directory: Path) -> list[Path]:
    """What lies in a directory, by name; nothing if it is no directory."""
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise translate(error) from None


def remove_older(directory: Path, before_s: float) -> int:
    """Removes the files of a directory that were last written before this time; how many."""
    return _remove([path for path in _entries(directory) if _is_older(path, before_s)])


def _is_older(path: Path, before_s: float) -> bool:
    try:
        return path.stat().st_mtime < before_s
    except OSError:  # gone meanwhile
        return False


def _remove(paths: list[Path]) -> int:
    try:
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise translate(error) from None
    return len(paths)


def pointer_digest(name: str, text: bytes) -> str:
    """The digest a pointer holds; raises DataLoss for anything else."""
    try:
        return check_digest(text.decode("ascii").removesuffix("\n"))
    except (UnicodeDecodeError, ShuntError):
        raise DataLoss(f"the entry of model {name} is damaged", field="model") from None


def read_pieces(descriptor: int, digest: str, start: int, stop: int) -> Pieces:
    """Bytes of an open object; raises DataLoss when it ends too early."""
    buffer = memoryview(bytearray(min(PIECE_BYTES, stop - start)))
    while start < stop:
        try:
            count = os.preadv(descriptor, [buffer[: stop - start]], start)
        except OSError as error:
            raise translate(error) from None
        if count == 0:
            raise DataLoss(f"object {digest} ends at {start}", field="digest")
        yield buffer[:count]
        start += count


def sync_directory(path: Path) -> None:
    """Makes renames inside a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def translate(error: OSError) -> ShuntError:
    """The error tree's name for what the operating system said."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f" at {error.filename}" if error.filename else ""
        return ResourceExhausted(f"no space left{where}: {error.strerror}", field="store")
    return Unavailable(f"{error.strerror}: {error.filename or 'store'}", field="store")
