"""What a stage asks of an implementation of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """`count` rows of one sequence from row `first` on, at positions from `start` on."""

    first: int
    count: int
    start: int
    table: Sequence[int]
    """KV blocks from position 0 on."""


class Arithmetic(Protocol):
    """The layers of a stage and their KV cache; every tensor is on the CPU or on one device."""

    @property
    def name(self) -> str:
        """Device, element type, instructions and sources: what decides the bits."""
        ...

    @property
    def packed_bytes(self) -> int:
        """Bytes of its own form of the weights."""
        ...

    def forward(self, hidden: Tensor, spans: Sequence[Span]) -> Tensor:
        """Run [rows, hidden_size] through all layers; may write over `hidden`."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: fp32 [rows, vocab_size] on the CPU."""
        ...

    def close(self) -> None:
        """Release what is held; nothing may be called afterwards."""
        ...
