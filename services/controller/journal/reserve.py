"""Room kept beside the journal for the day the disk is full."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
SLICES = 8
"""Given away one at a time: whoever else fills the disk gets no more than the one in use."""
SLACK = 4
"""Taking the reserve needs a fourth of it more, so that it is not given away at once again."""


class Reserve:
    """A file of blocks that are allotted but empty; giving them away makes room for what must be
    written. `size_bytes` 0: none is kept."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self.held = False
        """It is whole."""

    def take(self) -> None:
        """Allots what is missing, where the disk has room for it and some more."""
        if self.held:
            return
        before = self._path.stat().st_size if self._path.exists() else 0
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if self._size_bytes:
                    os.posix_fallocate(file, 0, self._size_bytes + self._size_bytes // SLACK)
                os.truncate(file, self._size_bytes)
                self.held = True
            finally:
                os.close(file)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self._cut(before)

    def release(self) -> bool:
        """Gives one slice back to the disk; False when there is none left."""
        self.held = False
        size = self._path.stat().st_size if self._path.exists() else 0
        if not size:
            return False
        self._cut(max(0, size - max(1, self._size_bytes // SLICES)))
        _log.warning("the journal uses its reserve", extra={"path": str(self._path)})
        return True

    def _cut(self, size_bytes: int) -> None:
        if self._path.exists():
            os.truncate(self._path, size_bytes)
