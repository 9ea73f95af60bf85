"""What a node's caches hold, for the stores of other nodes and for an operator's check."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import DataLoss, OutOfRange, ShuntError
from services.tensorstore import upkeep
from services.tensorstore.cache.residence import (
    VERIFY_THREADS,
    Progress,
    VerifiedLog,
    check_tile,
    mask_of,
    state_of_open,
    verified_tiles,
)
from services.tensorstore.format.manifest import Chunk, Manifest
from services.tensorstore.places.backend import PIECE_BYTES, Backend
from services.tensorstore.places.directory import translate


class HeldChunks:
    """Caches by their roots, nearest first; a chunk is known by the manifests that name it."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(roots)
        self._places: dict[str, list[tuple[str, int, Chunk]]] = {}
        self._known: set[str] = set()
        self._logs: dict[tuple[Path, str], VerifiedLog] = {}

    def learn(self, digest: str, manifest: Manifest) -> None:
        """Another manifest whose chunks may be here."""
        if digest in self._known:
            return
        self._known.add(digest)
        for index, chunk in enumerate(manifest.chunks):
            self._places.setdefault(chunk.digest, []).append((digest, index, chunk))

    def knows(self, digest: str) -> bool:
        """Whether this is a chunk of a manifest that was learnt, here or not."""
        return digest in self._places

    def unknown(self) -> Iterator[str]:
        """Digests of manifests of which something was verified here, but that were not learnt."""
        for root in self.roots:
            with suppress(OSError):
                for path in (root / "verified").iterdir():
                    if path.name not in self._known:
                        yield path.name

    def read(self, digest: str, start: int, stop: int) -> list[bytes]:
        """Bytes [start, stop) of a chunk in pieces, of tiles that were verified; else none. Raises
        OutOfRange if only some of them are here."""
        partly = False
        for root in self.roots:
            for manifest, index, chunk in self._places.get(digest, ()):
                log = self._logs.get((root, manifest))
                if log is None:
                    log = self._logs[root, manifest] = VerifiedLog(root / "verified" / manifest)
                pieces = _read(root, log, index, chunk, start, stop)
                if pieces:
                    return pieces
                partly = partly or pieces is None
        if partly:
            raise OutOfRange(f"object {digest} is here in part", field="digest")
        return []


def _read(
    root: Path, log: VerifiedLog, index: int, chunk: Chunk, start: int, stop: int
) -> list[bytes] | None:
    """None if only some of the tiles are here."""
    if stop > chunk.size_bytes:
        return []
    try:
        descriptor = os.open(root / "objects" / chunk.digest[:2] / chunk.digest, os.O_RDONLY)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise translate(error) from None
    try:
        log.refresh()
        wanted = mask_of(chunk.tiles_over(start, stop))
        good = log.good(index, state_of_open(descriptor))
        if wanted & ~good:
            return None if wanted & good else []
        cuts = range(start, stop, PIECE_BYTES)
        return [os.pread(descriptor, min(PIECE_BYTES, stop - at), at) for at in cuts]
    except OSError as error:
        raise translate(error) from None
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Damaged:
    """What reading a model again has found: objects of the store, and files of caches, each with
    the digest of its chunk."""

    objects: Sequence[str]
    files: Mapping[str, str]


def verify(
    backend: Backend, roots: Sequence[Path], digest: str, manifest: Manifest, progress: Progress
) -> Damaged:
    """Reads a model again, in the store and in caches of it. Raises DataLoss or NotFound if the
    store's manifest is damaged or missing."""
    jobs = [
        (path, manifest.chunks[index], tile)
        for root in roots
        for index, (path, good) in verified_tiles(root, digest, manifest).items()
        for tile in range(len(manifest.chunks[index].ends))
        if good >> tile & 1
    ]
    held_bytes = sum(chunk.span([tile]) for _, chunk, tile in jobs)
    total_bytes, done_bytes = held_bytes + sum(manifest.objects().values()), 0
    files: dict[str, str] = {}
    with ThreadPoolExecutor(VERIFY_THREADS, "verify") as pool:
        for (path, chunk, tile), good in zip(jobs, pool.map(_is_good, jobs), strict=True):
            done_bytes += chunk.span([tile])
            progress(done_bytes, total_bytes)
            if not good:
                files[path] = chunk.digest
                with suppress(OSError):
                    os.utime(path)  # in doubt from now on: the next open mends it
    objects = upkeep.verify(
        backend, digest, lambda done, _: progress(held_bytes + done, total_bytes)
    )
    return Damaged(objects, files)


def _is_good(job: tuple[str, Chunk, int]) -> bool:
    path, chunk, tile = job
    try:
        check_tile(path, chunk, tile)
    except DataLoss:
        return False
    except ShuntError:  # forgotten meanwhile
        return not Path(path).exists()
    return True
