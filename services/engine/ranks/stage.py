"""A stage that several processes compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from services.engine.backend import (
    Batch,
    Hidden,
    ResidentLayer,
    ResidentTensor,
    Sampled,
    SequenceOpen,
    StageFacts,
)
from services.engine.core.kv_layout import KvLayout
from services.engine.ranks.group import RankGroup
from services.engine.ranks.messages import Loaded


class RankedStage:
    """Implements StageBackend: every rank computes each step, rank 0 says what it came to."""

    def __init__(self, group: RankGroup, ranks: Sequence[Loaded]) -> None:
        """`ranks` is what each of the group has loaded."""
        self._group = group
        self._facts = ranks[0].facts
        self._resident = of_all_ranks([rank.resident for rank in ranks])
        self._layout = ranks[0].kv_layout
        self._heads = [rank.kv_heads for rank in ranks]
        self._computed_s = 0.0

    @property
    def facts(self) -> StageFacts:
        return self._facts

    @property
    def lost(self) -> str:
        return self._group.lost

    @property
    def computed_s(self) -> float:
        return self._computed_s

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the ranks, in their order."""
        return self._group.pids

    def forward(self, batch: Batch, rows: Sequence[int] | Hidden) -> Hidden | tuple[Sampled, ...]:
        sent = rows if isinstance(rows, Hidden) else tuple(rows)
        said = self._group.call("forward", _plain(batch), sent, rows=max(batch.rows, 1))
        self._computed_s = said.computed_s
        return cast(Hidden | tuple[Sampled, ...], said.value)

    def resident_layers(self) -> Mapping[int, ResidentLayer]:
        return self._resident

    @property
    def kv_layout(self) -> KvLayout:
        return self._layout

    @property
    def kv_heads(self) -> range:
        return range(max(heads.stop for heads in self._heads))

    def export_blocks(self, blocks: Sequence[int]) -> list[bytes]:
        of_ranks = self._group.call_each("export_blocks", tuple(blocks))
        layout, layers = self._layout, self._facts.layers
        return [
            layout.joined(layers, list(zip(self._heads, parts, strict=True)))
            for parts in zip(*of_ranks, strict=True)
        ]

    def import_blocks(self, blocks: Sequence[int], data: Sequence[bytes | memoryview]) -> None:
        self._group.call("import_blocks", tuple(blocks), tuple(map(bytes, data)))

    def begin(self, kv_blocks: int) -> None:
        self._group.call("begin", kv_blocks)

    def begin_again(self, kv_blocks: int) -> None:
        self._group.call("begin_again", kv_blocks)

    def end(self) -> None:
        if not self.lost:
            self._group.call("end")

    def close(self) -> None:
        self._group.close()


def of_all_ranks(layers: Sequence[Mapping[int, ResidentLayer]]) -> dict[int, ResidentLayer]:
    """What ranks hold together, of what each of them holds."""
    return {number: _together([each[number] for each in layers]) for number in layers[0]}


def _together(parts: Sequence[ResidentLayer]) -> ResidentLayer:
    tensors = tuple(
        ResidentTensor(same[0].name, sum(tensor.size_bytes for tensor in same))
        for same in zip(*(part.tensors for part in parts), strict=True)
    )
    return ResidentLayer(tensors, sum(part.packed_bytes for part in parts))


def _plain(batch: Batch) -> Batch:
    """As it can be sent: a mapping that nobody can change cannot."""
    return replace(batch, opens=tuple(map(_plain_open, batch.opens)))


def _plain_open(opened: SequenceOpen) -> SequenceOpen:
    sampling = replace(opened.sampling, logit_bias=dict(opened.sampling.logit_bias))
    return replace(opened, sampling=sampling)
