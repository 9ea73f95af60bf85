"""The bounds under random schedules of orders, lost answers, late looks, restarts and lies: the
production core against a cloud that is not to be trusted."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from math import fsum

import pytest

from services.common.errors import ShuntError
from services.common.nodes import NodeShape
from services.controller.providers.ec2.bounds import Bounds
from services.controller.providers.ec2.holdings import Holdings
from services.controller.providers.ec2.inventory import Instance, State
from services.controller.providers.ec2.table import InstanceType, Table

SEEDS = 1000
STEPS = 60
CONSISTENCY_S = 5.0
SHOWN_S = 2.4
"""What was started, or was shown before, is shown within this."""
LATE_S = 2.4
"""An order whose answer nobody waits for may be carried out within this."""
PRICES = {"t.small": 1.0, "t.big": 4.0}
TABLE = Table({k: InstanceType(k, NodeShape(1 << 30, 1.0), 100, v) for k, v in PRICES.items()})
UNLISTED = "t.huge"


class LyingCloud:
    """What truly runs, and what of it is shown."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.now_s = 0.0
        self.instances: dict[str, Instance] = {}
        self.shown_from_s: dict[str, float] = {}
        self.hidden_until_s: dict[str, float] = {}
        self.extra: set[str] = set()
        """Those that nobody asked for."""
        self.shown: set[str] = set()
        self.tokens: dict[str, tuple[str, ...]] = {}

    def start(self, node_id: str, kind: str) -> tuple[str, ...]:
        """Of one order; the same again starts nothing. Some have two started, of which one may be
        of another type, and not each answer says so."""
        if node_id not in self.tokens:
            count = 2 if self.chance.random() < 0.1 else 1
            ids = tuple(self._start(node_id, kind, extra=n > 0) for n in range(count))
            told = ids if self.chance.random() < 0.5 else ids[:1]
            self.tokens[node_id] = told
        return self.tokens[node_id]

    def _start(self, node_id: str, kind: str, *, extra: bool) -> str:
        instance_id = f"i-{len(self.instances)}"
        if extra and self.chance.random() < 0.3:
            kind = self.chance.choice(("t.big", UNLISTED))
        self.instances[instance_id] = Instance(
            instance_id, node_id, f"{kind}/z/spot", kind, "z", State.PENDING, f"{self.now_s:09.3f}"
        )
        self.shown_from_s[instance_id] = self.now_s + self.chance.random() * SHOWN_S
        if extra:
            self.extra.add(instance_id)
        return instance_id

    def end(self, instance_id: str, state: State = State.TERMINATED) -> None:
        if instance_id in self.instances:
            one = self.instances[instance_id]
            self.instances[instance_id] = replace(one, state=state)

    def glitch(self) -> None:
        """One that was shown is not for a moment."""
        if self.instances:
            one = self.chance.choice(list(self.instances))
            self.hidden_until_s[one] = self.now_s + self.chance.random() * SHOWN_S

    def describe(self) -> list[Instance]:
        shown = [
            one
            for name, one in self.instances.items()
            if self.now_s >= max(self.shown_from_s[name], self.hidden_until_s.get(name, 0.0))
        ]
        self.shown |= {one.instance_id for one in shown}
        return shown

    def paid(self) -> list[Instance]:
        return [one for one in self.instances.values() if one.is_paid]


