"""Watches formations that depart: a market takes a node of theirs, nobody follows, others serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from oracle_market import MarketOracle

from services.controller.core.cluster.actions import LogEvent
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.departure.departure import Look
from services.controller.core.departure.move import Rates, Stream

EARLY_S = 0.35
"""A move may begin so much sooner than it had to, for what was measured is no more than that."""

DRAINED_S = 3.0
"""What runs nothing any more is drained within this long."""


@dataclass(frozen=True, slots=True)
class Left:
    """A formation as it was looked at last."""

    since_s: float
    end_s: float
    running: frozenset[str]
    stopped: frozenset[str]
    looked_s: float


class DepartureOracle(MarketOracle):
    """Who leaves when."""

    def __init__(self) -> None:
        super().__init__()
        self.departing: dict[str, Left] = {}
        self.departures = 0
        self.stayed = 0
        """Generations that were let run on in one."""
        self.hurried = False
        """Something was done on purpose to have one end sooner."""

    def restarted(self) -> None:
        """Who was to go is found again."""
        super().restarted()
        self.departing.clear()

    def departs(
        self, formation_id: str, streams: Sequence[Stream], rates: Rates, look: Look, end_s: float
    ) -> None:
        """What goes on in one, and what does not any more."""
        now_s, names = self._now_s, {one.generation_id for one in streams}
        before = self.departing.get(formation_id)
        self.departures += before is None
        self.stayed += len(look.running) if before is None else 0
        stopped = frozenset[str]() if before is None else before.stopped
        if again := stopped & look.running:
            self.fail(31, f"{again} were told to stop, and are to go on")
        if now_s >= end_s and look.running:
            self.fail(31, f"{look.running} are to go on behind the end of {formation_id}")
        fresh = names - look.running - stopped
        all_s = sum(
            rates.replay_of_s(one.positions + sum(one.limit - n for n in one.lengths))
            for one in streams
        )
        over = {one.generation_id for one in streams if one.bytes == 0}
        if fresh - over and now_s < end_s - all_s - EARLY_S:
            self.fail(31, f"{fresh} leave {formation_id} long before they have to")
        for one in streams:
            ends_s = now_s + one.left / one.tokens_per_s if one.tokens_per_s else inf
            if one.generation_id in fresh and ends_s < end_s - EARLY_S:
                self.fail(31, f"{one.generation_id} leaves, and would have ended in time")
        since_s = now_s if before is None else before.since_s
        self.departing[formation_id] = Left(since_s, end_s, look.running, stopped | fresh, now_s)
        self.note("departs", formation_id, *sorted(look.running))

    def cluster_event(self, cluster: Cluster, event: LogEvent) -> None:
        """Of the event log."""
        if event.kind == "handover_started":
            self._check_its_time(cluster, event.attributes["formation"])
        super().cluster_event(cluster, event)

    def _check_its_time(self, cluster: Cluster, formation_id: str) -> None:
        """Nothing that goes on in it is cut short, unless somebody waits for its nodes."""
        left = self.departing.pop(formation_id, None)
        pipeline = cluster._state.pipeline(formation_id)
        if left is None or pipeline is None or self.hurried or self.plans:
            return
        if not left.running and self._now_s > left.looked_s + DRAINED_S:
            self.fail(31, f"{formation_id} is kept, and has been empty since {left.looked_s}")
        runs = {one.generation_id for one in self._streams(formation_id)} & left.running
        if runs and self._now_s < left.end_s - EARLY_S:
            self.fail(31, f"{formation_id} is drained with {runs} in it, before its time")

    def _streams(self, formation_id: str) -> Sequence[Stream]:
        world = self.world
        return () if world is None else world.controller.ledger.streams(formation_id)

    def moved(self, name: str) -> None:
        """A generation was sealed where it ran, and has its next head."""
        if not self.hurried and any(name in left.running for left in self.departing.values()):
            self.fail(31, f"{name} is moved, and was to go on where it was")

    def check_departures(self, least: int) -> None:
        """So many there were, and all are over."""
        if self.departures < least:
            self.fail(31, "a market took a node, and what it had was moved at once")
        pipelines = self.world.controller.cluster._state.pipelines if self.world else {}
        if departing := [name for name, p in pipelines.items() if p.departing]:
            self.fail(31, f"{departing} take nothing new, and nobody goes")

    def begins(self, name: str, formation_id: str, *, late_s: float = 0.0) -> None:
        """A generation is given to a formation; whoever gave it may not have heard for so long."""
        left = self.departing.get(formation_id)
        if left is not None and self._now_s > left.since_s + late_s:
            self.fail(31, f"{name} begins in {formation_id}, which departs")
