"""KV blocks that a process keeps for whoever goes on elsewhere, outside any cache.

They lie in the host's memory, so they outlive the formation that computed them, whose cache makes
room for what follows at once. What is kept is bounded in bytes and in time; what does not fit is
not kept, and will be computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from services.engine.core.kv_layout import KvLayout


@dataclass(slots=True, eq=False)
class Kept:
    """What a stage had of a block."""

    layout: KvLayout
    name: bytes
    layers: range
    data: bytes | memoryview
    until_s: float


class Shelf:
    """Of one process, whatever stages it has had."""

    def __init__(self, limit_bytes: int, keep_s: float) -> None:
        self._limit_bytes, self.keep_s = limit_bytes, keep_s
        self._by_name: dict[tuple[str, bytes], list[Kept]] = {}
        self._order: list[tuple[float, int, Kept]] = []
        """A heap: what may go first comes first. What was kept for longer since goes back."""
        self._numbers = count()
        self._last_s = 0.0
        self._complete: dict[str, tuple[KvLayout, float]] = {}
        """Formations of which nothing more comes: how blocks lie there, until when that counts."""
        self.used_bytes = 0

    def keeps_for_s(self, now_s: float) -> float:
        """When the last of it goes."""
        return max(0.0, self._last_s - now_s)

    def room(self, size_bytes: int, now_s: float, share: float = 1.0) -> int:
        """How many blocks of this size fit into this share of it, beside all that is there."""
        self.forget(now_s)
        return max(0, int(share * self._limit_bytes) - self.used_bytes) // size_bytes

    def renew(
        self,
        layout_name: str,
        name: bytes,
        layers: range,
        now_s: float,
        keep_s: float | None = None,
    ) -> bool:
        """Keeps what it has of a block of just these layers as long as if it came now; False: it
        has not."""
        self.forget(now_s)
        for kept in self._by_name.get((layout_name, name), []):
            if kept.layers == layers:
                kept.until_s = max(kept.until_s, self._until_s(now_s, keep_s))
                return True
        return False

    def put(
        self,
        layout: KvLayout,
        name: bytes,
        layers: range,
        data: bytes | memoryview,
        now_s: float,
        keep_s: float | None = None,
        share: float = 1.0,
    ) -> bool:
        """Keeps what a stage has of a block for `keep_s`, or as long as the shelf keeps it; False:
        there is no room in this share of it."""
        if self.renew(layout.name, name, layers, now_s, keep_s):
            return True
        if self.used_bytes + len(data) > share * self._limit_bytes:
            return False
        kept = Kept(layout, name, layers, data, self._until_s(now_s, keep_s))
        self._by_name.setdefault((layout.name, name), []).append(kept)
        heappush(self._order, (kept.until_s, next(self._numbers), kept))
        self.used_bytes += len(data)
        return True

    def complete(
        self, formation_id: str, layout: KvLayout, now_s: float, keep_s: float | None = None
    ) -> None:
        """All that will be kept of a formation is; that counts for as long as what is put."""
        kept_s = self.keep_s if keep_s is None else keep_s
        self._complete[formation_id] = layout, now_s + kept_s

    def layout_of(self, formation_id: str, now_s: float) -> KvLayout | None:
        """How blocks of a formation lie of which nothing more comes; None for one that is not
        known, or not any more."""
        self.forget(now_s)
        return self._complete.get(formation_id, (None, 0.0))[0]

    def find(
        self, layout_name: str, name: bytes, layers: range, now_s: float
    ) -> Iterator[tuple[range, memoryview]]:
        """What there is of a block's layers, each layer once."""
        self.forget(now_s)
        end = layers.start
        for kept in sorted(
            self._by_name.get((layout_name, name), []), key=lambda kept: kept.layers.start
        ):
            wanted = range(max(end, kept.layers.start), min(layers.stop, kept.layers.stop))
            if wanted:
                yield wanted, kept.layout.cut(kept.data, kept.layers, wanted)
                end = wanted.stop

    def _until_s(self, now_s: float, keep_s: float | None) -> float:
        until_s = now_s + (self.keep_s if keep_s is None else keep_s)
        self._last_s = max(self._last_s, until_s)
        return until_s

    def forget(self, now_s: float) -> None:
        """What was kept for long enough goes, and its memory with it."""
        while self._order and self._order[0][0] <= now_s:
            _, number, kept = heappop(self._order)
            if kept.until_s > now_s:
                heappush(self._order, (kept.until_s, number, kept))
                continue
            key = (kept.layout.name, kept.name)
            held = [other for other in self._by_name[key] if other is not kept]
            if held:
                self._by_name[key] = held
            else:
                del self._by_name[key]
            self.used_bytes -= len(kept.data)
        for formation_id, (_, until_s) in list(self._complete.items()):
            if until_s <= now_s:
                del self._complete[formation_id]
