"""What a stage asks of an implementation of its layers: to pack weights, and to compute with them.

Packed weights belong to nobody's stage: stages that share a layer are made from one of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from services.engine.stage.spans import Span


class PackedWeights(Protocol):
    """A layer, or the final norm and head, in an implementation's own form."""

    @property
    def packed_bytes(self) -> int:
        """Bytes of its matrices."""
        ...


class Arithmetic(Protocol):
    """The layers of a stage and their KV cache; every tensor is on the CPU or on one device."""

    def forward(
        self, hidden: Tensor, spans: Sequence[Span], asked: Sequence[int] | None = None
    ) -> Tensor:
        """Run [rows, hidden_size], span behind span, through all layers; may write over `hidden`.
        Of a last stage some rows may be `asked` for, in ascending order: these alone come out, and
        the others need not be computed beyond their keys and values."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: fp32 [rows, vocab_size] on the CPU."""
        ...

    def export_blocks(self, blocks: Tensor) -> Tensor:
        """uint8 [blocks, layers, kv_heads, bytes] on the CPU, of block ids int64 [blocks]."""
        ...

    def import_blocks(self, blocks: Tensor, data: Tensor) -> None:
        """Has blocks hold what was exported."""
        ...

    def close(self) -> None:
        """Release the cache; nothing may be called afterwards."""
        ...


L = TypeVar("L", bound=PackedWeights)
H = TypeVar("H", bound=PackedWeights)


class Packing(Protocol[L, H]):
    """One implementation for one model."""

    @property
    def name(self) -> str:
        """Device, element type, instructions and sources: what decides the bits."""
        ...

    @property
    def kv_form(self) -> str:
        """How a head's keys and values of a block lie in what is exported."""
        ...

    @property
    def kv_head_bytes(self) -> int:
        """Of them, in one layer."""
        ...

    def layer(self, tensors: Mapping[str, Tensor], layer: int) -> L:
        """A copy of a layer, but for matrices that lie on a GPU already."""
        ...

    def embedding(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """What a row of ids becomes, [vocab, hidden_size], where the layers are computed; a copy,
        but for a matrix that lies on a GPU already."""
        ...

    def head(self, tensors: Mapping[str, Tensor]) -> H:
        """A copy of the final norm and the head."""
        ...

    def arithmetic(self, layers: Sequence[L], head: H | None, kv_blocks: int) -> Arithmetic:
        """Layers in a row over an empty KV cache; quick, for nothing is packed."""
        ...
