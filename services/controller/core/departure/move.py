"""A generation that has to leave its formation, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf

from services.common.generation import PriorityClass


class Choice(StrEnum):
    """What becomes of a generation whose formation has to go."""

    FINISH = "finish"
    """It ends where it is, before the formation does."""
    PUSH = "push"
    """Its KV cache travels; its next head computes what did not come."""
    REPLAY = "replay"
    """Its next head computes the cache anew from its ids."""


class Reason(StrEnum):
    """Why that."""

    LIMIT = "its limit comes first"
    LENGTHS = "answers of its length have ended by then"
    CHEAPER = "its cache travels faster than it is computed"
    NOTHING_TRAVELS = "nothing may travel"
    SHORT = "its ids are computed as fast as its cache travels"
    LINK = "the link carries no more until then"
    ROOM = "its next head has no room yet"
    AT_ONCE = "its formation ends now"


@dataclass(frozen=True, slots=True)
class Stream:
    """A generation that runs in the formation."""

    generation_id: str
    positions: int
    """Of its prompt and its output: what its next head has to have in its KV cache."""
    lengths: tuple[int, ...]
    """Output tokens so far of each choice that goes on."""
    limit: int
    """Output tokens of a choice, at most."""
    tokens_per_s: float
    """Of each choice, where it is now; 0 while that is not known."""
    priority: PriorityClass = PriorityClass.STANDARD
    bytes: int | None = None
    """Of its full KV blocks that are not at its next head yet; None: they may not travel."""

    @property
    def left(self) -> int:
        """Tokens until all its choices are at their limit."""
        return max((max(0, self.limit - length) for length in self.lengths), default=0)

    def with_blocks(self, block_bytes: int, block_positions: int, over: int = 0) -> Stream:
        """Its full blocks travel, but those that are `over`; nothing, where one has no bytes."""
        left = max(0, self.positions // block_positions - over)
        return replace(self, bytes=left * block_bytes if block_bytes else None)


@dataclass(frozen=True, slots=True)
class Rates:
    """What moves cost now, as far as that was measured."""

    replay_s: float = 0.0
    """Of every replay, however short."""
    replay_positions_per_s: float = inf
    """Of what the next heads compute anew, all together."""
    link_bytes_per_s: float = 0.0
    """Of KV blocks; 0: none travel."""
    push_s: float = 0.0
    """Behind the seal of one whose blocks are over: its last round, and its grant."""
    seal_s: float = 0.0
    """From the order to stop until the formation is needed no more for it."""
    room_positions: float = inf
    """Of KV cache, at the next heads."""
    fetch_s: float = inf
    """Blocks that travel behind a seal are there within this, or are computed."""

    def replay_of_s(self, positions: float) -> float:
        """To compute so many positions anew."""
        return self.replay_s + positions / self.replay_positions_per_s

    def push_gap_s(self, positions: float) -> float:
        """What a reader notices of a push: its blocks are over by then, but for the tail."""
        return self.push_s + min(positions, TAIL_POSITIONS) / self.replay_positions_per_s


TAIL_POSITIONS = 32
"""Behind a push at most so many are computed anew: the block that is not full, and what was sampled
while the last round went."""


@dataclass(frozen=True, slots=True)
class Move:
    """What becomes of one generation, and when."""

    generation_id: str
    choice: Choice
    reason: Reason
    begins_s: float
    """The latest moment at which it may begin: a push with its first block, a replay with its seal;
    infinite for one that finishes."""
    ends_s: float
    """When the formation is needed no more for it, if all goes as measured."""
    bytes: int = 0
    """Of its full blocks, that travel."""
    replayed_tokens: int = 0
    """Positions that its next head computes."""

    @property
    def attributes(self) -> Mapping[str, str]:
        """For the event log and the trace."""
        return {
            "choice": self.choice.value,
            "reason": self.reason.value,
            "bytes": str(self.bytes),
            "replayed_tokens": str(self.replayed_tokens),
        }
