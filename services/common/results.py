"""Files that a command leaves: where they may lie, and what is left of unfinished ones."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path


def check_place(path: Path) -> None:
    """For a result that work is to make: raises OSError, of the file itself, before the work where
    it could not be written behind it."""
    code = 0
    if path.is_dir():
        code = errno.EISDIR
    elif path.exists() and not path.is_file():
        code = errno.EOPNOTSUPP  # a file would take the place of the device, or of the pipe
    elif not path.parent.exists():
        code = errno.ENOENT
    elif not path.parent.is_dir():
        code = errno.ENOTDIR
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        code = errno.EACCES
    if code:
        raise OSError(code, os.strerror(code), str(path))


def check_folder(path: Path) -> None:
    """The same for a folder that is made with those above it."""
    above = path.parent
    while not above.exists() and above != above.parent:
        above = above.parent
    try:
        check_place(above / f".{path.name}")  # it is made beside, and takes its place when whole
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def discard(path: Path) -> None:
    """Removes what was not finished; where nothing can be removed, there was nothing written."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
