"""The manifest of a stored model (TRAW version 1): what it is made of, each byte accounted for.

The format is specified in docs/tensor-format.md. `parse` accepts nothing it does not know: a
field, type, size, overlap or hole that is wrong raises DataLoss, whatever the bytes.
"""

from __future__ import annotations

import base64
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.common.errors import DataLoss, InvalidArgument
from services.model.config import MAX_LAYERS
from services.model.fields import SIZE_LIMIT
from services.model.tensor_parallel import UNITS
from services.tensorstore.format.dtypes import ITEM_BYTES
from services.tensorstore.format.names import check_digest, check_file_name, is_tensor_name
from services.tensorstore.format.tiling import Tiling

FORMAT, VERSION = "traw", 1
ALIGNMENT_BYTES = 64
MANIFEST_LIMIT_BYTES = 64 << 20
OBJECT_LIMIT_BYTES = 1 << 46
MAX_TENSORS = 1 << 18
MAX_FILES = 64
MAX_RANK = 4


@dataclass(frozen=True)
class StoredFile:
    """A file beside the weights (a tokenizer, a generation config), kept as an object."""

    digest: str
    size_bytes: int


class Chunk(NamedTuple):  # a tuple, for thousands are made at every load
    """One object of weights; tiles are the pieces that are verified, and fetched, one by one."""

    digest: str  # BLAKE3 of the whole object
    size_bytes: int
    ends: tuple[int, ...]  # where each tile ends, in bytes; the last is size_bytes
    tile_digests: bytes  # BLAKE3 of each tile, 32 bytes apiece

    def tiles_over(self, start: int, stop: int) -> range:
        """The tiles that hold the bytes [start, stop)."""
        return range(bisect_right(self.ends, start), bisect_left(self.ends, stop) + 1)

    def tile_bytes(self, tile: int) -> tuple[int, int]:
        """The half-open byte range of one tile."""
        return (self.ends[tile - 1] if tile else 0), self.ends[tile]

    def span(self, tiles: Iterable[int]) -> int:
        """How many bytes these tiles hold together."""
        return sum(stop - start for start, stop in map(self.tile_bytes, tiles))

    def tile_digest(self, tile: int) -> bytes:
        return self.tile_digests[tile * 32 : tile * 32 + 32]


class Tensor(NamedTuple):
    """One tensor: its original shape, and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    layer: int  # -1 before the first layer, number of layers behind the last
    unit: str | None
    axis: int  # 1: stored transposed
    chunk: int
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """A whole version of a model."""

    config: Mapping[str, Any]
    files: Mapping[str, StoredFile]
    tied: bool
    tiling: Tiling
    chunks: tuple[Chunk, ...]
    tensors: tuple[Tensor, ...]
    by_name: Mapping[str, Tensor] = field(compare=False, repr=False, default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of all distinct chunks."""
        return sum({chunk.digest: chunk.size_bytes for chunk in self.chunks}.values())

    @property
    def is_tiled(self) -> bool:
        """Whether a rank's part of its tensors can be read alone; else each is kept whole."""
        return any(tensor.unit is not None for tensor in self.tensors)

    def part_bytes(self) -> tuple[int, ...]:
        """Bytes of the tensors before the first layer, of each layer, and behind the last."""
        parts = [0] * (self.tiling.layers + 2)
        for tensor in self.tensors:
            parts[tensor.layer + 1] += tensor.size_bytes
        return tuple(parts)

    def objects(self) -> dict[str, int]:
        """Digest and size of everything the manifest names."""
        found = {chunk.digest: chunk.size_bytes for chunk in self.chunks}
        found.update((file.digest, file.size_bytes) for file in self.files.values())
        return found


