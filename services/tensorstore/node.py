"""One node's store: where models are kept, and the caches in front of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.common.errors import InvalidArgument, NotFound, PermissionDenied
from services.tensorstore.backend import PIECE_BYTES, Backend, find_manifest, read_manifest
from services.tensorstore.cache import ChunkCache
from services.tensorstore.directory import DirectoryBackend, translate
from services.tensorstore.fetch import Source, Tally
from services.tensorstore.importer import Imported, import_checkpoint
from services.tensorstore.manifest import Manifest
from services.tensorstore.names import check_digest, check_file_name, check_model_name
from services.tensorstore.places import default_cache_directory
from services.tensorstore.residence import LocalResidence, Progress, Residence
from services.tensorstore.slices import Selection
from services.tensorstore.sources import open_source
from services.tensorstore.tiers import TieredResidence

MANIFESTS_KEPT = 32


@dataclass(frozen=True)
class CachePlan:
    """Where caches lie and how much they may hold."""

    directory: Path | None = None
    limit_bytes: int = 1 << 30
    memory_directory: Path | None = None
    memory_limit_bytes: int = 1 << 30


@dataclass
class Node:
    """What a store service does, without the wire."""

    backend: Backend
    residence: Residence
    held: Sequence[Path]  # roots of the files this node holds, nearest first
    import_directory: Path | None = None
    _manifests: dict[str, tuple[bytes, Manifest]] = field(default_factory=dict)

    def names(self) -> list[str]:
        return self.backend.names()

    def manifest(self, name: str, digest: str = "") -> tuple[str, bytes, Manifest]:
        """Digest, bytes and contents of a model's manifest, by digest or else by name."""
        if not digest:
            digest = find_manifest(self.backend, check_model_name(name))
        check_digest(digest)
        found = self._manifests.get(digest)
        if found is None:
            found = read_manifest(self.backend, digest)
            while len(self._manifests) >= MANIFESTS_KEPT:
                self._manifests.pop(next(iter(self._manifests)))
            self._manifests[digest] = found
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
        checkpoint = open_source(path)
        try:
            return import_checkpoint(checkpoint, self.backend, name, progress)
        finally:
            checkpoint.close()

    def read(self, digest: str, start: int, stop: int, *, cached_only: bool) -> list[bytes]:
        """Bytes [start, stop) of an object in pieces; raises NotFound when there is none."""
        check_digest(digest)
        for root in self.held:
            pieces = read_held(f"{root}/objects/{digest[:2]}/{digest}", start, stop)
            if pieces:
                return pieces
        if cached_only:
            raise NotFound(f"object {digest} is not on this node", field="digest")
        return [bytes(piece) for piece in self.backend.pieces(digest, start, stop)]

    def delete(self, name: str) -> bool:
        return self.backend.withdraw(check_model_name(name))


def read_held(path: str, start: int, stop: int) -> list[bytes]:
    """Pieces of a file that may have holes; none if the range touches one."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise translate(error) from None
    try:
        if os.lseek(descriptor, start, os.SEEK_HOLE) < stop:
            return []
        cuts = range(start, stop, PIECE_BYTES)
        return [os.pread(descriptor, min(PIECE_BYTES, stop - at), at) for at in cuts]
    except OSError:  # past the end
        return []
    finally:
        os.close(descriptor)


def build(
    backend: Backend,
    plan: CachePlan,
    peers: Sequence[Source] = (),
    import_directory: Path | None = None,
    tally: Tally | None = None,
) -> Node:
    """A node's store with the caches that the plan asks for."""
    disk: Residence
    sources: list[Source] = [*peers, backend]
    if isinstance(backend, DirectoryBackend) and plan.directory is None:
        disk, root, sources = LocalResidence(backend.root), backend.root, []
    else:
        root = plan.directory or default_cache_directory()
        disk = ChunkCache(root, plan.limit_bytes, sources, tally)
    if plan.memory_directory is None:
        return Node(backend, disk, [root], import_directory)
    tiers = TieredResidence(
        disk, root, plan.memory_directory, plan.memory_limit_bytes, sources, tally
    )
    return Node(backend, tiers, [plan.memory_directory, root], import_directory)
