"""What the head core asks of its edges, and what they tell it."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.exchange import KvSource, PrefixHolder
from services.common.generation import GenerationRequest, TokenLogprob


@dataclass(frozen=True, slots=True)
class SequenceKey:
    """One choice of one generation in one epoch: what the scheduler batches."""

    generation_id: str
    epoch: int
    choice: int


@dataclass(frozen=True, slots=True)
class StartSequence:
    """Scheduler: run this sequence from behind `output_ids`; nothing of it is running yet."""

    key: SequenceKey
    request: GenerationRequest
    output_ids: tuple[int, ...]
    source: KvSource | None = None
    """Where its blocks may still be had."""
    holder: PrefixHolder | None = None
    """Where those of its prompt's beginning may be had."""
    names: list[bytes] = field(default_factory=list, compare=False)
    """Of its blocks, from the first on, as far as anybody asked."""


@dataclass(frozen=True, slots=True)
class StopSequence:
    """Scheduler: schedule it no more, free it, and when no step that carries it is in flight
    (perhaps at once, and for unknown keys too) call `Generations.sequence_stopped`."""

    key: SequenceKey


@dataclass(frozen=True, slots=True)
class SetUnread:
    """Scheduler: whether anybody reads this sequence; what is unread yields to what is read."""

    key: SequenceKey
    unread: bool


@dataclass(frozen=True, slots=True)
class DropSequence:
    """Scheduler: forget it at once; the formation is gone and no step will come back."""

    key: SequenceKey


@dataclass(frozen=True, slots=True)
class KeepBlocks:
    """Stages: keep what these sequences, which have just stopped, had computed, for whoever goes on
    with them."""

    sequences: tuple[StartSequence, ...]
    """As they will start elsewhere."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Stream edge: `Generations.next_frame` has something for this reader."""

    reader_id: int


@dataclass(frozen=True, slots=True)
class WakeCheckpoints:
    """Checkpoint edge: `Generations.take_checkpoints` has something that should not wait."""


Action = (
    StartSequence | StopSequence | SetUnread | DropSequence | KeepBlocks | Wake | WakeCheckpoints
)


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token out of a step."""

    key: SequenceKey
    position: int
    """Output position."""
    token_id: int
    logprob: TokenLogprob | None = None
    cached_tokens: int = 0
    """Of a first token: prompt positions that its sequence found computed."""
    stuck: bool = False
    """There is none, and there will be none."""
