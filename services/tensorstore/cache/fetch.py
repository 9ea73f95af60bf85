"""Tiles fetched in parallel from the sources that have them, verified as they come in."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

from services.common.errors import DataLoss, NotFound, OutOfRange, ShuntError
from services.tensorstore.format.manifest import Chunk
from services.tensorstore.format.tile_check import TileCheck
from services.tensorstore.places.backend import Pieces
from services.tensorstore.places.directory import read_pieces

FETCH_THREADS = 8
FETCH_BYTES = 32 << 20
FETCH_ATTEMPTS = 3


class Source(Protocol):
    """Where missing bytes come from."""

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        """Bytes of an object. A source that has nothing of them raises NotFound, one that has some
        of them OutOfRange."""


class Tally(Protocol):
    """Told of every byte that came in."""

    def __call__(self, source: int, size_bytes: int) -> None: ...


class Damage(Protocol):
    """Told of every source that sent something else than the chunk."""

    def __call__(self, source: int, digest: str) -> None: ...


@dataclass(frozen=True)
class Job:
    """A run of neighbouring tiles that is fetched at once, and the open file they go to."""

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


def jobs_of(chunk: Chunk, descriptor: int, tiles: Sequence[int]) -> list[Job]:
    """Tiles in rising order as few jobs, none much larger than FETCH_BYTES."""
    found: list[Job] = []
    for tile in tiles:
        last = found[-1] if found else None
        if (
            last is not None
            and last.last == tile
            and chunk.tile_bytes(tile)[1] - last.start <= FETCH_BYTES
        ):
            found[-1] = replace(last, last=tile + 1)
        else:
            found.append(Job(chunk, descriptor, tile, tile + 1))
    return found


class Fetch:
    """One round of fetching. A peer that does not answer is not asked again in it."""

    def __init__(
        self,
        sources: Sequence[Source],
        tally: Tally | None,
        damage: Damage | None,
        arrived: Callable[[int], None],
        *,
        near: bool = False,
    ) -> None:
        """Sources are asked in order; `arrived` is told the bytes of each job, by one thread at a
        time. With `near` the first is no peer but lies on this node, and is always asked first."""
        self._sources = sources
        self._near = int(near)
        self._tally = tally
        self._damage = damage
        self._arrived = arrived
        self._lock = threading.Lock()
        self._silent: set[int] = set()
        self._number = itertools.count()
        self._error: BaseException | None = None
        self._pool = ThreadPoolExecutor(FETCH_THREADS, "fetch")

    def __enter__(self) -> Fetch:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def stop(self, error: BaseException) -> None:
        """Jobs that have not begun raise the first error of the round instead."""
        self._error = self._error or error

    def run(self, jobs: Sequence[Job]) -> None:
        """Fetches, verifies and writes these jobs; raises the first error of the round, once none
        of these touches the file any more."""
        coming = [self._pool.submit(self._one, job) for job in jobs]
        done = wait(coming, return_when=FIRST_EXCEPTION).done
        errors = [error for error in (future.exception() for future in done) if error is not None]
        if errors:
            self.stop(errors[0])
            wait(coming)
            raise self._error or errors[0]

    def _one(self, job: Job) -> None:
        if self._error is not None:
            raise self._error
        for part in _missing(job):
            self._ask(next(self._number), part)
        with self._lock:
            self._arrived(job.stop - job.start)

    def _ask(self, number: int, job: Job) -> None:
        """Each peer once, beginning with another one for every job; then the store itself. Each
        goes on behind the last tile that was good; what peers have only in part they are asked
        for in parts."""
        check, store, partly = TileCheck(job.chunk, job.first), len(self._sources) - 1, False
        near, peers = range(self._near)[:store], range(self._near, store)
        turns = (peers[(number + turn) % len(peers)] for turn in range(len(peers)))
        for index in itertools.chain(near, turns):
            if index in self._silent:
                continue
            try:
                self._copy(index, job, check)
            except (NotFound, DataLoss):
                pass
            except OutOfRange:
                partly = True
            except ShuntError:
                self._silent.add(index)
            if check.tile == job.last:
                return
            check.restart()
        left = replace(job, first=check.tile)
        if partly and left.last - left.first > 1:
            middle = (left.first + left.last) // 2
            self._ask(number, replace(left, last=middle))
            self._ask(number, replace(left, first=middle))
        else:
            self._ask_store(store, left, check)

    def _ask_store(self, store: int, job: Job, check: TileCheck) -> None:
        for attempt in range(1, FETCH_ATTEMPTS + 1):
            try:
                self._copy(store, job, check)
            except DataLoss:
                if attempt == FETCH_ATTEMPTS:
                    raise
                check.restart()
            else:
                return

    def _copy(self, index: int, job: Job, check: TileCheck) -> None:
        """Writes and verifies in one go, piece by piece. What a source that fails has written is
        in doubt like everything that the log does not name."""
        source, start = self._sources[index], check.at
        at = start
        try:
            with closing(source.pieces(job.chunk.digest, start, job.stop)) as pieces:
                for piece in pieces:
                    if at + len(piece) > job.stop:  # the next tile may be mapped
                        raise DataLoss(
                            f"more of chunk {job.chunk.digest} was sent than asked for",
                            field="chunk",
                        )
                    _write(job.descriptor, piece, at)
                    at += len(piece)
                    check.update(piece)
            if at != job.stop:
                raise DataLoss(f"chunk {job.chunk.digest} ends at {at}", field="chunk")
        except DataLoss:
            if self._damage is not None:
                self._damage(index, job.chunk.digest)
            raise
        finally:
            if self._tally is not None:
                self._tally(index, at - start)


def _write(descriptor: int, data: memoryview, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], at + done)


def _missing(job: Job) -> Iterator[Job]:
    """The parts of a job that are not in the file. What an earlier round wrote before it was
    stopped, or what another model's log names, is good and may be mapped: it stays untouched."""
    if not _has_data(job):
        yield job
        return
    tiles = (replace(job, first=tile, last=tile + 1) for tile in range(job.first, job.last))
    for good, run in itertools.groupby(tiles, _is_good):
        if not good:
            parts = list(run)
            yield replace(job, first=parts[0].first, last=parts[-1].last)


def _has_data(job: Job) -> bool:
    try:
        return os.lseek(job.descriptor, job.start, os.SEEK_DATA) < job.stop
    except OSError:  # a hole up to the end
        return False


def _is_good(tile: Job) -> bool:
    if not _has_data(tile):
        return False
    check = TileCheck(tile.chunk, tile.first)
    try:
        for piece in read_pieces(tile.descriptor, tile.chunk.digest, tile.start, tile.stop):
            check.update(piece)
    except DataLoss:
        return False
    return True
