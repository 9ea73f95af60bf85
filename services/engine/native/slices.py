"""What of a model one rank of a stage computes, and in how many parts sums run.

A sum over attention heads or over the feed-forward layer is made in parts, whatever the number of
ranks, and the parts are added in pairs: so a stage gives the same bits on one rank as on two or
four. A model that does not divide into four parts has two, or one and runs on one rank alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from services.common.errors import InvalidArgument
from services.engine.native.padding import padded, whole_lanes
from services.model.config import ModelConfig
from services.model.tensors import stage_shapes

PARTS = (4, 2)


@dataclass(frozen=True, slots=True)
class Slice:
    """A rank's part of a model."""

    config: ModelConfig
    """The rank's own heads, feed-forward rows and vocabulary; all else as the model has it."""
    parts: int
    """That its sums are in."""
    rank: int
    ranks: int

    @property
    def padded(self) -> ModelConfig:
        """Its sizes in whole lanes; those of the feed-forward layer part by part."""
        inner = self.parts * whole_lanes(self.config.intermediate_size // self.parts)
        return replace(padded(self.config), intermediate_size=inner)

    def kv_heads_of(self, heads: int) -> range:
        """Its key-value heads, of all of the model; ranks beyond them share one."""
        own = self.config.kv_heads
        first = self.rank * heads // self.ranks // own * own
        return range(first, first + own)

    def of(self, tensors: Mapping[str, Tensor], layers: range) -> dict[str, Tensor]:
        """Its slices of a whole model's tensors."""
        shapes = stage_shapes(self.config, layers)
        return {name: self._cut(tensors[name], shape) for name, shape in shapes.items()}

    def _cut(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        for axis, (whole, own) in enumerate(zip(tensor.shape, shape, strict=True)):
            if whole != own:  # ranks beyond the key-value heads share one
                return tensor.narrow(axis, self.rank * whole // self.ranks // own * own, own)
        return tensor


def slice_of(config: ModelConfig, degree: int = 1, rank: int = 0) -> Slice:
    """Raises InvalidArgument for a degree that the model, or this backend, does not run at."""
    divisible = config.tensor_parallel
    divisible.check_degree(degree, rank)
    if degree > 1 and config.whole_qk_norm:
        raise InvalidArgument(
            f"TP degree {degree}: the native backend norms all heads together on one rank",
            field="tp_degree",
        )
    parts = next((parts for parts in PARTS if divisible.divides(parts)), 1)
    if parts % degree:
        degrees = ", ".join(str(one) for one in (1, 2, 4) if not parts % one)
        raise InvalidArgument(
            f"TP degree {degree}: the native backend runs a stage of this model at {degrees}",
            field="tp_degree",
        )
    own = replace(
        config,
        heads=config.heads // degree,
        kv_heads=max(1, config.kv_heads // degree),
        intermediate_size=config.intermediate_size // degree,
        vocab_size=config.vocab_size // degree,
    )
    return Slice(own, parts // degree, rank, degree)