class Schedule:
    """Random orders of a plan that wants more than there is money for."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.cloud = LyingCloud(self.chance)
        self.bounds = Bounds(self.chance.randint(1, 8), self.chance.choice((2.5, 9.0, 20.0, 100.0)))
        self.known: set[str] = set()
        self.late: list[tuple[float, str, str]] = []
        """Orders whose answer nobody waited for, which may be carried out yet."""
        self.number = 0
        self.happened: Counter[str] = Counter()
        self._begin()

    def _begin(self) -> None:
        self.holdings = Holdings(TABLE, self.bounds, consistency_s=CONSISTENCY_S)

    def run(self) -> None:
        acts = (self.order, self.order, self.order, self.look, self.look, self.end, self.take)
        rare = (self.restart, self.cloud.glitch, self.forget)
        for _ in range(STEPS):
            self.cloud.now_s += self.chance.random() * 3.0
            self._carry_out_late()
            act = self.chance.choice(rare if self.chance.random() < 0.15 else acts)
            act()
            self._check_asked()
        self._rest()

    def order(self) -> None:
        self.number += 1
        node_id, kind = f"node-{self.number}", self.chance.choice(("t.small", "t.big"))
        try:
            self.holdings.order(node_id, f"{kind}/z/spot", TABLE.dollars_per_hour(kind))
        except ShuntError:
            self.happened["stopped"] += 1
            return
        self.happened["ordered"] += 1
        self.known.add(node_id)
        match self.chance.randrange(6):
            case 0:
                self.holdings.refused(node_id)
            case 1:  # the answer is lost
                self.cloud.start(node_id, kind)
                self.holdings.unanswered(node_id, self.cloud.now_s)
            case 2:  # the same, and it may be carried out later yet
                if self.chance.random() < 0.5:
                    due_s = self.cloud.now_s + self.chance.random() * LATE_S
                    self.late.append((due_s, node_id, kind))
                self.holdings.unanswered(node_id, self.cloud.now_s)
            case 3:  # it is killed between the order and its answer
                self.cloud.start(node_id, kind)
                if self.chance.random() < 0.5:
                    self.known.discard(node_id)
                self.restart()
            case _:
                ids = self.cloud.start(node_id, kind)
                self.holdings.started(node_id, ids, self.cloud.now_s)
        self.check()

    def _carry_out_late(self) -> None:
        for due in [one for one in self.late if one[0] <= self.cloud.now_s]:
            self.late.remove(due)
            self.cloud.start(due[1], due[2])

    def look(self) -> None:
        known = self.known if self.chance.random() < 0.9 else None
        looked = self.holdings.looked(self.cloud.describe(), self.cloud.now_s, known)
        for gone in looked.gone:
            self.known.discard(gone.node_id)
        for instance_id in looked.to_end:
            self.happened["too many"] += 1
            if self.chance.random() < 0.8:
                self.cloud.end(instance_id)

    def end(self) -> None:
        held = [node_id for node_id in self.known if self.holdings.holds(node_id)]
        if held:
            node_id = self.chance.choice(sorted(held))
            self.holdings.call_off(node_id)
            for instance_id in self.holdings.instance_ids_of(node_id):
                self.cloud.end(
                    instance_id, self.chance.choice((State.SHUTTING_DOWN, State.TERMINATED))
                )

    def take(self) -> None:
        living = self.cloud.paid()
        if living:
            self.cloud.end(self.chance.choice(living).instance_id)

    def forget(self) -> None:
        """The cluster gives a node up."""
        if self.known:
            self.known.discard(self.chance.choice(sorted(self.known)))

    def restart(self) -> None:
        self.happened["restart"] += 1
        handles = {
            node_id: self.holdings.instance_id_of(node_id)
            for node_id in self.known
            if self.chance.random() < 0.7
        }
        self._begin()
        for node_id, instance_id in handles.items():
            if instance_id:
                self.holdings.adopt(node_id, instance_id, self.cloud.now_s)

    def check(self) -> None:
        """What was asked for is within the bounds, and with it what was shown beside it."""
        counted = [
            one
            for one in self.cloud.paid()
            if one.instance_id not in self.cloud.extra - self.cloud.shown
        ]
        assert len(counted) <= self.bounds.instances, counted
        dollars = fsum(TABLE.dollars_per_hour(one.instance_type) for one in counted)
        assert dollars <= self.bounds.dollars_per_hour + 1e-6, counted

    def _check_asked(self) -> None:
        """At all times."""
        asked = [one for one in self.cloud.paid() if one.instance_id not in self.cloud.extra]
        assert len(asked) <= self.bounds.instances, asked
        dollars = fsum(TABLE.dollars_per_hour(one.instance_type) for one in asked)
        assert dollars <= self.bounds.dollars_per_hour + 1e-6, asked

    def _rest(self) -> None:
        """Nothing more happens: what is too many is ended, and every node has one instance."""
        for _ in range(8):
            self.cloud.now_s += CONSISTENCY_S
            looked = self.holdings.looked(self.cloud.describe(), self.cloud.now_s, self.known)
            self.known -= {gone.node_id for gone in looked.gone}
            for instance_id in looked.to_end:
                self.cloud.end(instance_id)
        paid = self.cloud.paid()
        assert len(paid) <= self.bounds.instances
        assert fsum(TABLE.dollars_per_hour(p.instance_type) for p in paid) <= (
            self.bounds.dollars_per_hour + 1e-6
        )
        assert max(Counter(one.node_id for one in paid).values(), default=1) == 1
        assert {one.node_id for one in paid} <= self.known
        for one in paid:
            assert self.holdings.instance_id_of(one.node_id) == one.instance_id


def test_no_schedule_passes_the_bounds() -> None:
    happened: Counter[str] = Counter()
    for seed in range(SEEDS):
        schedule = Schedule(seed)
        try:
            schedule.run()
        except AssertionError as error:
            pytest.fail(f"seed {seed}: {error}")
        happened += schedule.happened
    assert min(happened[k] for k in ("ordered", "stopped", "too many", "restart")) > SEEDS // 2, (
        happened
    )
