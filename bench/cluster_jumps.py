"""The cluster core alone, on a clock that jumps: what an event writes, what an idle day takes."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import count
from math import inf

from bench.cluster_made import BEAT_S, facts_of, plan_of, settings_of
from services.controller.core.cluster.actions import (
    Action,
    AskPlan,
    Beat,
    FormPipeline,
    LaunchNode,
    Loaded,
    LoadStage,
    LogEvent,
    PersistCluster,
    TerminateNode,
)
from services.controller.core.cluster.cluster import Cluster

FOLD_S = 60.0
"""So long a run of regular beats reaches the core as one."""
DAY_S = 86_400.0


class Jumps:
    """A cluster core whose time jumps from what falls due to what falls due next. Whatever it asks
    for is done at once."""

    def __init__(self, nodes: int) -> None:
        ids = count(1)
        # who jumps watches all the time
        settings = replace(settings_of(nodes), glance_s=inf)
        self.core = Cluster(settings, lambda: f"formation-{next(ids)}", 0.0, 0.0)
        self.now_s = 0.0
        self.advances = self.runs = 0
        self.formations: dict[str, str] = {}
        """By node."""
        self.said: Counter[str] = Counter()
        self.writes: list[dict[str, str | None]] = []
        self.core.start(0.0)
        self.advance()

    def advance(self) -> None:
        """Until nothing more is asked for."""
        while actions := self._asked():
            for action in actions:
                self._do(action)

    def _asked(self) -> list[Action]:
        self.advances += 1
        return self.core.advance(self.now_s)

    def _do(self, action: Action) -> None:
        core, now_s = self.core, self.now_s
        match action:
            case PersistCluster(notes):
                self.writes.append(dict(notes))
            case LogEvent(kind):
                self.said[kind] += 1
            case LaunchNode(node_id):
                core.register(facts_of(node_id), now_s)
            case AskPlan():
                core.plan_ready(plan_of(action), now_s)
            case LoadStage():
                core.load_done(action, Loaded(4096, "class"), now_s)
            case FormPipeline(formation_id):
                self.formations |= {m.node_id: formation_id for m in action.members}
                core.formed(formation_id, now_s)
            case TerminateNode(node_id):
                self.formations.pop(node_id, None)

    def lose(self, node_id: str) -> None:
        self.formations.pop(node_id, None)
        self.core.node_gone(node_id, facts_of(node_id).incarnation, "exit", self.now_s)
        self.advance()

    def idle(self, for_s: float) -> None:
        """Everybody beats, and nobody asks for anything."""
        end_s = self.now_s + for_s
        while self.now_s < end_s:
            until_s = min(end_s, self.now_s + FOLD_S)
            self._beat(until_s)
            while (wakes_at_s := self.core.wakes_at_s()) <= until_s:
                self.now_s, beating = max(self.now_s, wakes_at_s), dict(self.formations)
                self.advance()
                if self.formations != beating:
                    self._beat(until_s)
            self.now_s = until_s

    def _beat(self, until_s: float) -> None:
        for node_id, formation_id in self.formations.items():
            beat = Beat(node_id, facts_of(node_id).incarnation, formation_id)
            self.core.heartbeat(beat, self.now_s, until_s)
            self.runs += 1


@dataclass(frozen=True, slots=True)
class Writes:
    """What the journal is asked to keep for a loss and its replacement, with every event in a turn
    of its own."""

    nodes: int
    writes: int
    notes: int
    size_bytes: int
    whole_bytes: int
    """Of all notes that stand."""


def writes_of_a_loss(nodes: int) -> Writes:
    world = Jumps(nodes)
    standing: dict[str, str | None] = {}
    for notes in world.writes:
        standing |= notes
    before = len(world.writes)
    world.lose("node-2")
    made = world.writes[before:]
    return Writes(
        nodes,
        len(made),
        sum(map(len, made)),
        sum(len(key) + len(note or "") for notes in made for key, note in notes.items()),
        sum(len(key) + len(note or "") for key, note in standing.items()),
    )


@dataclass(frozen=True, slots=True)
class Day:
    """An idle stretch of virtual time."""

    nodes: int
    virtual_s: float
    took_s: float
    runs: int
    """Of beats that reached the core as one each."""
    beats: int
    """That these stand for."""
    advances: int
    lost: int


def idle_day(nodes: int, for_s: float = DAY_S) -> Day:
    world = Jumps(nodes)
    advances, began_s = world.advances, time.perf_counter()
    world.idle(for_s)
    return Day(
        nodes,
        for_s,
        round(time.perf_counter() - began_s, 2),
        world.runs,
        round(nodes * for_s / BEAT_S),
        world.advances - advances,
        world.said["node_lost"],
    )
