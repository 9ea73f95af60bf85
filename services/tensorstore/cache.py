"""A residence that is filled from elsewhere: tiles fetched in parallel, verified, then kept.

The bound is kept by forgetting whole chunks, least recently used first. A file that an engine
maps stays valid after it was forgotten: it is unlinked, never shortened or written over.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.common.errors import DataLoss, NotFound, ResourceExhausted, ShuntError, Unavailable
from services.tensorstore.backend import Pieces
from services.tensorstore.directory import read_pieces, translate
from services.tensorstore.manifest import Chunk, Manifest
from services.tensorstore.residence import Progress, VerifiedLog, mask_of, state_of
from services.tensorstore.slices import Range, Selection
from services.tensorstore.tile_check import TileCheck

FETCH_THREADS = 8
FETCH_BYTES = 32 << 20
FETCH_ATTEMPTS = 3


class Source(Protocol):
    """Where missing bytes come from."""

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        """Bytes of an object; raises NotFound or Unavailable for the next source to be asked."""


class Tally(Protocol):
    """Told of every byte that came in."""

    def __call__(self, source: int, size_bytes: int) -> None: ...


@dataclass(frozen=True)
class _Job:
    """A run of neighbouring tiles that is fetched at once."""

    chunk: Chunk
    descriptor: int
    first: int
    last: int

    @property
    def start(self) -> int:
        return self.chunk.tile_bytes(self.first)[0]

    @property
    def stop(self) -> int:
        return self.chunk.tile_bytes(self.last - 1)[1]


class ChunkCache:
    """Files below a root that no one else writes to."""

    def __init__(
        self,
        root: Path,
        limit_bytes: int,
        sources: Sequence[Source],
        tally: Tally | None = None,
    ) -> None:
        """Sources are asked in order; those before the last may lack what they are asked for."""
        self._root = root
        self._limit_bytes = limit_bytes
        self._sources = tuple(sources)
        self._tally = tally
        self._lock = threading.Lock()
        self._used: dict[str, int] = {}  # digest to bytes on the medium, least recent first
        self._pins: dict[str, int] = {}
        for path in sorted(root.glob("objects/??/*"), key=lambda path: path.stat().st_ctime_ns):
            self._used[path.name] = path.stat().st_blocks * 512

    @property
    def root(self) -> Path:
        return self._root

    @property
    def used_bytes(self) -> int:
        """Bytes held now."""
        with self._lock:
            return sum(self._used.values())

    def path(self, digest: str) -> Path:
        return self._root / "objects" / digest[:2] / digest

    @contextmanager
    def hold(self, selection: Selection, progress: Progress | None) -> Iterator[list[str]]:
        """Fetches and verifies what is missing, and keeps it while the context lasts.

        Raises DataLoss, NotFound, Unavailable or, for a slice larger than the bound,
        ResourceExhausted.
        """
        manifest, ranges = selection.manifest, selection.ranges
        log = VerifiedLog(self._root / "verified" / selection.digest)
        chunks = [manifest.chunks[wanted.chunk].digest for wanted in ranges]
        with self._pinned(chunks):
            missing = self._missing(log, manifest, ranges)
            if missing:
                try:
                    self._fill(log, manifest, missing, progress)
                except OSError as error:
                    raise translate(error) from None
            yield [str(self.path(chunk)) for chunk in chunks]

    def discard(self, digest: str) -> None:
        """Forgets a chunk."""
        with self._lock, suppress(FileNotFoundError):
            self._used.pop(digest, None)
            self.path(digest).unlink()

    @contextmanager
    def _pinned(self, digests: Sequence[str]) -> Iterator[None]:
        with self._lock:
            for digest in digests:
                self._pins[digest] = self._pins.get(digest, 0) + 1
                if digest in self._used:
                    self._used[digest] = self._used.pop(digest)
        try:
            yield
        finally:
            with self._lock:
                for digest in digests:
                    self._pins[digest] -= 1
                    if not self._pins[digest]:
                        del self._pins[digest]

    def _missing(
        self, log: VerifiedLog, manifest: Manifest, ranges: Sequence[Range]
    ) -> dict[int, Sequence[int]]:
        """Tiles, by chunk, that no one has verified in the file as it is."""
        found: dict[int, Sequence[int]] = {}
        for wanted in ranges:
            chunk, good = manifest.chunks[wanted.chunk], 0
            with suppress(NotFound, DataLoss):
                good = log.good(wanted.chunk, state_of(str(self.path(chunk.digest)), chunk))
            if mask_of(wanted.tiles) & ~good:
                found[wanted.chunk] = wanted.tiles
        return found

    def _fill(
        self,
        log: VerifiedLog,
        manifest: Manifest,
        missing: dict[int, Sequence[int]],
        progress: Progress | None,
    ) -> None:
        # one order for every process, so that two that fill the same chunks never block
        order = sorted(missing, key=lambda index: manifest.chunks[index].digest)
        total_bytes = sum(manifest.chunks[index].span(tiles) for index, tiles in missing.items())
        self._make_room(total_bytes)
        with ExitStack() as stack:
            jobs: list[_Job] = []
            masks: dict[int, int] = {}
            held: dict[str, int] = {}
            for index in order:
                chunk = manifest.chunks[index]
                if chunk.digest not in held:
                    held[chunk.digest] = stack.enter_context(self._writable(chunk))
                good = log.good(index, state_of(str(self.path(chunk.digest)), chunk))
                wanted = [tile for tile in missing[index] if not good >> tile & 1]
                jobs += _jobs(chunk, held[chunk.digest], wanted)
                masks[index] = good | mask_of(missing[index])
            _Fetch(self._sources, self._tally).run(jobs, progress)
            states = {}
            for index, mask in masks.items():
                chunk = manifest.chunks[index]
                states[index] = (state_of(str(self.path(chunk.digest)), chunk), mask)
        log.record(states)
        with self._lock:
            for digest in held:
                with suppress(FileNotFoundError):
                    self._used[digest] = self.path(digest).stat().st_blocks * 512
        self._make_room(0)

    @contextmanager
    def _writable(self, chunk: Chunk) -> Iterator[int]:
        path = self.path(chunk.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    break
            os.close(descriptor)  # forgotten by somebody while this one waited
        try:
            if os.fstat(descriptor).st_size != chunk.size_bytes:
                os.ftruncate(descriptor, chunk.size_bytes)
            yield descriptor
        finally:
            os.close(descriptor)

    def _make_room(self, need_bytes: int) -> None:
        with self._lock:
            if need_bytes > self._limit_bytes:
                raise ResourceExhausted(
                    f"the slice needs {need_bytes} bytes, the cache may hold {self._limit_bytes}",
                    field="cache",
                )
            total = sum(self._used.values())
            for digest in list(self._used):
                if total + need_bytes <= self._limit_bytes:
                    return
                if self._pins.get(digest):
                    continue
                total -= self._used.pop(digest)
                with suppress(FileNotFoundError):
                    self.path(digest).unlink()


class _Fetch:
    """One round of fetching, several jobs at a time."""

    def __init__(self, sources: Sequence[Source], tally: Tally | None) -> None:
        self._sources = sources
        self._tally = tally

    def run(self, jobs: Sequence[_Job], progress: Progress | None) -> None:
        """Fetches, verifies and writes every job; raises the first error once all have ended."""
        total_bytes = sum(job.stop - job.start for job in jobs)
        done_bytes = 0
        with ThreadPoolExecutor(FETCH_THREADS, "fetch") as pool:
            try:
                for size in pool.map(self._one, range(len(jobs)), jobs):
                    done_bytes += size
                    if progress is not None:
                        progress(done_bytes, total_bytes)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _one(self, number: int, job: _Job) -> int:
        if not _is_held(job):
            self._ask(number, job)
        return job.stop - job.start

    def _ask(self, number: int, job: _Job) -> None:
        """Each peer once, beginning with another one for every job; then the store itself."""
        store = len(self._sources) - 1
        peers = [(number + turn) % store for turn in range(store)]
        problem: ShuntError = Unavailable("no source was asked")
        for index in [*peers, *[store] * FETCH_ATTEMPTS]:
            try:
                self._copy(index, job)
            except (NotFound, Unavailable):
                if index == store:
                    raise
            except DataLoss as error:
                problem = error
            else:
                return
        raise problem

    def _copy(self, index: int, job: _Job) -> None:
        """Verifies and writes in one go, piece by piece. What a source that fails has written is
        in doubt like everything that the log does not name."""
        check, at = TileCheck(job.chunk, job.first), job.start
        source = self._sources[index]
        try:
            with closing(source.pieces(job.chunk.digest, job.start, job.stop)) as pieces:
                for piece in pieces:
                    check.update(piece)
                    _write(job.descriptor, piece, at)
                    at += len(piece)
        finally:
            if self._tally is not None:
                self._tally(index, at - job.start)
        if at != job.stop:
            raise DataLoss(f"chunk {job.chunk.digest} ends at {at}", field="chunk")


def _write(descriptor: int, data: memoryview, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], at + done)


def _is_held(job: _Job) -> bool:
    """An earlier round wrote it and was stopped before it was logged."""
    try:
        if os.lseek(job.descriptor, job.start, os.SEEK_DATA) >= job.stop:
            return False
    except OSError:  # a hole up to the end
        return False
    check = TileCheck(job.chunk, job.first)
    try:
        for piece in read_pieces(job.descriptor, job.chunk.digest, job.start, job.stop):
            check.update(piece)
    except DataLoss:
        return False
    return True


def _jobs(chunk: Chunk, descriptor: int, tiles: Sequence[int]) -> list[_Job]:
    found: list[_Job] = []
    for tile in tiles:
        last = found[-1] if found else None
        if (
            last is not None
            and last.last == tile
            and chunk.tile_bytes(tile)[1] - chunk.tile_bytes(last.first)[0] <= FETCH_BYTES
        ):
            found[-1] = _Job(chunk, descriptor, last.first, tile + 1)
        else:
            found.append(_Job(chunk, descriptor, tile, tile + 1))
    return found
