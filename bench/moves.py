"""What kills and notices did to streams: every hand-over, as the event log and the reader saw it.

A gap belongs to a kill only if that kill began it. A stream that still waits for its first token
behind one kill may be struck by the next one; that wait is the first one's, and the schedule's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

IN_FLIGHT_S = 0.5
"""A token that was on its way at the time of a kill may still arrive."""
_TOLD_S = 0.25
"""A pipeline that serves is in the log once that is durable; epochs may be granted before."""
_ENDS = ("pipeline_lost", "handover_started")


class Event(Protocol):
    """What is read of an event of the controller's log."""

    @property
    def kind(self) -> str: ...
    @property
    def node_id(self) -> str: ...
    @property
    def pipeline_id(self) -> str: ...
    @property
    def generation_id(self) -> str: ...
    @property
    def time_unix_s(self) -> float: ...
    @property
    def attributes(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Strike:
    """A kill, and the streams that ran on its pipeline."""

    kind: str
    at_s: float
    pipeline: str
    generation_ids: frozenset[str]


def pause_s(
    events: Iterable[Event], node: str, pipeline: str, at_s: float, offset_s: float
) -> float:
    """Between the loss of a node killed at `at_s` and the launch of what takes its seat; 0 where
    nothing was launched. The controller waits longer from loss to loss while nothing that sits
    there serves for a while."""
    lost_s: float | None = None
    for event in events:
        told_s = event.time_unix_s - offset_s
        if event.kind == "node_lost" and event.node_id == node and told_s >= at_s:
            lost_s = told_s
        if lost_s is None or event.pipeline_id != pipeline:
            continue
        if event.kind == "node_launched":
            return told_s - lost_s
        if event.kind == "pipeline_ready":
            return 0.0
    return 0.0


@dataclass(frozen=True)
class Grant:
    """One epoch."""

    at_s: float
    pipeline: str
    planned: bool


@dataclass(frozen=True)
class Move:
    """One stream's way from one head to the next that gave it a token."""

    planned: bool
    kind: str
    """The kill's; empty when no kill caused it."""
    alone: bool
    """That kill struck a stream that ran: no other kill and no grant lies in the gap before it."""
    grants: int
    """All but the last were in vain: their head was gone before it said anything."""
    grants_to_dead: int
    """Those of them whose head was gone already; the others' went later."""
    detection_s: float
    """From the kill to the last grant."""
    replay_s: float
    """From the last grant to the first new token."""
    gap_s: float


@dataclass
class History:
    """When each pipeline served, and which epochs were granted; on the clock of the readers."""

    strikes: Sequence[Strike]
    grants: dict[str, list[Grant]] = field(default_factory=dict)
    """By generation."""
    _served: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By pipeline: from when to when."""

    @classmethod
    def read(cls, events: Iterable[Event], strikes: Sequence[Strike], offset_s: float) -> History:
        """`offset_s`: wall time less the readers' clock."""
        history = cls(strikes)
        turns = [(strike.at_s, strike.pipeline, False) for strike in strikes]
        for event in events:
            at_s = event.time_unix_s - offset_s
            if event.kind == "pipeline_ready" or event.kind in _ENDS:
                turns.append((at_s, event.pipeline_id, event.kind == "pipeline_ready"))
            elif event.kind == "generation_granted":
                planned = event.attributes["planned"] == "true"
                grant = Grant(at_s, event.pipeline_id, planned)
                history.grants.setdefault(event.generation_id, []).append(grant)
        since_s: dict[str, float] = {}
        for at_s, pipeline, serves in sorted(turns):
            if serves:
                since_s.setdefault(pipeline, at_s)
            elif pipeline in since_s:
                served = since_s.pop(pipeline), at_s
                history._served.setdefault(pipeline, []).append(served)
        for pipeline, at_s in since_s.items():
            history._served.setdefault(pipeline, []).append((at_s, float("inf")))
        return history

    def moves(self, arrivals_s: Mapping[str, Sequence[float]]) -> list[Move]:
        """Of every stream that was granted an epoch between two of its tokens."""
        return [
            self._move(generation_id, before_s, after_s, given)
            for generation_id, grants in self.grants.items()
            for before_s, after_s in pairwise(arrivals_s.get(generation_id, ()))
            if (given := [grant for grant in grants if before_s < grant.at_s <= after_s])
        ]

    def _move(
        self, generation_id: str, before_s: float, after_s: float, grants: Sequence[Grant]
    ) -> Move:
        granted = grants[-1]
        causes = [
            strike
            for strike in self.strikes
            if before_s - IN_FLIGHT_S <= strike.at_s <= granted.at_s
            and generation_id in strike.generation_ids
        ]
        return Move(
            planned=granted.planned,
            kind=causes[-1].kind if causes else "",
            alone=len(causes) == 1 and causes[0].at_s <= grants[0].at_s,
            grants=len(grants),
            grants_to_dead=sum(not self._serves(g.pipeline, g.at_s) for g in grants[:-1]),
            detection_s=granted.at_s - causes[-1].at_s if causes else 0.0,
            replay_s=after_s - granted.at_s,
            gap_s=after_s - before_s,
        )

    def left_standing_s(self) -> list[float]:
        """Of every stream that a kill struck: how long it was at no head that served, while one
        did. Whatever is waited for in vain shows here, on top of which kill it may come."""
        return [
            self._served_between(strike.at_s, found_s)
            for strike in self.strikes
            for generation_id in strike.generation_ids
            if (found_s := self._found_s(generation_id, strike.at_s)) is not None
        ]

    def _found_s(self, generation_id: str, since_s: float) -> float | None:
        """When it was granted to a head that served then."""
        grants = self.grants.get(generation_id, ())
        later = (grant for grant in grants if grant.at_s >= since_s)
        return next((g.at_s for g in later if self._serves(g.pipeline, g.at_s)), None)

    def _serves(self, pipeline: str, at_s: float) -> bool:
        served = self._served.get(pipeline, ())
        return any(began - _TOLD_S <= at_s < ended for began, ended in served)

    def _served_between(self, start_s: float, end_s: float) -> float:
        """For how long any pipeline served within that time."""
        periods = [period for served in self._served.values() for period in served]
        cuts = {cut for period in periods for cut in period if start_s < cut < end_s}
        times = sorted({start_s, end_s, *cuts})
        return sum(
            later - earlier
            for earlier, later in pairwise(times)
            if any(began <= earlier < ended for began, ended in periods)
        )
