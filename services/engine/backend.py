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
from services.engine.core.kv_layout import KvLayout

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
    With `sample`, the last row yields the token behind it. The ids of the last rows may be guesses,
    `drafts`: then the row before the first of them yields a token, and each draft's row another one
    for as long as the token before is that draft. What rows of wrong drafts leave in the cache is
    written over by the sequence's next steps before any row reads it.
    """

    slot: int
    start: int
    count: int
    block_table: Sequence[int]
    sample: bool
    drafts: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """One step of a stage: closes take effect first, then opens, then the rows run.

    A slot appears at most once in `steps`. Blocks are allocated by the head and mean the same at
    every stage, so the cache itself is all the KV state there is. A block may be in the tables of
    several sequences: it is full, an earlier step computed it, and none of them writes to it. So
    rows need not begin at position 0, nor where the sequence's last ones ended.
    """

    steps: Sequence[SequenceStep]
    opens: Sequence[SequenceOpen] = ()
    closes: Sequence[int] = ()

    @property
    def rows(self) -> int:
        """Rows over all sequences."""
        return sum(step.count for step in self.steps)

    @property
    def asked_rows(self) -> list[int]:
        """The rows whose logits the last stage needs, in order."""
        asked: list[int] = []
        end = 0
        for step in self.steps:
            end += step.count
            if step.sample:
                asked += range(end - 1 - len(step.drafts), end)
        return asked


@dataclass(frozen=True, slots=True)
class Hidden:
    """Hidden states [rows, row_width], row-major, little-endian, in the order of the steps."""

    dtype: HiddenDtype
    rows: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token at output position `position` (0 is the first behind the prompt) of a slot."""

    slot: int
    position: int
    token_id: int
    """Of no meaning where it is stuck."""
    logprob: TokenLogprob | None = None
    stuck: bool = False
    """There is none: what the sequence must follow has become too much to go on with."""


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
    row_width: int
    """Numbers that a row carries to the next stage: hidden states, and a residual where the
    arithmetic keeps it apart."""
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

    @property
    def lost(self) -> str:
        """Why it is of no use any more, though nobody closed it; empty as long as it is. Any thread
        may ask."""
        ...

    @property
    def computed_s(self) -> float:
        """What whoever computes it has had of a core so far; asked in the thread of `forward`."""
        ...

    def forward(self, batch: Batch, rows: Sequence[int] | Hidden) -> Hidden | tuple[Sampled, ...]:
        """Run one step; blocking, one call at a time, without holding the GIL while it computes.

        `rows` are token ids at the first stage, else the hidden states of the stage before, one a
        row. The last stage answers with a token for each step that samples, in order, and behind
        it one for each of its drafts that was right; the others with the hidden states of all rows.
        A malformed batch raises InvalidArgument and changes nothing. Only between `begin` and
        `end`.
        """
        ...

    def resident_layers(self) -> Mapping[int, ResidentLayer]:
        """What the stage holds, by layer; other stages of its model may hold the very same."""
        ...

    @property
    def kv_layout(self) -> KvLayout:
        """How `export_blocks` and `import_blocks` have blocks."""
        ...

    @property
    def kv_heads(self) -> range:
        """Key-value heads that lie here: all, but for one of several ranks."""
        ...

    def export_blocks(self, blocks: Sequence[int]) -> list[bytes]:
        """What each of these holds, [layers][heads][head_bytes], of the heads that lie here; in the
        thread of `forward`. Raises InvalidArgument for a block that is none."""
        ...

    def import_blocks(self, blocks: Sequence[int], data: Sequence[bytes | memoryview]) -> None:
        """Have blocks hold this, [layers][heads][head_bytes] of all heads each, in place of what
        they held; in the thread of `forward`. Raises InvalidArgument for a block that is none or
        bytes of another size, and changes nothing."""
        ...

    def begin(self, kv_blocks: int) -> None:
        """Make an empty KV cache of blocks 0 to kv_blocks - 1, for a formation; what an earlier one
        left is forgotten."""
        ...

    def begin_again(self, kv_blocks: int) -> None:
        """Have every slot free, for another formation: the blocks, of which there are just so many,
        hold what they held. Raises FailedPrecondition where that is not so."""
        ...

    def end(self) -> None:
        """Release the cache and every slot; the weights stay."""
        ...

    def close(self) -> None:
        """Release weights and cache."""
        ...
