"""Whose turn it is in a batch: who enters next, who runs, and who gives way to whom.

What yields (tolerant work, and what nobody reads) runs only while nothing before it waits for its
first token, and gives up its place for it. Between tenants places and steps are fair: one that has
had less takes a place from the one that holds most of them, and while its prompt is read those that
are well ahead of it pause. Who gives way goes on later; what has been accepted is finished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from services.common.exchange import Phase
from services.common.fair_queue import FairQueue, Shares
from services.engine.core.sequence import BatchedSequence

WELL_AHEAD = 2
"""Rounds that a tenant must have had more than another to pause for it: closer ones share steps,
for a batch of both costs less than one of each."""
KEPT_OF = 32
"""A place is kept for who may come in a batch of so many, or more: there it is little to lack."""
LATELY_STEPS = 512
"""A tenant that asked no longer ago may ask again."""
MAX_LATELY = 64
"""Tenants of which that is known, those that asked last."""


class Turns:
    """The order among the sequences of one formation."""

    def __init__(self) -> None:
        self._shares = Shares()
        self._waiting: FairQueue[BatchedSequence] = FairQueue(self._shares)
        self._asked: dict[str, int] = {}
        """The step in which each tenant asked last, of late; the newest last."""

    def __len__(self) -> int:
        """Sequences that wait."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[BatchedSequence]:
        """They, in no order."""
        return iter(self._waiting)

    def comes(self, sequence: BatchedSequence, step: int) -> None:
        """It is new in this step, and waits."""
        tenant = sequence.request.tenant
        self._shares.enter(tenant)
        self._asked.pop(tenant, None)
        self._asked[tenant] = step
        if len(self._asked) > MAX_LATELY:
            del self._asked[next(iter(self._asked))]
        self.waits(sequence)

    def departed(self, step: int) -> None:
        """This step is the last one so far: who asked long before it does not count any more."""
        while self._asked and self._asked[oldest := next(iter(self._asked))] < step - LATELY_STEPS:
            del self._asked[oldest]

    def waits(self, sequence: BatchedSequence) -> None:
        """It has no place."""
        self._waiting.push(sequence, sequence.turn)

    def enters(self, sequence: BatchedSequence) -> None:
        """It has one."""
        self._waiting.remove(sequence)

    def goes(self, sequence: BatchedSequence) -> None:
        """It neither waits nor runs any more."""
        self._waiting.remove(sequence)
        self._shares.leave(sequence.request.tenant)

    def set_unread(self, sequence: BatchedSequence, unread: bool) -> None:
        """Whether anybody reads it."""
        waits = sequence in self._waiting
        self._waiting.remove(sequence)
        sequence.unread = unread
        if waits:
            self.waits(sequence)

    def first(self) -> BatchedSequence | None:
        """Who enters next."""
        return self._waiting.first()

    def computed(self, sequence: BatchedSequence, start: int, end: int) -> None:
        """Its ids from `start` to `end` are. What of its prompt was found, and what is computed
        again, costs its tenant nothing."""
        request = sequence.request
        had = max(sequence.charged, min(start, len(request.prompt_ids)))
        if end > had:
            self._shares.charge(request.tenant, request.tenant_weight, end - had)
            sequence.charged = end

    def allowed(self, running: Iterable[BatchedSequence]) -> list[BatchedSequence]:
        """Those that may run now."""
        running, first = list(running), self.first()
        reading = [s for s in running if s.phase is Phase.PREFILL]
        awaited = [*reading, first] if first is not None else reading
        if not awaited:
            return running
        lane = min(s.lane for s in awaited)
        # Who has no place may lack one for long: for it only those pause that would give theirs.
        rounds = [self._round(s) for s in reading if s.lane == lane]
        most = min(rounds) + WELL_AHEAD if rounds else None
        return [s for s in running if s.lane <= lane and (most is None or self._round(s) < most)]

    def reading_order(self, reading: Iterable[BatchedSequence]) -> list[BatchedSequence]:
        """In which those that read their prompts get the rows of a step."""
        return sorted(reading, key=lambda s: (s.lane, self._round(s), s.turn.order))

    def hurried(self, reading: Iterable[BatchedSequence]) -> set[BatchedSequence]:
        """Of those that read their prompts, whose tenants have had more than another that asked of
        late, and for which they would pause: its next request waits for the steps in flight."""
        if not self._asked:
            return set()
        most = min(map(self._shares.round_of, self._asked)) + WELL_AHEAD
        return {s for s in reading if self._round(s) >= most}

    def leaves_last_place(self, sequence: BatchedSequence, places: int) -> bool:
        """The last place is kept from it for the next request of such another tenant: steps in
        flight may carry all that could give theirs up, and who does is computed again."""
        return places >= KEPT_OF and bool(self.hurried([sequence]))

    def gives_place(
        self, sequence: BatchedSequence, running: Iterable[BatchedSequence]
    ) -> BatchedSequence | None:
        """Who gives its place to one that waits: what yields to it, else the youngest of the tenant
        that holds most, as long as that one holds more than it even then. None: nobody does, or
        steps carry them."""
        running, lane, mine = list(running), sequence.lane, sequence.request
        idle = [s for s in running if not s.in_flight]
        yielding = [s for s in idle if s.lane > lane]
        if yielding:
            return max(yielding, key=_youngest)
        held = Counter(s.request.tenant for s in running)
        level, round_ = (held[mine.tenant] + 1) / mine.tenant_weight, self._round(sequence)
        ahead = [
            s
            for s in idle
            if s.lane == lane
            and (held[s.request.tenant] - 1) / s.request.tenant_weight >= level
            and self._round(s) > round_
        ]
        return max(ahead, key=lambda s: (_holds(s, held), s.arrival), default=None)

    def gives_blocks(
        self, candidates: Iterable[BatchedSequence], running: Iterable[BatchedSequence]
    ) -> BatchedSequence:
        """Who gives up its place when an answer lacks a block."""
        held = Counter(s.request.tenant for s in running)
        return max(candidates, key=lambda s: (s.lane, _holds(s, held), s.arrival))

    def _round(self, sequence: BatchedSequence) -> int:
        return self._shares.round_of(sequence.request.tenant)


def _youngest(sequence: BatchedSequence) -> tuple[int, int]:
    return sequence.lane, sequence.arrival


def _holds(sequence: BatchedSequence, held: Counter[str]) -> float:
    return held[sequence.request.tenant] / sequence.request.tenant_weight
