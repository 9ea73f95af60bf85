"""Turns a checkpoint into chunks and a manifest, one piece at a time.

Peak memory is one tensor (for those stored transposed) plus a buffer. Every chunk is written
under its digest, so an import that was interrupted finds what it wrote before and goes on; the
model's name appears last, in one step. What is found is read before it is relied on, so that an
import also mends a damaged store.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from blake3 import blake3

from services.common.errors import InvalidArgument
from services.common.results import discard
from services.model.tensors import EMBEDDING, LM_HEAD
from services.tensorstore.format.dtypes import item_bytes
from services.tensorstore.format.manifest import (
    Chunk,
    Manifest,
    StoredFile,
    Tensor,
    align,
    dump,
    parse,
)
from services.tensorstore.format.names import check_file_name, check_model_name
from services.tensorstore.format.tiling import Placement, Tiling, place, place_whole
from services.tensorstore.places.backend import Backend, digest_of
from services.tensorstore.places.directory import translate
from services.tensorstore.sources.checkpoint import SourceTensor, WeightsCheckpoint, check
from services.tensorstore.upkeep import check_present, keep

TILE_BYTES = 8 << 20
OWN_CHUNK_BYTES = 16 << 20
SHARED_CHUNK_BYTES = 256 << 20
BUFFER_BYTES = 4 << 20

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    digest: str
    manifest: Manifest
    stored_bytes: int  # newly written
    kept_bytes: int  # were there already


def import_checkpoint(
    checkpoint: WeightsCheckpoint, backend: Backend, name: str, progress: Progress | None = None
) -> Imported:
    """Stores a checkpoint under a name; a version under that name is replaced in one step."""
    check_model_name(name)
    found = check(checkpoint)
    tiling, tied = Tiling.of_outline(found.outline), found.tied
    where = place if found.tiled else place_whole
    repeated = tied and {EMBEDDING, LM_HEAD} <= checkpoint.tensors.keys()
    placed = [
        (where(tensor.name, tiling.layers), tensor)
        for tensor in checkpoint.tensors.values()
        if not (repeated and tensor.name == LM_HEAD)
    ]
    if repeated:
        _check_same(checkpoint)
    placed.sort(key=lambda item: (item[0].layer, item[0].order, item[1].name))
    total_bytes = sum(tensor.size_bytes for _, tensor in placed)
    packer = _Packer(checkpoint, backend, tiling, total_bytes, progress)
    for group in _groups(placed):
        packer.pack(group)
    files = {
        check_file_name(file_name): StoredFile(packer.put_bytes(data), len(data))
        for file_name, data in sorted(checkpoint.files.items())
    }
    manifest = Manifest(
        config=checkpoint.config,
        files=files,
        tied=tied,
        tiling=tiling,
        chunks=tuple(packer.chunks),
        tensors=tuple(packer.tensors),
        by_name={tensor.name: tensor for tensor in packer.tensors},
    )
    data = dump(manifest)
    parse(data)  # a name that no reader can follow would keep garbage from being collected, too
    digest = packer.put_bytes(data)
    check_present(backend, manifest.objects() | {digest: len(data)})
    backend.publish(name, digest)
    return Imported(digest, manifest, packer.stored_bytes, packer.kept_bytes)


def _check_same(checkpoint: WeightsCheckpoint) -> None:
    """A tied model may carry its lm_head a second time, if it is the embedding."""
    head, embedding = checkpoint.tensors[LM_HEAD], checkpoint.tensors[EMBEDDING]
    same = head.shape == embedding.shape and head.dtype == embedding.dtype
    if same:
        one, other = (blake3(), blake3())
        for piece in stored_bytes(checkpoint, head, 0):
            one.update(piece)
        for piece in stored_bytes(checkpoint, embedding, 0):
            other.update(piece)
        same = one.digest() == other.digest()
    if not same:
        raise InvalidArgument(
            "config.json: tie_word_embeddings: is true, but lm_head.weight is not the embedding",
            field="tie_word_embeddings",
        )


def _groups(
    placed: list[tuple[Placement, SourceTensor]],
) -> Iterator[list[tuple[Placement, SourceTensor]]]:
    """Tensors that share a chunk: large ones have their own, the small ones of a layer share, of
    many experts as many as fit."""
    small: list[tuple[Placement, SourceTensor]] = []
    shared_bytes = 0
    for where, tensor in placed:
        full = shared_bytes + tensor.size_bytes > SHARED_CHUNK_BYTES
        if small and (small[0][0].layer != where.layer or full):
            yield small
            small, shared_bytes = [], 0
        if tensor.size_bytes >= OWN_CHUNK_BYTES:
            yield [(where, tensor)]
        else:
            small.append((where, tensor))
            shared_bytes += align(tensor.size_bytes)
    if small:
        yield small


def stored_bytes(
    checkpoint: WeightsCheckpoint, tensor: SourceTensor, axis: int
) -> Iterator[memoryview]:
    """A tensor's bytes as they are stored; each view is good until the next is asked for."""
    row_bytes, rows = tensor.row_bytes, tensor.rows
    if axis == 0:
        step = max(1, BUFFER_BYTES // row_bytes)
        buffer = memoryview(bytearray(min(step, rows) * row_bytes))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            view = buffer[: (last - first) * row_bytes]
            checkpoint.read_rows(tensor.name, first, last, view)
            yield view
        return
    whole: Any = np.empty((rows, tensor.shape[1]), dtype=f"u{item_bytes(tensor.dtype)}")
    checkpoint.read_rows(tensor.name, 0, rows, memoryview(whole).cast("B"))
    step = max(1, BUFFER_BYTES // (rows * whole.itemsize))
    for first in range(0, tensor.shape[1], step):
        columns: Any = np.ascontiguousarray(whole[:, first : first + step].T)
        yield memoryview(columns).cast("B")


def tile_ends(tiling: Tiling, where: Placement, size_bytes: int) -> list[int]:
    """Where a tensor's tiles end, from its first byte: every cut of every degree, and in between
    at most TILE_BYTES."""
    cuts = [0, size_bytes]
    if where.unit is not None:
        unit_bytes = size_bytes // tiling.units(where.unit)
        cuts = [cut * unit_bytes for cut in tiling.cuts(where.unit)]
    ends: list[int] = []
    for start, stop in itertools.pairwise(cuts):
        ends.extend(range(start + TILE_BYTES, stop, TILE_BYTES))
        ends.append(stop)
    return ends


class _Packer:
    """Writes one chunk after another."""

    def __init__(
        self,
        checkpoint: WeightsCheckpoint,
        backend: Backend,
        tiling: Tiling,
        total_bytes: int,
        progress: Progress | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._backend = backend
        self._tiling = tiling
        self._total_bytes = total_bytes
        self._progress = progress
        self._done_bytes = 0
        self.chunks: list[Chunk] = []
        self.tensors: list[Tensor] = []
        self.stored_bytes = 0
        self.kept_bytes = 0

    def pack(self, group: list[tuple[Placement, SourceTensor]]) -> None:
        path = self._scratch_file()
        try:
            with path.open("wb", buffering=0) as file:
                chunk = self._write(group, file)
            self._put(chunk.digest, chunk.size_bytes, path)
        except OSError as error:
            raise translate(error) from None
        finally:
            discard(path)
        self.chunks.append(chunk)

    def put_bytes(self, data: bytes) -> str:
        path, digest = self._scratch_file(), digest_of(data)
        try:
            path.write_bytes(data)
            self._put(digest, len(data), path)
        except OSError as error:
            raise translate(error) from None
        finally:
            discard(path)
        return digest

    def _put(self, digest: str, size_bytes: int, path: Path) -> None:
        if keep(self._backend, digest, size_bytes):
            self.kept_bytes += size_bytes
            return
        self._backend.put(digest, path)
        self.stored_bytes += size_bytes

    def _scratch_file(self) -> Path:
        return self._backend.scratch() / f"{os.getpid()}-{uuid.uuid4().hex}"

    def _write(self, group: list[tuple[Placement, SourceTensor]], file: BinaryIO) -> Chunk:
        ends: list[int] = []
        offsets: list[int] = []
        for where, tensor in group:
            offset = align(ends[-1] if ends else 0)
            offsets.append(offset)
            ends += [offset + end for end in tile_ends(self._tiling, where, tensor.size_bytes)]
        hashes = _Hashes(ends)
        for offset, (where, tensor) in zip(offsets, group, strict=True):
            if offset > hashes.position:  # padding opens the tile of the tensor behind it
                padding = bytes(offset - hashes.position)
                hashes.update(memoryview(padding))
                _write_all(file, memoryview(padding))
            for piece in stored_bytes(self._checkpoint, tensor, where.axis):
                hashes.update(piece)
                _write_all(file, piece)
                self._done_bytes += len(piece)
                if self._progress is not None:
                    self._progress(self._done_bytes, self._total_bytes)
            self.tensors.append(
                Tensor(
                    name=tensor.name,
                    dtype=tensor.dtype,
                    shape=tensor.shape,
                    layer=where.layer,
                    unit=where.unit,
                    axis=where.axis,
                    chunk=len(self.chunks),
                    offset=offset,
                    size_bytes=tensor.size_bytes,
                )
            )
        return Chunk(hashes.whole.hexdigest(), ends[-1], tuple(ends), b"".join(hashes.tiles))


class _Hashes:
    """Digests of a chunk and of each of its tiles, as the bytes go by."""

    def __init__(self, ends: list[int]) -> None:
        self._ends = ends
        self._tile = blake3()
        self.whole = blake3()
        self.tiles: list[bytes] = []
        self.position = 0

    def update(self, data: memoryview) -> None:
        self.whole.update(data)
        done = 0
        while done < len(data):
            step = min(self._ends[len(self.tiles)] - self.position, len(data) - done)
            self._tile.update(data[done : done + step])
            done += step
            self.position += step
            if self.position == self._ends[len(self.tiles)]:
                self.tiles.append(self._tile.digest())
                self._tile = blake3()


def _write_all(file: BinaryIO, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += file.write(data[done:])
