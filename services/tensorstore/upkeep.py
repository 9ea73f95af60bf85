"""What operators do to a store: verify a model, collect garbage, copy a model elsewhere."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from blake3 import blake3

from services.common.errors import DataLoss, NotFound, Unavailable
from services.common.results import discard
from services.tensorstore.cache.residence import Progress
from services.tensorstore.format.manifest import Chunk, Manifest
from services.tensorstore.format.tile_check import TileCheck
from services.tensorstore.places.backend import Backend, find_manifest, read_manifest
from services.tensorstore.places.directory import translate

THREADS = 8
GRACE_S = 3600.0
YOUNG_S = GRACE_S / 2  # what is relied on is no older: there is time left to publish it


def verify(backend: Backend, digest: str, progress: Progress | None = None) -> list[str]:
    """Reads every object of a model again; the digests of those damaged or missing.

    Raises DataLoss or NotFound if the manifest itself is damaged or missing.
    """
    _, manifest = read_manifest(backend, digest)
    sizes = manifest.objects()
    tiles = {chunk.digest: chunk for chunk in manifest.chunks}
    total_bytes, done_bytes, damaged = sum(sizes.values()), 0, []
    check = partial(_is_whole, backend)
    with ThreadPoolExecutor(THREADS, "verify") as pool:
        whole = pool.map(check, sizes, sizes.values(), map(tiles.get, sizes))
        for (found, size_bytes), good in zip(sizes.items(), whole, strict=True):
            done_bytes += size_bytes
            if not good:
                damaged.append(found)
            if progress is not None:
                progress(done_bytes, total_bytes)
    return damaged


def _is_whole(backend: Backend, digest: str, size_bytes: int, chunk: Chunk | None = None) -> bool:
    """The object's own digest covers all its tiles; the tiles' digests are checked as well, for
    they are what a node relies on."""
    whole = blake3()
    tiles = TileCheck(chunk) if chunk is not None else None
    try:
        if backend.size(digest) != size_bytes:
            return False
        with closing(backend.pieces(digest, 0, size_bytes)) as pieces:
            for piece in pieces:
                whole.update(piece)
                if tiles is not None:
                    tiles.update(piece)
    except (DataLoss, NotFound):
        return False
    return whole.hexdigest() == digest


@dataclass(frozen=True)
class Collected:
    """What a collection of garbage did."""

    objects: int
    size_bytes: int
    leftovers: int  # files and uploads of imports that were killed


def collect(backend: Backend, now_s: float, grace_s: float = GRACE_S) -> Collected:
    """Deletes the objects that no name leads to.

    Whatever is younger than the grace stays: an import writes its objects before the name, and
    touches those that it finds. Raises DataLoss naming the model, deleting nothing, when one
    cannot be read: what belongs to it cannot be told, and may be all that is left of it.
    """
    used: set[str] = set()
    for name in backend.names():
        try:
            digest = find_manifest(backend, name)
            used.add(digest)
            used.update(read_manifest(backend, digest)[1].objects())
        except (DataLoss, NotFound) as error:
            if name not in backend.names():
                continue  # withdrawn meanwhile
            raise DataLoss(
                f"model {name} cannot be read; import or delete it first: {error.message}",
                field="model",
            ) from None
    objects = size_bytes = 0
    for listed in list(backend.objects()):
        if listed.digest in used or now_s - listed.modified_s < grace_s:
            continue
        found = backend.stat(listed.digest)  # an import may rely on it since it was listed
        if found is not None and now_s - found.modified_s >= grace_s:
            backend.delete(found.digest)
            objects += 1
            size_bytes += found.size_bytes
    return Collected(objects, size_bytes, backend.sweep(now_s - grace_s))


def keep(backend: Backend, digest: str, size_bytes: int) -> bool:
    """Whether an object is there and whole, which is read for that. It then is young again, so
    that no collection takes it before the name appears."""
    return backend.touch(digest, size_bytes, YOUNG_S) and _is_whole(backend, digest, size_bytes)


def check_present(backend: Backend, sizes: Mapping[str, int]) -> None:
    """The last look before a name appears: objects may have grown old, and been collected, while
    a long import or copy went on. Raises Unavailable naming what is gone."""
    touch = partial(backend.touch, older_s=YOUNG_S)
    with ThreadPoolExecutor(THREADS, "touch") as pool:
        present = pool.map(touch, sizes, sizes.values())
        for digest, there in zip(sizes, present, strict=True):
            if not there:
                raise Unavailable(
                    f"object {digest} was deleted meanwhile; do it again", field="digest"
                )


def copy(
    source: Backend, target: Backend, name: str, progress: Progress | None = None
) -> tuple[str, int]:
    """Copies a model from store to store; its digest and the bytes that were not there yet.

    Every object is verified on its way; the name appears last.
    """
    digest = find_manifest(source, name)
    data, manifest = read_manifest(source, digest)
    total_bytes = sum(manifest.objects().values())
    done_bytes = copied_bytes = 0
    for size_bytes, copied in _copied(source, target, manifest):
        done_bytes += size_bytes
        copied_bytes += size_bytes * copied
        if progress is not None:
            progress(done_bytes, total_bytes)
    _copy_object(source, target, digest, len(data))
    check_present(target, manifest.objects() | {digest: len(data)})
    target.publish(name, digest)
    return digest, copied_bytes


def _copied(source: Backend, target: Backend, manifest: Manifest) -> Iterator[tuple[int, bool]]:
    sizes = manifest.objects()
    with ThreadPoolExecutor(THREADS // 2, "copy") as pool:
        copied = pool.map(partial(_copy_object, source, target), sizes, sizes.values())
        yield from zip(sizes.values(), copied, strict=True)


def _copy_object(source: Backend, target: Backend, digest: str, size_bytes: int) -> bool:
    if keep(target, digest, size_bytes):
        return False
    path, whole = target.scratch() / uuid.uuid4().hex, blake3()
    try:
        with path.open("wb") as file, closing(source.pieces(digest, 0, size_bytes)) as pieces:
            for piece in pieces:
                whole.update(piece)
                file.write(piece)
        if whole.hexdigest() != digest:
            raise DataLoss(f"object {digest} is damaged", field="digest")
        target.put(digest, path)
    except OSError as error:
        raise translate(error) from None
    finally:
        discard(path)
    return True
