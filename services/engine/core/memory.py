"""What fits into an engine's memory: weights of stages, and the KV cache in use.

A stage is held where its weights fit beside those it shares memory with: while a formation lives,
beside the stage and the cache of that formation; afterwards, beside all others that are asked for,
and with a block of KV cache for a formation of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.common.errors import FailedPrecondition
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import StageSpec


@dataclass(frozen=True, slots=True)
class StageSize:
    """What a stage takes of memory."""

    model: ModelRef
    spec: StageSpec
    layer_bytes: Mapping[int, int]
    """Of each layer, with the embedding or the head where the stage has one."""
    kv_block_bytes: int
    shared: bool = True
    """Stages of the model that have a layer in common hold it once."""

    @property
    def layers(self) -> LayerRange:
        return self.spec.layers

    @property
    def weight_bytes(self) -> int:
        return sum(self.layer_bytes.values())


@dataclass(frozen=True, slots=True)
class InUse:
    """The stage of the formation that lives, and the blocks of its KV cache."""

    size: StageSize
    kv_blocks: int

    @property
    def cache_bytes(self) -> int:
        return self.kv_blocks * self.size.kv_block_bytes


@dataclass(frozen=True, slots=True)
class Memory:
    """The limits of one process."""

    size_bytes: int
    most_kv_blocks: int
    """The KV cache is never larger, whatever there is room for."""

    def fitting(self, wanted: Sequence[StageSize], in_use: InUse | None) -> tuple[bool, ...]:
        """Which of the stages can be held, those asked for first before those behind.

        Raises FailedPrecondition for a stage that would not fit into empty memory: it never will.
        """
        for stage in wanted:
            self._check(stage)
        used = [in_use.size] if in_use is not None else []
        cache_bytes = in_use.cache_bytes if in_use is not None else 0
        chosen = [stage for stage in wanted if stage in used]
        for stage in wanted:
            if stage in chosen:
                continue
            more = [*chosen, stage]
            now_bytes = total_bytes([*used, *more]) + cache_bytes
            later_bytes = total_bytes(more) + max(each.kv_block_bytes for each in more)
            if max(now_bytes, later_bytes) <= self.size_bytes:
                chosen = more
        return tuple(stage in chosen for stage in wanted)

    def kv_blocks(self, stage: StageSize, held: Iterable[StageSize]) -> int:
        """KV blocks that a formation of one stage can have while these stages are held."""
        left_bytes = self.size_bytes - total_bytes([*held, stage])
        return max(0, min(self.most_kv_blocks, left_bytes // stage.kv_block_bytes))

    def _check(self, stage: StageSize) -> None:
        least_bytes = stage.weight_bytes + stage.kv_block_bytes
        if least_bytes > self.size_bytes:
            raise FailedPrecondition(
                f"{stage.weight_bytes} bytes of layers [{stage.layers.start}, {stage.layers.end}) "
                f"leave no room for a KV cache in {self.size_bytes}: "
                f"{least_bytes - self.size_bytes} bytes are lacking",
                field="stages.layers",
            )


def total_bytes(stages: Iterable[StageSize]) -> int:
    """Bytes of weights, what stages share counted once."""
    sizes: dict[tuple[ModelRef, StageSpec | None, int], int] = {}
    for stage in stages:
        of = None if stage.shared else stage.spec
        for layer, size_bytes in stage.layer_bytes.items():
            sizes[stage.model, of, layer] = size_bytes
    return sum(sizes.values())
