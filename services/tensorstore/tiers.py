"""Two caches, one behind the other: disk, and in front of it shared memory.

A chunk is verified on entry to each, so damage on the disk is found before memory has it, and
mended from where the chunk came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from services.common.errors import DataLoss, ResourceExhausted
from services.tensorstore.cache import ChunkCache
from services.tensorstore.residence import Progress, Residence
from services.tensorstore.slices import Selection


class TieredResidence:
    """Hands out files in memory; those on disk for a slice that memory may not hold."""

    def __init__(self, disk: Residence, memory: ChunkCache) -> None:
        self._disk = disk
        self._memory = memory

    @contextmanager
    def hold(self, selection: Selection, progress: Progress | None) -> Iterator[list[str]]:
        with ExitStack() as stack:
            with ExitStack() as below:
                paths = below.enter_context(self._disk.hold(selection, progress))
                try:
                    paths = stack.enter_context(self._memory.hold(selection, None))
                except ResourceExhausted:
                    stack.push(below.pop_all())
                except DataLoss:
                    if not isinstance(self._disk, ChunkCache):
                        raise
                    below.close()
                    for wanted in selection.ranges:
                        self._disk.discard(selection.manifest.chunks[wanted.chunk].digest)
                    below.enter_context(self._disk.hold(selection, progress))
                    paths = stack.enter_context(self._memory.hold(selection, None))
            yield paths
