"""A simulated controller has generations leave their formation, each in its time or all at once,
and their blocks go where they will go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

from services.common.errors import ShuntError
from services.common.exchange import KvMember
from services.common.link import Link
from services.controller.core.cluster.actions import CopyAhead, DepartFormation, DrainFormation
from services.controller.core.departure.departure import Departure
from services.controller.core.departure.move import Choice
from services.controller.core.departure.move import Stream as Leaving
from services.controller.core.departure.schedule import at_once, cheapest
from services.controller.core.ledger.records import HeadBound
from services.engine.backend import BLOCK_SIZE
from services.engine.core.copying import Heir
from simulator.processes.controlling import CALL_S, Controlling
from simulator.processes.stages import BLOCK_BYTES

FOLLOWED_S = 20.0
"""So long blocks follow a prompt that is read."""
LINK_BYTES_PER_S = 1000.0
"""Of KV blocks, of which a position is an id here."""
SLOWER_S = 0.7
"""So long before a departure ends its link carries a third of what it did."""


class Departures:
    """Of all formations that are left."""

    def __init__(self, of: Controlling) -> None:
        self._of = of
        self._departures: dict[str, Departure] = {}
        """By formation, while it is not drained."""
        self._link = Link()
        self._link.carried(int(LINK_BYTES_PER_S), 1.0, of.clock.now_s)
        self._over: dict[str, float] = {}
        """Bytes of generations that are pushed, which are where they go on."""
        self._looked_s: dict[str, float] = {}
        """At a formation that departs, last."""

    def depart(self, action: DepartFormation) -> None:
        """Each of its generations in its time."""
        self._departures[action.formation_id] = Departure(action.until_s)
        self._depart(action)

    def _depart(self, action: DepartFormation) -> None:
        formation_id, now_s = action.formation_id, self._of.clock.now_s
        departure = self._departures.get(formation_id)
        runs_at = self._of.cluster.view.runs_at(formation_id)
        if departure is None or runs_at is None:
            return
        observed, view = self._of.ledger.observed, self._of.cluster.view
        rates = observed.rates(runs_at.model, sum(view.beside(formation_id).values()))
        streams = self._of.ledger.streams(formation_id)
        if self._of.environment.settings.kv_travels:
            self._carry(formation_id, departure.end_s, streams)
            rates = replace(rates, link_bytes_per_s=self._link.bytes_per_s(now_s))
            streams = tuple(map(self._on_the_link, streams))
        look = departure.look(streams, rates, observed.lengths(runs_at.model), now_s)
        self._over |= dict.fromkeys((m.generation_id for m in look.pushes), 0.0)
        self._of.monitor.departs(formation_id, streams, rates, look, departure.end_s)

        def drained(result: Any) -> None:
            if self._departures.get(formation_id) is not departure:
                return
            if look.running and not isinstance(result, ShuntError):
                wakes_in_s = max(0.0, look.wakes_at_s - self._of.clock.now_s)
                self._of.after(wakes_in_s, self._depart, action)
            else:
                self._of.cluster.departed(formation_id, self._of.clock.now_s)
                self._of.stir()

        self._of.ask(action.head.incarnation, "drain", (formation_id, look.running), drained)

    def _carry(self, formation_id: str, end_s: float, streams: Sequence[Leaving]) -> None:
        """Blocks of those that are pushed have gone over since the look before."""
        now_s, going = self._of.clock.now_s, [o for o in streams if o.generation_id in self._over]
        took_s = now_s - self._looked_s.get(formation_id, now_s)
        self._looked_s[formation_id] = now_s
        if going and took_s:
            rate = LINK_BYTES_PER_S / (3 if now_s > end_s - SLOWER_S else 1)
            for one in going:
                self._over[one.generation_id] += rate * took_s / len(going)
            self._link.carried(int(rate * took_s), took_s, now_s)

    def _on_the_link(self, stream: Leaving) -> Leaving:
        """With what of its full blocks is not over yet."""
        over = int(self._over.get(stream.generation_id, 0.0)) // BLOCK_BYTES
        return stream.with_blocks(BLOCK_BYTES, BLOCK_SIZE, over)

    def copy_ahead(self, action: CopyAhead) -> None:
        """Full blocks go to where their generations will go on, while their formation serves."""
        name, now_s = action.formation_id, self._of.clock.now_s
        heads = [] if action.waited_for else self._of.cluster.view.heads(now_s)
        promised = self._of.ledger.promise(name, heads)
        streams = [self._on_the_link(one) for one in self._of.ledger.streams(name)]
        runs_at = self._of.cluster.view.runs_at(name)
        link_bytes_per_s = self._link.bytes_per_s(now_s)
        moves = at_once(streams, now_s, travels=True, link_bytes_per_s=link_bytes_per_s)
        if runs_at is not None and self._of.environment.random.random() < 0.5:
            moves = cheapest(streams, self._of.ledger.observed.rates(runs_at.model, inf), now_s)
        there: dict[str, set[str]] = {}
        for move in moves:
            if move.choice is Choice.PUSH:
                head = promised.get(move.generation_id)
                formation_id = head.route.formation_id if head is not None else ""
                there.setdefault(formation_id, set()).add(move.generation_id)
        view = self._of.cluster.view
        heirs = tuple(
            Heir(
                tuple(KvMember(m.address, m.incarnation, m.layers) for m in view.members(heir)),
                frozenset(names),
                heir,
            )
            for heir, names in there.items()
        )

        def copied(_: Any) -> None:
            self._of.cluster.copied(name, self._of.clock.now_s)
            self._of.stir()

        args = (name, heirs, action.limit_s)
        self._of.ask(action.head.incarnation, "copy", args, copied, action.limit_s + CALL_S)

    def drain(self, drain: DrainFormation) -> None:
        """All at once, whatever was chosen for each."""
        self._departures.pop(drain.formation_id, None)

        def drained(result: Any) -> None:
            now_s = self._of.clock.now_s
            if isinstance(result, ShuntError):
                self._of.cluster.drain_failed(drain.formation_id, "", now_s)
                self._of.stir()
            else:
                self._of.cluster.drained(drain.formation_id, result, now_s)
                self._of.stir()

        self._of.ask(drain.head.incarnation, "drain", (drain.formation_id,), drained)

    def follow(self, bound: HeadBound) -> None:
        """Blocks of what will be handed on go where it will go on, while its prompt is read."""
        view = self._of.cluster.view
        head = self._of.ledger.promise_onward(bound.generation_id, view.heads(self._of.clock.now_s))
        if head is None:
            return
        there, names = head.route.formation_id, frozenset({bound.generation_id})
        members = tuple(KvMember(m.address, m.incarnation, m.layers) for m in view.members(there))
        heir = Heir(members, names, there)
        args = (bound.formation_id, (heir,), FOLLOWED_S, True)
        self._of.ask(bound.incarnation, "copy", args, timeout_s=FOLLOWED_S + CALL_S)
