"""What can be told of a write-ahead log before SQLite reads it: whether it is there, and how far
it goes. SQLite itself stops without a word at the first frame that is not whole
(https://www.sqlite.org/fileformat2.html, section 4)."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

_log = logging.getLogger(__name__)
_HEADER_BYTES = 32
_PAGES = {1 << bits for bits in range(9, 17)}
_FRAME = struct.Struct(">II8s8s")
"""A frame's header: page, size of the database behind a commit or 0, salts, checksum."""


def log_of(path: Path) -> Path:
    """Where the log of a database lies."""
    return path.with_name(f"{path.name}-wal")


class LogWatch:
    """Tells, at the next start, that the log of a killed process is gone or broke off.

    While a journal is open a mark lies beside it, which a clean end takes away.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark = path.with_name(f"{path.name}-open")
        self._absent = self._mark.exists() and not log_of(path).exists()
        self._committed = _last_commit(log_of(path))

    def opened(self, frames: int) -> None:
        """SQLite has read the log and believed this many frames of it; what is lost is told once,
        however often the file must be opened."""
        if self._absent:
            _log.error(
                "the journal's log is gone, and what it held with it",
                extra={"path": str(log_of(self._path))},
            )
        elif frames < self._committed:
            _log.error(
                "the journal's log is damaged: what stands behind the damage is lost",
                extra={
                    "path": str(log_of(self._path)),
                    "frames_read": frames,
                    "frames_lost": self._committed - frames,
                },
            )
        self._absent, self._committed = False, 0
        self._mark.touch(0o600)

    def closed(self) -> None:
        """The log was folded into the database. A loss that was not told stays marked."""
        if not self._absent:
            self._mark.unlink(missing_ok=True)


def _last_commit(log: Path) -> int:
    """The number of the last frame of the log's newest round that ends a commit; 0 if none."""
    try:
        file = log.open("rb")
    except FileNotFoundError:
        return 0
    with file:
        size_bytes = file.seek(0, 2)
        file.seek(8)
        page_bytes = int.from_bytes(file.read(4), "big")
        if page_bytes not in _PAGES:  # nothing of a log with such a header is read
            return min(1, size_bytes // (_HEADER_BYTES + 1))
        frame_bytes, last, salts = page_bytes + _FRAME.size, 0, b""
        for number in range((size_bytes - _HEADER_BYTES) // frame_bytes):
            file.seek(_HEADER_BYTES + number * frame_bytes)
            _, committed_pages, found, _ = _FRAME.unpack(file.read(_FRAME.size))
            salts = salts or found
            if found != salts:
                break
            last = number + 1 if committed_pages else last
        return last
