"""Digests of a chunk's tiles, compared as the bytes go by."""

from __future__ import annotations

from blake3 import blake3

from services.common.errors import DataLoss
from services.tensorstore.format.manifest import Chunk


class TileCheck:
    """Takes a chunk's bytes in order, from the first byte of a tile on."""

    def __init__(self, chunk: Chunk, tile: int = 0) -> None:
        self._chunk = chunk
        self._tile = tile
        self._at = chunk.tile_bytes(tile)[0]
        self._hash = blake3()

    def update(self, data: bytes | memoryview) -> None:
        """Raises DataLoss at the end of a tile whose digest is wrong, and behind the last."""
        data, done = memoryview(data), 0
        while done < len(data):
            if self._tile == len(self._chunk.ends):
                raise DataLoss(f"chunk {self._chunk.digest} has bytes too many", field="chunk")
            end = self._chunk.ends[self._tile]
            step = min(end - self._at, len(data) - done)
            self._hash.update(data[done : done + step])
            done += step
            self._at += step
            if self._at == end:
                self._compare()

    def _compare(self) -> None:
        if self._hash.digest() != self._chunk.tile_digest(self._tile):
            start, stop = self._chunk.tile_bytes(self._tile)
            raise DataLoss(
                f"chunk {self._chunk.digest} is damaged in bytes {start} to {stop}", field="chunk"
            )
        self._tile += 1
        self._hash = blake3()

    @property
    def tile(self) -> int:
        """The tile that is not complete."""
        return self._tile

    @property
    def at(self) -> int:
        """Where in the chunk the next byte belongs."""
        return self._at

    def restart(self) -> None:
        """Goes back to the beginning of the tile that is not complete."""
        self._at = self._chunk.ends[self._tile - 1] if self._tile else 0
        self._hash = blake3()
