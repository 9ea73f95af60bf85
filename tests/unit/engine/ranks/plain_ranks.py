"""Ranks of the tiny backend, which needs no model; and what may befall one of them."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.common.errors import DataLoss
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import StageSpec
from services.engine.backend import Batch, Hidden, Sampled
from services.engine.ranks.rank import Rank
from services.engine.stages import Progress
from tests.contract.engine.tiny import LAYERS, MODEL, TinyBackend, TinyLoader

SPEC = StageSpec(LayerRange(0, LAYERS), 2)
WHOLE = (MODEL, SPEC)
BAD_ID, SLOW_ID = 900, 901
"""Token ids that the last rank fails at, or is slow at."""


class Meeting:
    """Where each rank waits for all others, for ever, as in the sums of a real model."""

    def __init__(self, rank: Rank) -> None:
        os.ftruncate(rank.memory_fd, mmap.PAGESIZE)
        self._came = mmap.mmap(rank.memory_fd, mmap.PAGESIZE)
        self._rank = rank

    def come(self) -> None:
        """Returns when all have."""
        own = self._rank.number
        self._came[own] = self._came[own] % 255 + 1
        while any(self._came[other] != self._came[own] for other in range(self._rank.count)):
            time.sleep(0.001)


@dataclass
class PlainRank(TinyBackend):
    """One rank of it."""

    last: bool = False
    meeting: Meeting | None = None

    def forward(self, batch: Batch, rows: Sequence[int] | Hidden) -> Hidden | tuple[Sampled, ...]:
        if self.last and not isinstance(rows, Hidden) and BAD_ID in rows:
            raise RuntimeError("out of order")
        if not isinstance(rows, Hidden) and SLOW_ID in rows:
            time.sleep(1.0)
        if self.meeting is not None:
            self.meeting.come()
        return super().forward(batch, rows)


@dataclass
class PlainLoader(TinyLoader):
    """Of one rank: `trouble` is what the last one has when it loads."""

    rank: Rank = field(default_factory=lambda: Rank(0, 1, -1, ""))
    trouble: str = ""
    load_s: float = 0.0
    meets: bool = False

    def load(self, model: ModelRef, spec: StageSpec, progress: Progress) -> TinyBackend:
        last = self.rank.number == self.rank.count - 1
        progress(10 * (self.rank.number + 1), 100)
        time.sleep(self.load_s)
        if last and self.trouble == "data":
            raise DataLoss("a tile is damaged", field="tile")
        if last and self.trouble == "fault":
            raise RuntimeError("no such thing")
        meeting = Meeting(self.rank) if self.meets else None
        return PlainRank(range(spec.layers.start, spec.layers.end), last=last, meeting=meeting)


@dataclass(frozen=True)
class Ranks:
    """Makes them, in whatever process."""

    trouble: str = ""
    load_s: float = 0.0
    meets: bool = False

    def __call__(self, rank: Rank) -> PlainLoader:
        return PlainLoader(rank=rank, trouble=self.trouble, load_s=self.load_s, meets=self.meets)
