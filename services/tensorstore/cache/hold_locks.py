"""Which chunks of a cache are in use, known to every process that shares its directory.

One byte of a lock file stands for a chunk: who uses it locks the byte for reading, who wants to
forget it must get it for writing. The locks belong to an open file, so threads exclude one
another as processes do, one descriptor is enough for any number of chunks, and they end with the
process that held them.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length, pid


class HoldLocks:
    """Locks by digest in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def held(self, digests: Iterable[str]) -> Iterator[None]:
        """While the context lasts nobody forgets these."""
        descriptor = self._open()
        try:
            for digest in digests:  # waits for one who forgets, and that one waits for nobody
                _lock(descriptor, fcntl.F_OFD_SETLKW, fcntl.F_RDLCK, digest)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def taking(self) -> Iterator[Callable[[str], bool]]:
        """Takes chunks, one by one, that nobody uses; False for one in use. While the context
        lasts nobody begins to use those that were taken."""
        descriptor = self._open()

        def take(digest: str) -> bool:
            try:
                _lock(descriptor, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, digest)
            except (BlockingIOError, PermissionError):
                return False
            return True

        try:
            yield take
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)


def _lock(descriptor: int, command: int, kind: int, digest: str) -> None:
    byte = int(digest[:15], 16)
    fcntl.fcntl(descriptor, command, struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0))
