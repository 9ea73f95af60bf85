"""The blocks that a stage fetches, as they come in pieces: what of them is whole, and what lacks.

Nothing of a piece is believed. One that was not asked for, that comes twice, is too short or too
long, or whose checksum is another, counts for nothing: its block lacks a part, and is computed
again with all behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.engine.core.kv_layout import KvLayout, KvPiece, checksum_of


class Gathering:
    """Of one beginning of a sequence."""

    def __init__(self, layout: KvLayout, layers: range, names: Sequence[bytes]) -> None:
        self.layout, self.layers, self._names = layout, layers, names
        self._data: dict[bytes, bytes | bytearray | memoryview] = {}
        self._lacking = {name: set(layers) for name in names}
        self.refused = 0
        """Pieces that counted for nothing."""

    @property
    def whole(self) -> int:
        """So many blocks from the first on have all their layers."""
        for index, name in enumerate(self._names):
            if self._lacking[name]:
                return index
        return len(self._names)

    def blocks(self, count: int) -> list[tuple[bytes, memoryview]]:
        """The first so many, each behind its name."""
        return [(name, self.block(name)) for name in self._names[:count]]

    def block(self, name: bytes) -> memoryview:
        """One that lacks no layer."""
        return memoryview(self._data[name])

    def lacking(self, layers: range) -> list[bytes]:
        """Blocks that lack one of these layers."""
        return [name for name in self._names if not self._lacking[name].isdisjoint(layers)]

    def put(self, name: bytes, layers: range, data: bytes | memoryview) -> None:
        """What this process has itself."""
        if layers == self.layers:  # as it is, for it may be much
            self._data[name] = data
        else:
            if name not in self._data:
                self._data[name] = bytearray(self.layout.size_bytes(self.layers))
            start = (layers.start - self.layers.start) * self.layout.layer_bytes
            memoryview(self._data[name])[start : start + len(data)] = data
        self._lacking[name].difference_update(layers)

    def take(self, piece: KvPiece) -> bool:
        """What another one says; False: it counts for nothing."""
        if not self._is_good(piece):
            self.refused += 1
            return False
        self.put(piece.name, piece.layers, piece.data)
        return True

    def _is_good(self, piece: KvPiece) -> bool:
        lacking = self._lacking.get(piece.name)
        if lacking is None or not piece.layers or not lacking.issuperset(piece.layers):
            return False
        if len(piece.data) != self.layout.size_bytes(piece.layers):
            return False
        own = checksum_of(self.layout.name, piece.name, piece.layers, piece.data)
        return own == piece.checksum
