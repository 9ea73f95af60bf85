"""What an engine and the ranks of its stage say to each other, over a socket pair a rank.

An engine calls all ranks; rank 0 answers, and every rank does to a load and where each has a part
of the answer. Both ends are one program, so values go as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.common.errors import ShuntError
from services.common.generation import ModelRef
from services.common.nodes import StageSpec
from services.engine.backend import ResidentLayer, StageFacts
from services.engine.core.kv_layout import KvLayout
from services.engine.ranks.rank import Rank
from services.engine.stages import StageLoader

OfRank = Callable[[Rank], StageLoader]
"""Makes the loader of one rank; sent to its process."""


@dataclass(frozen=True, slots=True)
class Begin:
    """The first message: what to load, and with what."""

    loader: OfRank
    model: ModelRef
    spec: StageSpec
    niceness: int
    """Of the load; steps are computed at that of the engine."""


@dataclass(frozen=True, slots=True)
class Call:
    """A method of the stage."""

    method: str
    arguments: tuple[Any, ...]
    each: bool = False
    """Every rank answers, not rank 0 alone."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """A rank still loads."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a rank is when it has loaded."""

    facts: StageFacts
    resident: Mapping[int, ResidentLayer]
    kv_layout: KvLayout
    kv_heads: range


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call came to."""

    value: Any
    computed_s: float = 0.0
    """What the rank has had of a core for calls, in all."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What it raised."""

    error: ShuntError
