"""What a head has of the formation that it leads, and blocks of that which leave it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from services.common.generation import ModelRef
from services.engine.backend import BLOCK_SIZE, StageFacts
from services.engine.core.actions import StartSequence
from services.engine.core.incoming import Incoming, NamedBlock, names_of
from services.engine.core.load import LoadGauge
from services.engine.core.pace import Pace
from services.engine.core.prefix_fetching import PrefixFetching
from services.engine.core.scheduler import Scheduler, SchedulerSettings
from services.engine.core.step_size import most_rows
from services.engine.core.validation import Bounds


@dataclass(frozen=True, slots=True)
class Lead:
    """What exists while this process heads a formation."""

    formation_id: str
    scheduler: Scheduler
    bounds: Bounds
    pace: Pace
    gauge: LoadGauge = field(default_factory=LoadGauge)
    prefixes: PrefixFetching = field(default_factory=PrefixFetching)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    """For what stages are asked to do to blocks."""
    incoming: Incoming = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "incoming", Incoming(self.scheduler, self.numbers, self.prefixes))


def lead_of(
    formation_id: str,
    model: ModelRef,
    facts: StageFacts,
    *,
    stages: int,
    kv_blocks: int,
    settings: SchedulerSettings,
    progress_s: float,
    limit_bytes: int,
    grammar_library: str = "",
    places: Mapping[bytes, int] | None = None,
    prefixes: PrefixFetching | None = None,
) -> Lead:
    """What the head of this many stages begins with; `facts` are those of its own. Blocks of some
    names may lie in their `places` already. Without `prefixes` nothing is fetched of others.

    Raises FailedPrecondition when no step fits into a message.
    """
    positions = min(facts.context_length, kv_blocks * BLOCK_SIZE)
    rows = most_rows(facts, kv_blocks, positions, settings, limit_bytes)
    batches = replace(
        settings,
        token_budget=min(settings.token_budget, rows),
        max_drafts=settings.max_drafts if facts.exact else 0,
    )
    return Lead(
        formation_id,
        Scheduler(batches, kv_blocks, stages, places),
        Bounds(model, facts.vocab_size, positions, limit_bytes, grammar_library),
        Pace(progress_s),
        prefixes=prefixes or PrefixFetching(),
    )


@dataclass(slots=True, eq=False)
class Leaving:
    """Blocks that the stages are to keep for others."""

    blocks: tuple[NamedBlock, ...]
    number: int = 0
    busy: bool = False
    """Some stage may be at it."""
    scheduler: Scheduler | None = None
    """Whose they are."""
    behind: int = 0
    """A block has its name before a step brings what it holds: the last such step."""

    @classmethod
    def of(cls, lead: Lead, starts: Iterable[StartSequence]) -> Leaving:
        """What is computed of sequences, in their order; no step writes to it until it is given
        back."""
        blocks = dict[bytes, int]()
        for start in starts:
            names = names_of(start)
            blocks |= zip(names, lead.scheduler.blocks.find(names), strict=False)
        return cls.taken(lead, tuple(blocks.items()))

    @classmethod
    def taken(cls, lead: Lead, blocks: tuple[NamedBlock, ...]) -> Leaving:
        """These are nobody else's until they are given back."""
        places, allocator = [block for _, block in blocks], lead.scheduler.blocks
        allocator.share(places)
        behind = allocator.named_by(places)
        return cls(blocks, next(lead.numbers), scheduler=lead.scheduler, behind=behind)

    @property
    def computed(self) -> bool:
        """They hold what they are named for, at every stage."""
        return self.scheduler is None or self.scheduler.is_back(self.behind)

    def give_back(self) -> None:
        """Whatever a stage may be at stays taken."""
        if not self.busy and self.scheduler is not None:
            self.scheduler.blocks.release([block for _, block in self.blocks])
