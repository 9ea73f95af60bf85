"""The seam between an engine's runtime and the arithmetic of one stage.

A backend runs the layers of one half-open range. It knows slots, rows and KV blocks, but no
generations, no time and no network. Hidden states cross the seam as bytes, for they go straight
on to a gRPC stream; so nothing on the runtime's side of it needs a tensor library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from services.common.generation import Sampling, TokenLogprob

BLOCK_SIZE = 16
"""Positions in one KV block."""

HiddenDtype = Literal["bf16", "fp32"]


@dataclass(frozen=True, slots=True)
class SequenceOpen:
    """A sequence takes a slot; `output_ids` are what it goes on from after a hand-over."""

    slot: int
    sampling: Sampling
    choice: int
    prompt_ids: Sequence[int]
    output_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """`count` consecutive rows of one sequence, at positions `start` to `start + count`.

    `block_table` names the physical KV blocks that cover positions 0 to start + count, in order.
    With `sample`, the last row yields the token behind it.
    """

    slot: int
    start: int
    count: int
    block_table: Sequence[int]
    sample: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """One step of a stage: closes take effect first, then opens, then the rows run.

    A slot appears at most once in `steps`. Blocks are allocated by the head and mean the same at
    every stage, so the cache itself is all the KV state there is.
    """

    steps: Sequence[SequenceStep]
    opens: Sequence[SequenceOpen] = ()
    closes: Sequence[int] = ()

    @property
    def rows(self) -> int:
        """Rows over all sequences."""
        return sum(step.count for step in self.steps)


@dataclass(frozen=True, slots=True)
class Hidden:
    """Hidden states [rows, hidden_size], row-major, little-endian, in the order of the steps."""

    dtype: HiddenDtype
    rows: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token at output position `position` (0 is the first behind the prompt) of a slot."""

    slot: int
    position: int
    token_id: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class ResidentTensor:
    """A weight held in memory, by its name in the checkpoint, at its size there."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ResidentLayer:
    """A layer in memory; the first one comes with the embedding, the last with norm and head."""

    tensors: tuple[ResidentTensor, ...]
    packed_bytes: int
    """Bytes of the backend's own form of the weights."""


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What does not change while a stage lives."""

    layers: range
    layer_count: int
    """Layers of the whole model."""
    hidden_size: int
    vocab_size: int
    context_length: int
    """Most positions of one sequence, prompt and output."""
    hidden_dtype: HiddenDtype
    numerics_class: str
    """Two stages of one class that are exact give equal ids for equal requests."""
    exact: bool
    """Rows do not depend on what else is in the batch, nor on how a sequence is cut."""

    @property
    def first(self) -> bool:
        """The stage embeds ids."""
        return self.layers.start == 0

    @property
    def last(self) -> bool:
        """The stage samples."""
        return self.layers.stop == self.layer_count


class StageBackend(Protocol):
    """The layers of one stage, their KV cache and, at the last stage, the sampler."""

    @property
    def facts(self) -> StageFacts:
        """What does not change."""
        ...

    def forward(self, batch: Batch, rows: Sequence[int] | Hidden) -> Hidden | tuple[Sampled, ...]:
        """Run one step; blocking, one call at a time, without holding the GIL while it computes.

        `rows` are token ids at the first stage, else the hidden states of the stage before, one a
        row. The last stage answers with a token for each step that samples, in order; the others
        with the hidden states of all rows. A malformed batch raises InvalidArgument and changes
        nothing. Only between `begin` and `end`.
        """
        ...

    def resident_layers(self) -> Mapping[int, ResidentLayer]:
        """What the stage holds, by layer; other stages of its model may hold the very same."""
        ...

    def begin(self, kv_blocks: int) -> None:
        """Make an empty KV cache of blocks 0 to kv_blocks - 1, for a formation; what an earlier one
        left is forgotten."""
        ...

    def end(self) -> None:
        """Release the cache and every slot; the weights stay."""
        ...

    def close(self) -> None:
        """Release weights and cache."""
        ...
