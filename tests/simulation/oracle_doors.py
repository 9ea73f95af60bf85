"""What must hold before the doors: no tenant above its quota; nothing accepted is refused; each
place is left once; who has left holds nothing; a refusal has its reason, and who does as it says is
served."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from copy import deepcopy
from fractions import Fraction
from math import inf
from typing import TYPE_CHECKING, NoReturn

from door_heads import MODELS, Head
from watch import Violation

from services.common.errors import ResourceExhausted
from services.common.exchange import HeadLoad
from services.common.generation import PriorityClass
from services.common.tenants import Tenant
from services.router.core.dispatching import Sending, Waiter

if TYPE_CHECKING:
    from doors import Door, Doors, Visit

MINUTE_S = 60.0
SLACK = 1e-4
"""Of sums of fractions."""
TRIED = 8
"""One of so many refusals is asked again."""


class _Told:
    """What a router knows of a head."""

    def __init__(self, load: HeadLoad) -> None:
        queued = sum(one.queued for one in load.tenants)
        self.free = 0 if queued else load.places - load.running
        self.sent = 0
        """Choices, since."""
        self.tenants = {one.tenant for one in load.tenants if one.running or one.queued}

    def check_room(self, tenant: str) -> None:
        """For tolerant work; of others it may have places, as far as weights grant it. Raises
        Violation."""
        if self.free <= self.sent and self.tenants <= {tenant}:
            raise Violation("tolerant work comes before there is a place for it")


class DoorOracle:
    """Sees all that is asked and answered; what it knows of the cores is what they said."""

    def __init__(self, world: Doors) -> None:
        self._world = world
        self._asked: dict[str, list[float]] = defaultdict(list)
        self._tokens: dict[str, list[tuple[float, int]]] = defaultdict(list)
        """What each tenant took, and got back, and when."""
        self._reserved: dict[str, int] = {}
        self._owed: Counter[str] = Counter()
        """The most that a tenant took for a request beyond what a full bucket holds."""
        self._told: dict[tuple[Door, str], _Told] = {}
        """By router and formation."""
        self._refusals = 0
        self._coming: list[tuple[float, float]] = []
        """How much more of a limit than there is routers may hold since one came, and until when:
        until all have heard of it."""

    def fail(self, what: str) -> NoReturn:
        """Raises Violation."""
        raise Violation(what)

    # Quotas

    def asked(self, door: Door, tenant: Tenant, now_s: float) -> None:
        """A request was counted against the limit a minute."""
        self._asked[tenant.name].append(now_s)
        self._check(tenant, now_s)

    def reserved(self, door: Door, visit: Visit, now_s: float) -> None:
        """And what it may come to in tokens."""
        request = visit.request
        tokens = len(request.prompt_ids) + request.choices * request.sampling.max_tokens
        self._reserved[request.generation_id] = tokens
        name = visit.tenant.name
        most = visit.tenant.limits.tokens_per_minute
        if most is not None and tokens > most * door.quotas.shares.of(name):
            self._owed[name] = max(self._owed[name], tokens)
        self._tokens[name].append((now_s, tokens))
        self._check(visit.tenant, now_s)

    def settled(self, visit: Visit, used: int, now_s: float) -> None:
        """A request ended, or came to nothing; it may be told again, and counts once."""
        reserved = self._reserved.pop(visit.request.generation_id, None)
        if reserved is not None:
            self._tokens[visit.tenant.name].append((now_s, used - reserved))

    def _check(self, tenant: Tenant, now_s: float) -> None:
        """No stretch of time up to now had more than a full bucket and what fills it meanwhile."""
        limits, routers = tenant.limits, len(self._world.doors)
        if (most := limits.requests_per_minute) is not None:
            self._check_flow([(at_s, 1) for at_s in self._asked[tenant.name]], most, routers, now_s)
        if (most := limits.tokens_per_minute) is not None:
            more = self._owed[tenant.name] + routers
            self._check_flow(self._tokens[tenant.name], most, more, now_s)

    def _check_flow(
        self, taken: Sequence[tuple[float, int]], most: int, more: int, now_s: float
    ) -> None:
        total = 0
        for at_s, amount in reversed(taken):
            total += amount
            held = 1 + sum(part for part, until_s in self._coming if until_s > at_s)
            if total > most * held * (1 + (now_s - at_s) / MINUTE_S) + more + SLACK:
                self.fail(f"a tenant has {total} of {most} a minute in {now_s - at_s:.3f} s")

    def comes(self, part: float) -> None:
        """A router does, which gets so much of a limit before the others have heard of it."""
        self._coming.append((part, inf))

    def all_know(self) -> None:
        """Each router has heard of all others."""
        now_s = self._world.clock.now_s
        self._coming = [(part, min(until_s, now_s)) for part, until_s in self._coming]

    def shares_told(self) -> None:
        """Each router holds some of a limit; all hold no more than there is, but for who comes."""
        coming = sum(part for part, until_s in self._coming if until_s == inf)
        most = coming + self._world.dealt
        for tenant in self._world.tenants:
            told = [door.quotas.shares for door in self._world.doors if door.quotas.shares.routers]
            if (held := sum(shares.of(tenant.name) for shares in told)) > most + SLACK:
                self.fail(f"routers hold {held:.3f} of a tenant's limits, at most {most:.3f}")
            if min(shares.of(tenant.name) for shares in told) <= 0:
                self.fail("a router that serves holds nothing of a tenant's limits")

    def told_to_wait(self, door: Door, visit: Visit, refusal: ResourceExhausted) -> None:
        """Whoever comes back when he was told to is let in, unless others came before him."""
        wait_s, tenant = refusal.retry_after_s, visit.tenant
        if not wait_s or wait_s <= 0:
            self.fail("a refusal does not say when to come back")
        self._refusals += 1
        if "streams" in refusal.message or self._refusals % TRIED:
            return
        quotas, later_s = deepcopy(door.quotas), self._world.clock.now_s + wait_s + SLACK
        try:
            if visit.request.generation_id not in quotas._accounts[tenant.name].followed:
                quotas.ask(tenant, later_s)
            else:
                quotas.reserve(tenant, visit.request, later_s)
        except ResourceExhausted as again:
            self.fail(f"told to wait {wait_s:.3f} s, and then {again.retry_after_s} s more")

    # Places

    def _held(self, door: Door) -> Counter[str]:
        return Counter(visit.tenant.name for visit in door.visits)

    def no_place(self, door: Door, visit: Visit) -> None:
        """A router says that it has no place: is there none for this model and this tenant?"""
        held, total = self._held(door), len(door.visits)
        if total >= door.most:
            return
        models = Counter(v.request.model for v in door.visits)
        own, model = door.most // (2 * len(MODELS)), visit.request.model
        others = sum(max(0, own - models[other]) for other in MODELS if other != model)
        if door.most - total - others > 0 or models[model] < own:
            if total < door.most - door.most // 4 or not visit.tenant.name:
                self.fail("a place was refused that was free")
            if held[visit.tenant.name] + 1 <= self._part(door, visit):
                self.fail("a tenant was refused a place of its part")

    def place(self, door: Door, visit: Visit) -> None:
        """It was let in: of the last places no tenant has more than its part."""
        if len(door.visits) >= door.most:
            self.fail("a router follows more than it may")
        last = len(door.visits) >= door.most - door.most // 4
        mine = self._held(door)[visit.tenant.name] + 1
        if last and visit.tenant.name and mine > self._part(door, visit):
            self.fail("a tenant has of the last places more than its part")

    def _part(self, door: Door, visit: Visit) -> Fraction:
        """Of all places, by weight; none of the last ones for who is alone."""
        weights = {v.tenant.name: v.tenant.weight for v in door.visits}
        weights[visit.tenant.name] = visit.tenant.weight
        if len(weights) == 1:
            return Fraction(0)
        return Fraction(door.most * visit.tenant.weight, sum(weights.values()))

    def check_counts(self) -> None:
        """What routers count is what there is."""
        for door in self._world.doors:
            places = len(door.visits)
            waiting = sum(visit.phase == "waiting" for visit in door.visits)
            if door.admission.total != places:
                self.fail(f"{door.admission.total} places are taken, by {places} requests")
            if door.dispatcher.waiting != waiting:
                self.fail(f"{door.dispatcher.waiting} wait, and {waiting} do")
            for name, account in door.quotas._accounts.items():
                here = {
                    visit.request.generation_id: 1
                    for visit in door.visits
                    if visit.tenant.name == name
                }
                if name and account.followed != here:
                    self.fail("a tenant's streams are not those that are followed")
        for head in self._world.heads.values():
            if head.alive and head.scheduler.running + head.scheduler.queued > head.sequences:
                self.fail("a head has sequences that nobody wants")

    # Turns

    def released(self, door: Door, waiters: Sequence[Waiter]) -> None:
        """Nobody of a tenant and class is let go before who came first."""
        place = {visit.waiter: visit.arrival for visit in door.visits}
        still = [v.waiter for v in door.visits if v.phase == "waiting" and v.waiter not in waiters]
        for index, waiter in enumerate(waiters):
            for other in (*still, *waiters[index + 1 :]):
                if self._kind(other) == self._kind(waiter) and place[other] < place[waiter]:
                    self.fail("who came later goes first")

    @staticmethod
    def _kind(waiter: Waiter) -> tuple[str, str, PriorityClass]:
        request = waiter.request
        return request.model.model_id, request.tenant, request.priority

    def load_told(self, door: Door, head: Head, load: HeadLoad | None) -> None:
        """A head's figures are of what it has."""
        assert load is not None
        there = head.scheduler.running + head.scheduler.queued
        if sum(one.running + one.queued for one in load.tenants) != there:
            self.fail("a head tells of other requests than it has")
        if load.running != sum(one.running for one in load.tenants):
            self.fail("a head's tenants run other requests than the head")
        self._told[door, head.name] = _Told(load)

    def sent(self, door: Door, visit: Visit, sending: Sending, *, anyway: bool) -> None:
        """Tolerant work comes to a head that has a free place, but where it waited long."""
        name, request = sending.route.formation_id, visit.request
        if not self._world.heads[name].alive:
            self.fail("a request is sent to a head that is gone")
        known = self._told.get((door, name))
        if known is not None:
            if request.priority is PriorityClass.TOLERANT and not anyway:
                known.check_room(request.tenant)
            known.sent += request.choices
            known.tenants.add(request.tenant)

    # The end

    def check_rest(self) -> None:
        """Nothing is held by anybody."""
        self.check_counts()
        for door in self._world.doors:
            if door.visits:
                self.fail(f"{len(door.visits)} accepted requests never end")
            if door.balancer._running:
                self.fail("generations count at pipelines, and none runs")
        for head in self._world.heads.values():
            if head.alive and head.scheduler.has_work:
                self.fail("a head computes what nobody reads")
            if head.alive and head.scheduler.used_blocks:
                self.fail("a head holds blocks for nobody")
