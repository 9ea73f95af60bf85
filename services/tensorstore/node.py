"""One node's store: where models are kept, and the caches in front of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from services.common.errors import (
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ShuntError,
)
from services.tensorstore.cache.cache import ChunkCache
from services.tensorstore.cache.fetch import Source, Tally
from services.tensorstore.cache.held import Damaged, HeldChunks, verify
from services.tensorstore.cache.kept import KeptReader
from services.tensorstore.cache.residence import LocalResidence, Progress, Residence
from services.tensorstore.cache.tiers import TieredResidence
from services.tensorstore.format.manifest import Manifest, parse
from services.tensorstore.format.names import check_digest, check_file_name, check_model_name
from services.tensorstore.format.slices import Selection
from services.tensorstore.importer import Imported, import_checkpoint
from services.tensorstore.places.backend import (
    Backend,
    ObjectReader,
    find_manifest,
    read_manifest,
    read_whole,
)
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.places.uris import default_cache_directory
from services.tensorstore.sources.opening import open_source

MANIFESTS_KEPT = 32


@dataclass(frozen=True)
class CachePlan:
    """Where caches lie and how much they may hold."""

    directory: Path | None = None
    limit_bytes: int = 1 << 30
    memory_directory: Path | None = None
    memory_limit_bytes: int = 1 << 30


@dataclass
class NodeStore:
    """What a store service does, without the wire."""

    backend: Backend
    residence: Residence
    held: HeldChunks
    reader: ObjectReader  # the backend, or what outlives it
    import_directory: Path | None = None
    in_place: bool = False  # the backend is a directory of this node
    _manifests: dict[str, tuple[bytes, Manifest]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def names(self) -> list[str]:
        return self.reader.names()

    def manifest(self, name: str, digest: str = "") -> tuple[str, bytes, Manifest]:
        """Digest, bytes and contents of a model's manifest, by digest or else by name."""
        if not digest:
            digest = find_manifest(self.reader, check_model_name(name))
        check_digest(digest)
        found = self._manifests.get(digest)
        if found is None:
            found = read_manifest(self.reader, digest)
            with self._lock:
                while len(self._manifests) >= MANIFESTS_KEPT:
                    self._manifests.pop(next(iter(self._manifests)))
                self._manifests[digest] = found
                self.held.learn(digest, found[1])
        return digest, *found

    def select(
        self, name: str, digest: str, start: int, end: int, degree: int, rank: int
    ) -> Selection:
        """A slice of a model; raises InvalidArgument for one it does not have."""
        digest, _, manifest = self.manifest(name, digest)
        return Selection.of(digest, manifest, start, end, degree, rank)

    def import_source(self, source: str, name: str, progress: Progress) -> Imported:
        """Imports what lies directly in the import directory; nothing else is ever opened."""
        if self.import_directory is None:
            raise PermissionDenied("this store has no import directory", field="source")
        path = self.import_directory / check_file_name(source)
        if path.is_symlink():
            raise InvalidArgument("the source must not be a link", field="source")
        checkpoint = open_source(path, within=self.import_directory)
        try:
            return import_checkpoint(checkpoint, self.backend, name, progress)
        finally:
            checkpoint.close()

    def read(self, digest: str, start: int, stop: int, *, cached_only: bool) -> list[bytes]:
        """Bytes [start, stop) of an object in pieces; raises NotFound when there is none, and
        OutOfRange when only a part is here and no more than that is wanted."""
        check_digest(digest)
        try:
            pieces = self.held.read(digest, start, stop)
        except OutOfRange:
            if cached_only and not self.in_place:
                raise
            pieces = []
        if pieces:
            return pieces
        if cached_only and not self.in_place:
            raise NotFound(f"object {digest} is not on this node", field="digest")
        for _, manifest in list(self._manifests.values()):
            for file in manifest.files.values():
                if file.digest == digest and stop <= file.size_bytes:  # only whole it is kept
                    return [read_whole(self.reader, digest, file.size_bytes)[start:stop]]
        # weights are kept by the caches alone: beside them they would displace manifests and files
        reader = self.backend if self.held.knows(digest) else self.reader
        return [bytes(piece) for piece in reader.pieces(digest, start, stop)]

    def verify(self, digest: str, progress: Progress) -> Damaged:
        """Reads a model again, in the store and in this node's caches."""
        _, _, manifest = self.manifest("", digest)
        return verify(self.backend, self.held.roots, digest, manifest, progress)

    def delete(self, name: str) -> bool:
        return self.backend.withdraw(check_model_name(name))


def build(
    backend: Backend,
    plan: CachePlan,
    peers: Sequence[Source] = (),
    import_directory: Path | None = None,
    tally: Tally | None = None,
) -> NodeStore:
    """A node's store with the caches that the plan asks for."""
    memory = plan.memory_directory
    if isinstance(backend, DirectoryBackend) and plan.directory is None:
        residence: Residence = LocalResidence(backend.root)
        if memory is not None:
            residence = TieredResidence(residence, backend.root, memory, plan.memory_limit_bytes)
        held = HeldChunks([] if memory is None else [memory])
        return NodeStore(backend, residence, held, backend, import_directory, in_place=True)
    root, sources = plan.directory or default_cache_directory(), [*peers, backend]
    residence = ChunkCache(root, plan.limit_bytes, sources, tally)
    roots = [root]
    if memory is not None:
        residence = TieredResidence(
            residence, root, memory, plan.memory_limit_bytes, sources, tally
        )
        roots = [memory, root]
    reader, held = KeptReader(backend, root), HeldChunks(roots)
    for digest in list(held.unknown()):
        with suppress(ShuntError):
            data = reader.kept(digest)
            if data is not None:
                held.learn(digest, parse(data))
    return NodeStore(backend, residence, held, reader, import_directory)
