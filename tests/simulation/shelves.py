"""Blocks on shelves and on their way from one to another: what a process takes for a block is the
block, however its peers lie, and a shelf keeps what it said it would, and no more.

A process keeps blocks of some layers, for some seconds, and fetches what it lacks of others in
pieces, some of which are flipped, cut, doubled or another's. `python shelves.py FIRST COUNT
PATIENCE` prints the first violation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random

from seeds import program
from watch import Violation, judged

from services.engine.core.gathering import Gathering
from services.engine.core.kv_layout import KvLayout, KvPiece, checksum_of
from services.engine.core.shelf import Shelf

LAYERS = 5
KEEP_S = 20.0
TURNS = 60
NAMES = tuple(bytes([number]) * 32 for number in range(12))
LAYOUT = KvLayout("ids", heads=2, head_bytes=3, positions=16, numerics_class="exact")
OLDER = replace(LAYOUT, numerics_class="older")
FAULTS = ("", "", "", "flipped", "cut", "long", "another's", "other layers", "older", "doubled")


def truth(name: bytes, layers: range, layout: KvLayout = LAYOUT) -> bytes:
    """What a block holds: other bytes in each layer of each block, and in each arithmetic."""
    salt = 0 if layout is LAYOUT else 7
    rows = (bytes([(name[0] * LAYERS + layer + salt) % 256]) for layer in layers)
    return b"".join(row * LAYOUT.layer_bytes for row in rows)


class Shelves:
    """One run; what it knows of the shelf is what it saw itself."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        whole = LAYOUT.size_bytes(range(LAYERS))
        self.limit_bytes = whole * random.choice((2, 6, 40))
        self.shelf = Shelf(self.limit_bytes, KEEP_S)
        self.now_s = 0.0
        self.until_s: dict[tuple[bytes, range, str], float] = {}
        """What was taken, and how long it was to be kept from when it was last told so."""
        self.complete: dict[str, float] = {}
        self.happened: Counter[str] = Counter()

    def run(self) -> None:
        """Raises Violation."""
        judged(self._run)

    def _run(self) -> None:
        for _ in range(TURNS):
            self.now_s += self.random.choice((0.0, 0.5, 3.0, 9.0))
            self.random.choice((self._keep, self._keep, self._renew, self._fetch, self._end))()
            self._look()

    def _cut(self) -> range:
        start = self.random.randrange(LAYERS)
        return range(start, self.random.randrange(start, LAYERS) + 1)

    def _keep(self) -> None:
        name, layers = self.random.choice(NAMES), self._cut()
        layout = self.random.choice((LAYOUT, LAYOUT, OLDER))
        key = (name, layers, layout.name)
        room = self.shelf.room(layout.size_bytes(layers), self.now_s)
        known = self.until_s.get(key, 0.0) > self.now_s
        kept = self.shelf.put(layout, name, layers, truth(name, layers, layout), self.now_s)
        if kept is not (known or room > 0):
            self._fail("a shelf kept what it had no room for, or did not what it had")
        if kept:
            self.until_s[key] = self.now_s + KEEP_S
        self.happened["kept" if kept else "full"] += 1

    def _renew(self) -> None:
        for key, until_s in list(self.until_s.items()):
            name, layers, layout_name = key
            there = self.shelf.renew(layout_name, name, layers, self.now_s)
            if there is not (until_s > self.now_s):
                self._fail("what was kept is gone before its time, or is there behind it")
            if there:
                self.until_s[key] = self.now_s + KEEP_S
                self.happened["renewed"] += 1
            if self.random.random() < 0.5:
                return

    def _end(self) -> None:
        formation_id = self.random.choice("fg")
        self.shelf.complete(formation_id, LAYOUT, self.now_s)
        self.complete[formation_id] = self.now_s + KEEP_S

    def _look(self) -> None:
        """The shelf against what is known of it."""
        living = {key: end_s for key, end_s in self.until_s.items() if end_s > self.now_s}
        self.until_s = living
        for formation_id in "fg":
            named = self.shelf.layout_of(formation_id, self.now_s) is not None
            if named is not (self.complete.get(formation_id, 0.0) > self.now_s):
                self._fail("nothing more comes of a formation, and who asks is not told")
        used = sum(LAYOUT.size_bytes(layers) for _, layers, _ in living)
        if used != self.shelf.used_bytes or used > self.limit_bytes:
            self._fail(f"{self.shelf.used_bytes} bytes are kept, and {used} were to be")
        if self.shelf.keeps_for_s(self.now_s) + self.now_s < max(living.values(), default=0.0):
            self._fail("a process would end before what it keeps has had its time")
        for name in NAMES:
            for layout in (LAYOUT, OLDER):
                seen: Counter[int] = Counter()
                found = self.shelf.find(layout.name, name, range(LAYERS), self.now_s)
                for layers, data in found:
                    seen.update(layers)
                    if bytes(data) != truth(name, layers, layout):
                        self._fail("a shelf gives other bytes than it was given")
                kept = {
                    layer for n, ls, at in living if (n, at) == (name, layout.name) for layer in ls
                }
                if set(seen) != kept or max(seen.values(), default=1) > 1:
                    self._fail("a shelf gives not what it keeps, or something twice")

    def _fetch(self) -> None:
        """As a stage of some layers: what it has itself, and what others send."""
        random, layers = self.random, self._cut()
        names = random.sample(NAMES, random.randrange(1, 5))
        gathering = Gathering(LAYOUT, layers, names)
        for name in names:
            for own, data in self.shelf.find(LAYOUT.name, name, layers, self.now_s):
                gathering.put(name, own, data)
        for name in gathering.lacking(layers):
            for piece in self._sent(name, layers):
                gathering.take(piece)
        whole = gathering.whole
        self.happened[f"whole {whole == len(names)}"] += 1
        self.happened["refused"] += gathering.refused
        for name, data in gathering.blocks(whole):
            if bytes(data) != truth(name, layers):
                self._fail("what came is not the block that was asked for")
        rest = gathering.lacking(layers)
        if names[:whole] != [n for n in names[:whole] if n not in rest] or (
            whole < len(names) and names[whole] not in rest
        ):
            self._fail("blocks count as whole that lack a layer")

    def _sent(self, name: bytes, layers: range) -> Iterator[KvPiece]:
        """By a peer, a layer or more at a time; with faults."""
        at = layers.start
        while at < layers.stop:
            some = range(at, self.random.randrange(at, layers.stop) + 1)
            at = some.stop
            data = truth(name, some)
            good = KvPiece(name, some, data, checksum_of(LAYOUT.name, name, some, data))
            yield from self._faulty(good)

    def _faulty(self, good: KvPiece) -> Iterator[KvPiece]:
        random, data = self.random, bytes(good.data)
        kind = random.choice(FAULTS)
        self.happened[kind or "good"] += 1
        if kind == "flipped":
            at = random.randrange(len(data))
            yield replace(good, data=data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
        elif kind in ("cut", "long"):
            other = data[:-1] if kind == "cut" else data + data[:1]
            yield self._checked(replace(good, data=other))
        elif kind == "another's":
            name = random.choice(NAMES)
            data = truth(name, good.layers)
            checksum = checksum_of(LAYOUT.name, name, good.layers, data)
            yield replace(good, data=data, checksum=checksum if name != good.name else b"")
        elif kind == "other layers":
            layers = range(good.layers.start + 1, good.layers.stop + 1)
            yield replace(good, layers=layers)
        elif kind == "older":
            data = truth(good.name, good.layers, OLDER)
            checksum = checksum_of(OLDER.name, good.name, good.layers, data)
            yield replace(good, data=data, checksum=checksum)
        elif kind == "doubled":
            yield good
            yield self._checked(replace(good, data=bytes(len(data))))
        else:
            yield good

    @staticmethod
    def _checked(piece: KvPiece) -> KvPiece:
        """With the checksum of what it says: its sender means it."""
        checksum = checksum_of(LAYOUT.name, piece.name, piece.layers, piece.data)
        return replace(piece, checksum=checksum)

    def _fail(self, what: str) -> None:
        raise Violation(what)


if __name__ == "__main__":
    program(Shelves, lambda run: run.happened)