def align(offset: int) -> int:
    """The next multiple of the tensor alignment."""
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def dump(manifest: Manifest) -> bytes:
    """Canonical JSON: the same model gives the same bytes, and so the same digest."""
    tiling = manifest.tiling
    document = {
        "format": FORMAT,
        "version": VERSION,
        "config": dict(manifest.config),
        "files": {
            name: {"digest": file.digest, "size": file.size_bytes}
            for name, file in manifest.files.items()
        },
        "tied": manifest.tied,
        "tiling": {
            "layers": tiling.layers,
            "heads": tiling.heads,
            "kv_heads": tiling.kv_heads,
            "intermediate": tiling.intermediate,
            "vocabulary": tiling.vocabulary,
        },
        "chunks": {
            "digest": [chunk.digest for chunk in manifest.chunks],
            "size": [chunk.size_bytes for chunk in manifest.chunks],
            "ends": [list(chunk.ends) for chunk in manifest.chunks],
            "tiles": base64.b64encode(
                b"".join(chunk.tile_digests for chunk in manifest.chunks)
            ).decode("ascii"),
        },
        "tensors": {
            "name": [tensor.name for tensor in manifest.tensors],
            "dtype": [tensor.dtype for tensor in manifest.tensors],
            "shape": [list(tensor.shape) for tensor in manifest.tensors],
            "layer": [tensor.layer for tensor in manifest.tensors],
            "unit": [tensor.unit for tensor in manifest.tensors],
            "axis": [tensor.axis for tensor in manifest.tensors],
            "chunk": [tensor.chunk for tensor in manifest.tensors],
            "offset": [tensor.offset for tensor in manifest.tensors],
        },
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse(data: bytes) -> Manifest:
    """The manifest in these bytes; raises DataLoss naming what is wrong with them."""
    try:
        document = load_json(data, MANIFEST_LIMIT_BYTES)
        return _manifest(document)
    except InvalidArgument as error:
        raise DataLoss(f"manifest: {error.message}", field=error.field) from None


def load_json(data: bytes, limit_bytes: int) -> dict[str, Any]:
    """A JSON object from hostile bytes; raises InvalidArgument."""
    if not 2 <= len(data) <= limit_bytes:
        raise InvalidArgument(f"JSON of {len(data)} bytes, allowed are 2 to {limit_bytes}")
    try:
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant
        )
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"not JSON: {ascii(str(error))[:120]}") from None
    if not isinstance(document, dict):
        raise InvalidArgument("not a JSON object")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidArgument("a JSON key occurs twice")
    return found


def _constant(text: str) -> Any:
    raise InvalidArgument(f"{text} is not JSON")


def _manifest(document: dict[str, Any]) -> Manifest:
    _fields(document, _MANIFEST_FIELDS, "manifest")
    if document["format"] != FORMAT:
        raise InvalidArgument("not a TRAW manifest", field="format")
    _integer(document["version"], VERSION, VERSION, "version")
    config, files = document["config"], document["files"]
    if not isinstance(config, dict) or not isinstance(files, dict):
        raise InvalidArgument("config and files must be objects", field="config")
    if not isinstance(document["tied"], bool):
        raise InvalidArgument("tied must be true or false", field="tied")
    if len(files) > MAX_FILES:
        raise InvalidArgument(f"more than {MAX_FILES} files", field="files")
    tiling = _tiling(document["tiling"])
    chunks = _chunks(document["chunks"])
    tensors = _tensors(document["tensors"], len(chunks), tiling)
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) != len(tensors):
        raise InvalidArgument("a tensor name occurs twice", field="tensors")
    _check_coverage(chunks, tensors)
    return Manifest(
        config=config,
        files={check_file_name(name): _file(entry) for name, entry in files.items()},
        tied=document["tied"],
        tiling=tiling,
        chunks=chunks,
        tensors=tensors,
        by_name=by_name,
    )


_MANIFEST_FIELDS = frozenset(
    ("format", "version", "config", "files", "tied", "tiling", "chunks", "tensors")
)
_TILING_FIELDS = frozenset(("layers", *UNITS))
_CHUNK_FIELDS = frozenset(("digest", "size", "ends", "tiles"))
_TENSOR_FIELDS = frozenset(("name", "dtype", "shape", "layer", "unit", "axis", "chunk", "offset"))
_FILE_FIELDS = frozenset(("digest", "size"))


def _fields(entry: Any, wanted: frozenset[str], what: str) -> None:
    if not isinstance(entry, dict) or entry.keys() != wanted:
        raise InvalidArgument(f"{what} must have exactly {sorted(wanted)}", field=what)


