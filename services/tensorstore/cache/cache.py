"""A residence that is filled from elsewhere: tiles fetched in parallel, verified, then kept.

Processes share the directory. What one of them holds none forgets; one at a time writes to a
chunk, and only to tiles that are not there.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from services.common.errors import DataLoss, NotFound
from services.tensorstore.cache.fetch import Damage, Fetch, Source, Tally, jobs_of
from services.tensorstore.cache.hold_locks import HoldLocks
from services.tensorstore.cache.residence import (
    FileState,
    HeldFile,
    Progress,
    Residence,
    VerifiedLog,
    mask_of,
    state_of,
    state_of_open,
)
from services.tensorstore.cache.room import CacheRoom, blocks
from services.tensorstore.format.manifest import Chunk, Manifest
from services.tensorstore.format.slices import Range, Selection
from services.tensorstore.places.directory import translate

CHUNKS_AT_ONCE = 8


class ChunkCache:
    """Files below a root that no one else writes to."""

    def __init__(
        self,
        root: Path,
        limit_bytes: int,
        sources: Sequence[Source],
        tally: Tally | None = None,
        damage: Damage | None = None,
        below: Residence | None = None,
    ) -> None:
        """Sources are asked in order; those before the last may lack what they are asked for.
        What is missing is first brought to the residence below, which the first source reads."""
        self._root = root
        self._sources = tuple(sources)
        self._tally = tally
        self._damage = damage
        self._below = below
        self._locks = HoldLocks(root / "holds")
        self._room = CacheRoom(root, limit_bytes, self._locks)

    @property
    def root(self) -> Path:
        return self._root

    @property
    def used_bytes(self) -> int:
        """Bytes held now."""
        return self._room.used_bytes

    def path(self, digest: str) -> Path:
        return self._root / "objects" / digest[:2] / digest

    @contextmanager
    def hold(self, selection: Selection, progress: Progress | None) -> Iterator[list[HeldFile]]:
        """Fetches and verifies what is missing, and keeps it while the context lasts.

        Raises DataLoss, NotFound, Unavailable or, for a slice larger than the bound leaves,
        ResourceExhausted.
        """
        log = VerifiedLog(self._root / "verified" / selection.digest)
        chunks = [selection.manifest.chunks[wanted.chunk] for wanted in selection.ranges]
        digests = [chunk.digest for chunk in chunks]
        with ExitStack() as stack:
            try:
                stack.enter_context(self._locks.held(digests))
                self._room.touch(digests)
                states, missing = self._look(log, selection)
                if missing:
                    states |= self._fill(log, selection, missing, progress)
                elif progress is not None:
                    progress(selection.size_bytes, selection.size_bytes)
            except OSError as error:
                raise translate(error) from None
            yield [HeldFile(str(self.path(digest)), *states[digest][:2]) for digest in digests]

    def forget(self, digest: str) -> bool:
        """Forgets a chunk unless somebody holds it."""
        return self._room.forget(digest)

    def _look(
        self, log: VerifiedLog, selection: Selection
    ) -> tuple[dict[str, FileState], list[Range]]:
        """Files whose wanted tiles were all verified, and the tiles of the others that were not."""
        states: dict[str, FileState] = {}
        missing: list[Range] = []
        for wanted in selection.ranges:
            chunk, good = selection.manifest.chunks[wanted.chunk], 0
            with suppress(NotFound, DataLoss):
                states[chunk.digest] = state_of(str(self.path(chunk.digest)), chunk)
                good = log.good(wanted.chunk, states[chunk.digest])
            if mask_of(wanted.tiles) & ~good:
                tiles = tuple(tile for tile in wanted.tiles if not good >> tile & 1)
                missing.append(Range(wanted.chunk, tiles))
        return states, missing

    def _fill(
        self,
        log: VerifiedLog,
        selection: Selection,
        missing: Sequence[Range],
        progress: Progress | None,
    ) -> dict[str, FileState]:
        part = replace(selection, ranges=missing)
        by_digest: dict[str, list[Range]] = {}
        needs: dict[str, int] = {}
        for wanted in missing:
            chunk = selection.manifest.chunks[wanted.chunk]
            by_digest.setdefault(chunk.digest, []).append(wanted)
            needs[chunk.digest] = needs.get(chunk.digest, 0) + blocks(chunk.span(wanted.tiles))
        self._room.reserve(needs)
        meter = _Meter(selection, part, self._below is not None, progress)

        def one(digest: str) -> FileState:
            try:
                return self._fill_chunk(log, selection.manifest, by_digest[digest], fetch)
            finally:
                self._room.release(digest, needs.pop(digest))

        try:
            with (
                self._below.hold(part, meter.below) if self._below else nullcontext(),
                Fetch(
                    self._sources, self._tally, self._damage, meter, near=self._below is not None
                ) as fetch,
                ThreadPoolExecutor(CHUNKS_AT_ONCE, "chunk") as pool,
            ):
                try:
                    states = dict(zip(by_digest, pool.map(one, by_digest), strict=True))
                except BaseException as error:
                    fetch.stop(error)
                    raise
        finally:
            for digest, size_bytes in needs.items():
                self._room.release(digest, size_bytes)
            self._room.trim()
        meter.finish()
        return states

    def _fill_chunk(
        self, log: VerifiedLog, manifest: Manifest, ranges: Sequence[Range], fetch: Fetch
    ) -> FileState:
        """Ranges of one chunk, which a manifest may name at several places."""
        chunk = manifest.chunks[ranges[0].chunk]
        with self._writable(chunk) as descriptor:
            log.refresh()  # whoever wrote here meanwhile has said what is good
            state, good = state_of_open(descriptor), 0
            for wanted in ranges:
                good |= log.good(wanted.chunk, state)
            tiles = sorted({tile for wanted in ranges for tile in wanted.tiles})
            fetch.run(jobs_of(chunk, descriptor, [t for t in tiles if not good >> t & 1]))
            good |= mask_of(tiles)
            if good.bit_count() == len(chunk.ends):
                os.fchmod(descriptor, 0o444)  # whole: nobody has a reason to write to it
            state = state_of_open(descriptor)
            log.record({wanted.chunk: (state, good) for wanted in ranges})
        return state

    @contextmanager
    def _writable(self, chunk: Chunk) -> Iterator[int]:
        """The chunk's file, for one writer at a time, at its full size."""
        path = self.path(chunk.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = _open_writable(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                inode, size_bytes, _ = state_of_open(descriptor)
                if inode == _inode_of(path):
                    if size_bytes in (0, chunk.size_bytes):
                        if size_bytes == 0:
                            os.ftruncate(descriptor, chunk.size_bytes)
                        yield descriptor
                        return
                    path.unlink()  # it may be mapped, so it is neither cut nor stretched
            finally:
                os.close(descriptor)


def _open_writable(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError:  # whole once, and now in doubt
        path.chmod(0o644)
        return os.open(path, os.O_RDWR)


def _inode_of(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


class _Meter:
    """From bytes that arrive to the progress of a slice, of which some was there before; what
    comes by way of a residence below counts at both."""

    def __init__(
        self, selection: Selection, missing: Selection, by_below: bool, progress: Progress | None
    ) -> None:
        self._progress = progress
        if progress is None:
            return
        self._total_bytes = selection.size_bytes + missing.size_bytes * by_below
        self._done_bytes = selection.size_bytes - missing.size_bytes
        self._below_bytes = 0
        self(0)

    def __call__(self, size_bytes: int) -> None:
        if self._progress is not None:
            self._done_bytes += size_bytes
            self._progress(self._done_bytes + self._below_bytes, self._total_bytes)

    def below(self, done_bytes: int, _: int) -> None:
        self._below_bytes = done_bytes
        self(0)

    def finish(self) -> None:
        """What another writer has brought meanwhile arrived too."""
        if self._progress is not None:
            self._progress(self._total_bytes, self._total_bytes)
