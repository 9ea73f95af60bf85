"""Files that hold what is not for everybody: whose they are, and how they are replaced."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from services.common.results import discard

_OTHERS = 0o077


def keep_files_private() -> None:
    """What this process and its children create from now on, nobody else may read."""
    os.umask(_OTHERS)


def make_private(directory: Path) -> None:
    """Makes the directory, for its owner alone; one that is there is closed to others, if it is
    ours. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if directory.stat().st_mode & _OTHERS:
        with contextlib.suppress(PermissionError):
            directory.chmod(0o700)


def replace_file(path: Path, content: bytes, mode: int) -> None:
    """Who reads meanwhile has the file before or this one, never a part; what could not be written
    leaves nothing beside. Raises OSError, of the file itself."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        discard(partial)
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def locked(directory: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """One after another of those who change files in a directory. Raises OSError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)
