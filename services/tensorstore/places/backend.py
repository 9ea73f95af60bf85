"""Where objects live: the seam between the store and a directory, S3 or another node."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from services.common.errors import DataLoss, NotFound
from services.tensorstore.format.manifest import MANIFEST_LIMIT_BYTES, Manifest, parse


@dataclass(frozen=True)
class StoredObject:
    """One object as a listing shows it."""

    digest: str
    size_bytes: int
    modified_s: float  # seconds since 1970


class ObjectReader(Protocol):
    """What is needed to load a model.

    Every method raises Unavailable when the place cannot be reached and DataLoss when it answers
    with something other than what was stored.
    """

    def size(self, digest: str) -> int | None:
        """Bytes of an object, None without it."""

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        """The bytes [start, stop) of an object in order, in pieces of at most PIECE_BYTES or so.

        Each is good until the next is asked for; who leaves early closes it. Raises NotFound
        without the object.
        """

    def resolve(self, name: str) -> str | None:
        """Digest of the manifest that a model's name points at."""

    def names(self) -> list[str]: ...


class Backend(ObjectReader, Protocol):
    """Content-addressed objects, and names that point at manifests."""

    def stat(self, digest: str) -> StoredObject | None:
        """An object as it is now, None without it."""

    def touch(self, digest: str, size_bytes: int, older_s: float) -> bool:
        """Makes a present object as young as one just written if it is older than that; False
        when there is none of this size, or it must be put again to be young."""

    def put(self, digest: str, source: Path) -> None:
        """Stores a file's bytes in place of what may be there; the file may be moved away."""

    def delete(self, digest: str) -> None: ...

    def objects(self) -> Iterator[StoredObject]: ...

    def publish(self, name: str, digest: str) -> None:
        """Points the name at the manifest, in one step."""

    def withdraw(self, name: str) -> bool:
        """Forgets a name; False without it."""

    def scratch(self) -> Path:
        """A directory for files on their way in."""

    def sweep(self, before_s: float) -> int:
        """Removes what killed imports left before this time, beside objects; how many things."""


Pieces = Generator[memoryview, None, None]
PIECE_BYTES = 1 << 20
"""What stays in the processor's cache from one step to the next: receive, digest, write."""


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """BLAKE3 in lower-case hexadecimal."""
    return blake3(data).hexdigest()


def read_whole(backend: ObjectReader, digest: str, size_bytes: int) -> bytes:
    """An object's bytes, verified; for manifests and files, not for weights."""
    data = b"".join(map(bytes, backend.pieces(digest, 0, size_bytes)))
    if digest_of(data) != digest:
        raise DataLoss(f"object {digest} is damaged", field="digest")
    return data


def read_manifest(backend: ObjectReader, digest: str) -> tuple[bytes, Manifest]:
    """A manifest and its bytes; raises NotFound or DataLoss."""
    size = backend.size(digest)
    if size is None:
        raise NotFound(f"manifest {digest} is not in the store", field="digest")
    if size > MANIFEST_LIMIT_BYTES:
        raise DataLoss(f"manifest {digest} has {size} bytes", field="digest")
    data = read_whole(backend, digest, size)
    return data, parse(data)


def find_manifest(backend: ObjectReader, name: str) -> str:
    """Digest of a model's manifest; raises NotFound, naming what there is."""
    digest = backend.resolve(name)
    if digest is None:
        have = ", ".join(backend.names()[:5]) or "nothing"
        raise NotFound(f"model {name} is not in the store; it holds {have}", field="model")
    return digest