def _integer(value: Any, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InvalidArgument(f"{what} must be an integer from {low} to {high}", field=what)
    return value


def _tiling(entry: Any) -> Tiling:
    _fields(entry, _TILING_FIELDS, "tiling")
    numbers = {key: _integer(entry[key], 1, SIZE_LIMIT, key) for key in UNITS}
    if numbers["heads"] % numbers["kv_heads"]:
        raise InvalidArgument("heads must be a multiple of kv_heads", field="kv_heads")
    return Tiling(layers=_integer(entry["layers"], 1, MAX_LAYERS, "layers"), **numbers)


def _file(entry: Any) -> StoredFile:
    _fields(entry, _FILE_FIELDS, "file")
    size = _integer(entry["size"], 0, MANIFEST_LIMIT_BYTES, "file size")
    return StoredFile(check_digest(entry["digest"]), size)


def _columns(table: Any, wanted: frozenset[str], what: str) -> list[list[Any]]:
    """The columns of a table, in the order of their names; all as long as the first."""
    _fields(table, wanted, what)
    columns = [table[key] for key in sorted(wanted)]
    if not all(isinstance(column, list) for column in columns):
        raise InvalidArgument(f"{what} must have lists as columns", field=what)
    if not 1 <= len(columns[0]) <= MAX_TENSORS:
        raise InvalidArgument(f"{what} must number 1 to {MAX_TENSORS}", field=what)
    if len(set(map(len, columns))) != 1:
        raise InvalidArgument(f"{what} must have columns of one length", field=what)
    return columns


def _integers(column: list[Any], low: int, high: int, what: str) -> None:
    if set(map(type, column)) != {int} or min(column) < low or max(column) > high:
        raise InvalidArgument(f"{what} must hold integers from {low} to {high}", field=what)


def _chunks(table: Any) -> tuple[Chunk, ...]:
    _fields(table, _CHUNK_FIELDS, "chunks")
    columns = {key: table[key] for key in ("digest", "ends", "size")}
    digests, ends, sizes = _columns(columns, frozenset(columns), "chunks")
    _integers(sizes, 1, OBJECT_LIMIT_BYTES, "chunk size")
    tiles = table["tiles"]
    try:
        tile_digests = base64.b64decode(tiles, validate=True) if isinstance(tiles, str) else b""
    except ValueError:
        tile_digests = b""
    found, at = [], 0
    for digest, size, chunk_ends in zip(digests, sizes, ends, strict=True):
        check_digest(digest, "chunk digest")
        if not isinstance(chunk_ends, list) or set(map(type, chunk_ends)) != {int}:
            raise InvalidArgument("ends must be lists of integers", field="ends")
        rising = chunk_ends == sorted(set(chunk_ends))
        if not rising or chunk_ends[0] < 1 or chunk_ends[-1] != size:
            raise InvalidArgument("ends must rise, the last to the chunk's size", field="ends")
        stop = at + 32 * len(chunk_ends)
        found.append(Chunk(digest, size, tuple(chunk_ends), tile_digests[at:stop]))
        at = stop
    if at != len(tile_digests):
        raise InvalidArgument("tiles must hold one digest for each end, in base64", field="tiles")
    distinct = len(set(digests))
    if distinct != len(digests) and distinct != len(set(found)):
        raise InvalidArgument("one digest stands for different chunks", field="digest")
    return tuple(found)


def _tensors(table: Any, chunks: int, tiling: Tiling) -> tuple[Tensor, ...]:
    columns = _columns(table, _TENSOR_FIELDS, "tensors")
    _integers(table["axis"], 0, 1, "axis")
    _integers(table["chunk"], 0, chunks - 1, "chunk")
    _integers(table["layer"], -1, tiling.layers, "layer")
    _integers(table["offset"], 0, OBJECT_LIMIT_BYTES, "offset")
    counts = {unit: tiling.units(unit) for unit in UNITS}
    found = []
    for axis, chunk, dtype, layer, name, offset, shape, unit in zip(*columns, strict=True):
        if not isinstance(name, str) or not is_tensor_name(name):
            raise InvalidArgument("name must be 1 to 128 of A-Z a-z 0-9 . _", field="name")
        size = ITEM_BYTES.get(dtype) if isinstance(dtype, str) else None
        if size is None:
            raise InvalidArgument(f"dtype must be one of {', '.join(ITEM_BYTES)}", field="dtype")
        if not isinstance(shape, list) or len(shape) > MAX_RANK:
            raise InvalidArgument(f"shape must have up to {MAX_RANK} extents", field="shape")
        for extent in shape:
            if type(extent) is not int or extent < 1:
                raise InvalidArgument("shape must have positive integers", field="shape")
            size *= extent
        if size > OBJECT_LIMIT_BYTES:
            raise InvalidArgument(f"size of {name} exceeds {OBJECT_LIMIT_BYTES}", field="shape")
        if axis and (len(shape) != 2 or unit is None):
            raise InvalidArgument("axis is 1 only for a matrix that is cut", field="axis")
        if unit is not None:
            if not isinstance(unit, str) or unit not in counts:
                raise InvalidArgument(f"unit must be null or one of {UNITS}", field="unit")
            if not shape or shape[axis] % counts[unit]:
                raise InvalidArgument(f"shape of {name} is not whole {unit}", field="shape")
        found.append(Tensor(name, dtype, tuple(shape), layer, unit, axis, chunk, offset, size))
    return tuple(found)


def _check_coverage(chunks: Sequence[Chunk], tensors: Sequence[Tensor]) -> None:
    """Tensors follow each other in their chunk: no overlap, no hole, nothing behind the last."""
    ends = [0] * len(chunks)
    for tensor in tensors:
        index, offset = tensor.chunk, tensor.offset
        if offset != align(ends[index]):
            raise InvalidArgument("a tensor overlaps another or leaves a hole", field="offset")
        ends[index] = offset + tensor.size_bytes
    for end, chunk in zip(ends, chunks, strict=True):
        if end != chunk.size_bytes:
            raise InvalidArgument("a chunk is not the size of its tensors", field="size")
