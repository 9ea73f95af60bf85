"""The bound of a cache: room is set aside before anything is fetched.

What counts is what lies on the medium, whoever wrote it. To make room whole chunks are
forgotten, least recently used first, but none that somebody holds. A file that an engine maps
stays valid after it was forgotten: it is unlinked, never shortened or written over.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from services.common.errors import ResourceExhausted
from services.tensorstore.cache.hold_locks import HoldLocks

BLOCK_BYTES = 4096


def blocks(size_bytes: int) -> int:
    """Bytes that this many take up on the medium."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


class _Kept(NamedTuple):
    used: int  # when this process last used it; 0: not since it began
    changed_ns: int
    digest: str
    size_bytes: int  # on the medium


class CacheRoom:
    """What the files below objects/ may take up together."""

    def __init__(self, root: Path, limit_bytes: int, locks: HoldLocks) -> None:
        self._root = root
        self._limit_bytes = limit_bytes
        self._locks = locks
        self._lock = threading.Lock()
        self._turn = count(1)
        self._used: dict[str, int] = {}
        self._coming: dict[str, int] = {}  # bytes set aside, by digest

    @property
    def used_bytes(self) -> int:
        """Bytes on the medium now."""
        return sum(stat.st_blocks * 512 for stat, _ in self._files())

    def touch(self, digests: Iterable[str]) -> None:
        """Marks chunks as used now."""
        with self._lock:
            self._used.update((digest, next(self._turn)) for digest in digests)

    def reserve(self, needs: Mapping[str, int]) -> None:
        """Sets bytes aside for chunks that the caller holds; raises ResourceExhausted, without
        having forgotten anything, when too much is in use."""
        need_bytes = sum(needs.values())
        with self._lock:
            if not self._shrink_to(self._limit_bytes - need_bytes, at_all_costs=False):
                raise ResourceExhausted(
                    f"the slice needs {need_bytes} bytes; the cache may hold {self._limit_bytes},"
                    " some of which may be in use",
                    field="cache",
                )
            for digest, size_bytes in needs.items():
                self._coming[digest] = self._coming.get(digest, 0) + size_bytes

    def release(self, digest: str, size_bytes: int) -> None:
        """Ends a reservation: what was fetched lies on the medium and counts there."""
        with self._lock:
            left = self._coming.pop(digest, 0) - size_bytes
            if left > 0:
                self._coming[digest] = left

    def trim(self) -> None:
        """Forgets what other processes have put on top."""
        with self._lock:
            self._shrink_to(self._limit_bytes, at_all_costs=True)

    def forget(self, digest: str) -> bool:
        """Forgets a chunk unless somebody holds it."""
        with self._locks.taking() as take:
            taken = take(digest)
            if taken:
                self._path(digest).unlink(missing_ok=True)
            return taken

    def _shrink_to(self, goal_bytes: int, *, at_all_costs: bool) -> bool:
        """Forgets chunks until no more than this is left; if that cannot be, then either those
        that nobody holds or none."""
        kept = list(self._kept())
        left_bytes = sum(self._coming.values()) + sum(file.size_bytes for file in kept)
        if left_bytes <= goal_bytes:
            return True
        with self._locks.taking() as take:
            going = []
            for file in sorted(kept):
                if left_bytes > goal_bytes and take(file.digest):
                    going.append(file.digest)
                    left_bytes -= file.size_bytes
            if left_bytes <= goal_bytes or at_all_costs:
                for digest in going:
                    self._used.pop(digest, None)
                    self._path(digest).unlink(missing_ok=True)
        return left_bytes <= goal_bytes

    def _kept(self) -> Iterator[_Kept]:
        for stat, digest in self._files():
            size_bytes, coming = stat.st_blocks * 512, self._coming.get(digest, 0)
            if coming:  # some of it may have come already; it counts once
                size_bytes = min(size_bytes, max(0, blocks(stat.st_size) - coming))
            yield _Kept(self._used.get(digest, 0), stat.st_ctime_ns, digest, size_bytes)

    def _files(self) -> Iterator[tuple[os.stat_result, str]]:
        for path in self._root.glob("objects/??/*"):
            with suppress(FileNotFoundError):
                yield path.stat(), path.name

    def _path(self, digest: str) -> Path:
        return self._root / "objects" / digest[:2] / digest
