"""Two caches, one behind the other: disk, and in front of it shared memory.

A chunk is verified on entry to each, so damage on the disk is found before memory has it, and
mended from where the chunk came from. What memory has whole asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from services.common.errors import ResourceExhausted
from services.tensorstore.cache.cache import ChunkCache
from services.tensorstore.cache.fetch import Source, Tally
from services.tensorstore.cache.residence import HeldFile, Progress, Residence
from services.tensorstore.format.slices import Selection
from services.tensorstore.places.directory import DirectoryBackend


class TieredResidence:
    """Hands out files in memory; those on disk for a slice that memory may not hold."""

    def __init__(
        self,
        disk: Residence,
        disk_root: Path,
        memory_root: Path,
        memory_limit_bytes: int,
        beyond: Sequence[Source] = (),
        tally: Tally | None = None,
    ) -> None:
        """What is damaged on the disk is fetched from the sources beyond it."""
        self._disk = disk
        self._tally = tally
        self._damaged: set[str] = set()
        sources: list[Source] = [DirectoryBackend(disk_root), *beyond]
        self._memory = ChunkCache(
            memory_root, memory_limit_bytes, sources, self._count, self._note, disk
        )

    @contextmanager
    def hold(self, selection: Selection, progress: Progress | None) -> Iterator[list[HeldFile]]:
        with ExitStack() as stack:
            try:
                held = stack.enter_context(self._memory.hold(selection, progress))
            except ResourceExhausted:
                held = stack.enter_context(self._disk.hold(selection, progress))
            self._mend()
            yield held

    def _count(self, source: int, size_bytes: int) -> None:
        if source and self._tally is not None:
            self._tally(source - 1, size_bytes)

    def _note(self, source: int, digest: str) -> None:
        if source == 0:
            self._damaged.add(digest)

    def _mend(self) -> None:
        """Damaged chunks leave the disk once nobody holds them, to be fetched anew."""
        if isinstance(self._disk, ChunkCache):
            for digest in list(self._damaged):
                if self._disk.forget(digest):
                    self._damaged.discard(digest)
