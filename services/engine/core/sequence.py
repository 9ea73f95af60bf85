"""One sequence as the scheduler has it: its ids, its place in the batch, and the blocks it uses."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.exchange import Phase
from services.common.fair_queue import Turn, lane_of, turn_of
from services.common.generation import GenerationRequest
from services.common.prefix import next_hash, root_of
from services.engine.backend import BLOCK_SIZE, SequenceOpen
from services.engine.core.actions import SequenceKey
from services.engine.core.lookup import Lookup


@dataclass(slots=True, eq=False)
class BatchedSequence:
    """A sequence that waits or runs."""

    key: SequenceKey
    request: GenerationRequest
    arrival: int
    tokens: list[int]
    """Prompt and output."""
    held: int
    """Output ids it came with."""
    lookup: Lookup
    phase: Phase = Phase.QUEUED
    slot: int = -1
    computed: int = 0
    """Positions in the KV cache, those of a step in flight included, but for its drafts."""
    blocks: list[int] = field(default_factory=list)
    named: int = 0
    """The first so many of them are full, and may be others' as well."""
    cached: int = 0
    """Prompt positions that it found computed when it ran first."""
    in_flight: int = 0
    """Steps that carry it and have not come back."""
    stopping: bool = False
    dropped: bool = False
    unread: bool = False
    charged: int = 0
    """Positions that its tenant has paid for, here or at an earlier head."""
    last_step: int = 0
    names: list[bytes] = field(default_factory=list)
    """Of its full blocks, as far as anybody asked."""

    @property
    def remaining(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def outputs(self) -> int:
        """Output ids there are."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def most_left(self) -> int:
        """Output ids that may come yet."""
        return self.request.sampling.max_tokens - self.outputs

    @property
    def opened_ids(self) -> int:
        """Ids that the stages are told when it enters."""
        return len(self.tokens) + len(self.request.sampling.given_ids)

    def given(self, most: int) -> tuple[int, ...]:
        """Of the ids that are given, those behind all there are, but for one that ends it: the row
        before that says so itself."""
        sampling = self.request.sampling
        output = self.outputs
        return sampling.given_ids[output : min(output + most, sampling.max_tokens - 1)]

    @property
    def lane(self) -> int:
        """It yields to what is in a lower one."""
        return lane_of(self.request.priority, unread=self.unread)

    @property
    def turn(self) -> Turn:
        """Its place among those that wait."""
        begun = len(self.tokens) > len(self.request.prompt_ids)
        return turn_of(self.request, self.arrival, unread=self.unread, begun=begun)

    @property
    def opening(self) -> SequenceOpen:
        """What the stages are told of it when it enters."""
        request, prompt = self.request, len(self.request.prompt_ids)
        outputs = tuple(self.tokens[prompt:])
        return SequenceOpen(
            self.slot, request.sampling, self.key.choice, request.prompt_ids, outputs
        )

    @property
    def shareable(self) -> int:
        """Blocks that it may find computed: its last id is always computed anew, for what comes
        behind it."""
        return (len(self.tokens) - 1) // BLOCK_SIZE

    def block_hash(self, index: int) -> bytes:
        """The name of a block that its ids fill."""
        names = self.names
        while len(names) <= index:
            start = len(names) * BLOCK_SIZE
            parent = names[-1] if names else root_of(self.request)
            names.append(next_hash(parent, self.tokens[start : start + BLOCK_SIZE]))
        return names[index]
