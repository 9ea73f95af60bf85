"""What a KV block is outside a cache: its layout by name, and the check that goes with its bytes.

A block covers some positions. Of each layer it has the keys and values of every key-value
head, head by head; what lies inside a head's part is the backend's own (`form`). So blocks are cut
and joined by layers, for other stages, and by heads, for other ranks, and by nothing else. Two
caches exchange blocks where their layouts are equal, class of arithmetic included: a native stage
and one of vLLM's never are.

A block goes by the hash of all ids up to its end (`services.common.prefix`), which stands for the
generation, too: equal ids have equal blocks.

Rounded blocks (`services.engine.kv_rounding`) have a layout of their own, so that nobody takes one
for a block as it was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from blake3 import blake3

VERSION = 1
CHECKSUM_BYTES = 32
SCALE_BYTES = 4
"""Of a scale, fp32."""
_ROUNDED = "int8.1"
"""What rounded blocks are, and the version of how they lie."""
Element = Literal["", "bf16", "fp32", "int8"]
"""What keys and values are; empty: nobody says, or they do not lie apart."""
ELEMENTS: tuple[Element, ...] = get_args(Element)
_ELEMENT_BYTES: dict[str, int] = {"bf16": 2, "fp32": 4}
"""Of what may be rounded: a head's part is its keys and then its values, as many of these."""


@dataclass(frozen=True, slots=True)
class KvLayout:
    """How a stage's blocks lie in bytes: [layers][heads][head_bytes]."""

    form: str
    """What lies inside a head's part: the backend, and how it orders keys and values."""
    heads: int
    """Key-value heads of the whole model."""
    head_bytes: int
    """Of one head's keys and values in a block of one layer; 0: its blocks go nowhere, for layers
    differ in that."""
    positions: int
    """Of a block."""
    numerics_class: str
    """Of the pipeline, or of a stage by itself: what another arithmetic computed is of no use
    here."""
    element: Element = ""
    """Follows from the class; so the name does not say it."""

    @property
    def name(self) -> str:
        """Equal for layouts that are."""
        sizes = f"{self.positions}x{self.heads}x{self.head_bytes}"
        return f"kv{VERSION}/{self.form}/{sizes}/{self.numerics_class}"

    @property
    def rounded(self) -> KvLayout | None:
        """How the same blocks lie in int8: of each head the scale of its keys and that of its
        values, and a byte an element. None where they cannot be rounded, or are."""
        size_bytes = _ELEMENT_BYTES.get(self.element, 0)
        if not size_bytes or not self.head_bytes:
            return None
        head_bytes = 2 * SCALE_BYTES + self.head_bytes // size_bytes
        form = f"{self.form}+{_ROUNDED}"
        return replace(self, form=form, head_bytes=head_bytes, element="int8")

    @property
    def layer_bytes(self) -> int:
        """Of a block of one layer."""
        return self.heads * self.head_bytes

    def size_bytes(self, layers: range) -> int:
        """Of a block of these layers."""
        return len(layers) * self.layer_bytes

    def cut(self, data: bytes | memoryview, held: range, wanted: range) -> memoryview:
        """Of a block's bytes of the layers `held` those of `wanted`, which are among them."""
        first = wanted.start - held.start
        return memoryview(data)[first * self.layer_bytes :][: self.size_bytes(wanted)]

    def joined(self, layers: range, parts: Sequence[tuple[range, bytes]]) -> bytes:
        """A block of the layers, of what ranks have of it: heads, and [layers][heads][head_bytes].
        Heads that several ranks have are the same at each. Raises ValueError where one is had by
        none."""
        of_head: dict[int, tuple[range, bytes]] = {}
        for heads, data in parts:
            for head in heads:
                of_head.setdefault(head, (heads, data))
        if sorted(of_head) != list(range(self.heads)):
            raise ValueError(f"heads {sorted(of_head)} of {self.heads}")
        pieces = []
        for layer in range(len(layers)):
            for head in range(self.heads):
                heads, data = of_head[head]
                first = (layer * len(heads) + head - heads.start) * self.head_bytes
                pieces.append(data[first : first + self.head_bytes])
        return b"".join(pieces)

    def of_heads(self, layers: range, data: bytes | memoryview, heads: range) -> bytes | memoryview:
        """What a rank with these heads has of a block."""
        if heads == range(self.heads):
            return data
        view = memoryview(data)
        starts = (layer * self.heads + heads.start for layer in range(len(layers)))
        own = len(heads) * self.head_bytes
        return b"".join(view[s * self.head_bytes : s * self.head_bytes + own] for s in starts)


@dataclass(frozen=True, slots=True)
class KvPiece:
    """A block of some layers on its way from one stage to another."""

    name: bytes
    """Hash of the ids up to the block's end."""
    layers: range
    data: bytes | memoryview
    """[layers][heads][head_bytes]."""
    checksum: bytes
    """Of all of that and of the layout."""


def checksum_of(layout_name: str, name: bytes, layers: range, data: bytes | memoryview) -> bytes:
    """Of a piece; none of its parts can be taken for another."""
    head = f"{layout_name}/{layers.start}-{layers.stop}/{name.hex()}/".encode()
    return blake3(head).update(data).digest(CHECKSUM_BYTES)
