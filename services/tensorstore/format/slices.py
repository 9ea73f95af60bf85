"""The bytes one rank of one stage needs: layer range and TP rank to ranges of chunks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.common.errors import InvalidArgument
from services.tensorstore.format.manifest import Manifest, Tensor


class TensorSlice(NamedTuple):
    """What a rank holds of one tensor: stored rows [first, last) and where their bytes lie."""

    tensor: Tensor
    start: int  # bytes from the chunk's beginning
    stop: int
    shape: tuple[int, ...]  # of the slice, in the tensor's original orientation

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


class Range(NamedTuple):
    """Bytes [start, stop) of a chunk, by its place in the manifest; tile bounds at both ends."""

    chunk: int
    tiles: tuple[int, ...]


@dataclass(frozen=True)
class Selection:
    """One rank's part of a range of layers of one version of a model."""

    digest: str
    manifest: Manifest
    start: int
    end: int
    degree: int
    rank: int
    pieces: Sequence[TensorSlice]
    ranges: Sequence[Range]

    @classmethod
    def of(
        cls, digest: str, manifest: Manifest, start: int, end: int, degree: int = 1, rank: int = 0
    ) -> Selection:
        """Raises InvalidArgument for a range or degree that the model does not have."""
        pieces = select(manifest, start, end, degree, rank)
        ranges = tiles_of(manifest, pieces)
        return cls(digest, manifest, start, end, degree, rank, pieces, ranges)

    @property
    def size_bytes(self) -> int:
        """Bytes to fetch for it."""
        return sum(self.manifest.chunks[r.chunk].span(r.tiles) for r in self.ranges)


def check_layers(manifest: Manifest, start: int, end: int) -> None:
    """Raises InvalidArgument unless [start, end) is a range of the model's layers."""
    layers = manifest.tiling.layers
    if not 0 <= start < end <= layers:
        raise InvalidArgument(
            f"layers {start}:{end} are not a range within 0:{layers}", field="layers"
        )


def slice_tensor(manifest: Manifest, tensor: Tensor, degree: int, rank: int) -> TensorSlice:
    """One rank's part of a tensor; the degree was checked before."""
    if tensor.unit is None or degree == 1:
        stop = tensor.offset + tensor.size_bytes
        return TensorSlice(tensor, tensor.offset, stop, tensor.shape)
    first, last = manifest.tiling.unit_range(tensor.unit, degree, rank)
    extent = tensor.shape[tensor.axis]
    rows = extent // manifest.tiling.units(tensor.unit)
    row_bytes = tensor.size_bytes // extent
    shape = list(tensor.shape)
    shape[tensor.axis] = (last - first) * rows
    start = tensor.offset + first * rows * row_bytes
    stop = tensor.offset + last * rows * row_bytes
    return TensorSlice(tensor, start, stop, tuple(shape))


def select(
    manifest: Manifest, start: int, end: int, degree: int = 1, rank: int = 0
) -> list[TensorSlice]:
    """The slices of layers [start, end) for one rank, in stored order.

    The first range carries the embedding, the last the final norm and the lm_head (of a model
    with tied weights: the embedding). Tensors that are kept whole come whole to every rank.
    Raises InvalidArgument for a range or degree that the model does not have.
    """
    check_layers(manifest, start, end)
    manifest.tiling.check_degree(degree, rank)
    low = -1 if start == 0 else start
    high = end + 1 if end == manifest.tiling.layers else end
    tied_head = manifest.tied and high > end
    return [
        slice_tensor(manifest, tensor, degree, rank)
        for tensor in manifest.tensors
        if low <= tensor.layer < high or (tied_head and tensor.layer == -1)
    ]


def tiles_of(manifest: Manifest, wanted: Iterable[TensorSlice]) -> Sequence[Range]:
    """The tiles that hold these slices, each once, by chunk; slices come in stored order."""
    found: dict[int, list[int]] = {}
    for piece in wanted:
        index = piece.tensor.chunk
        over = manifest.chunks[index].tiles_over(piece.start, piece.stop)
        tiles = found.get(index)
        if tiles is None:
            found[index] = list(over)
        else:
            tiles.extend(over if over.start > tiles[-1] else over[1:])
    return [Range(index, tuple(tiles)) for index, tiles in found.items()]
