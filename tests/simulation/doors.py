"""Before the doors of a few routers: who is let in where there is too much, and what is held then.

Tenants with limits, classes and weights flood routers that have few places; heads with real
batches tell how busy they are; a controller deals limits out by what routers report. Reports and
answers are late and lost, controllers begin anew, routers come, heads die and come, clients leave
while they wait, leave their answers, and come back. `python doors.py FIRST COUNT PATIENCE` prints
the first violation; oracle_doors.py has what must hold.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from door_heads import MODELS, Head, Share
from oracle_doors import DoorOracle
from seeds import program
from watch import judged

from services.common.demand import Shares
from services.common.errors import ResourceExhausted
from services.common.exchange import PrefixNews
from services.common.generation import GenerationRequest, PriorityClass, Sampling
from services.common.tenants import NOBODY, Limits, Tenant
from services.controller.core.shares import TenantShares
from services.engine.backend import BLOCK_SIZE
from services.router.core.admission import Admission
from services.router.core.balancer import Balancer
from services.router.core.dispatching import Dispatcher, Sending, Waiter
from services.router.core.prediction import Comer
from services.router.core.quotas import Quotas
from simulator.environment.clock import Clock

BUSY_S = 25.0
"""Clients come up to then."""
END_S = 900.0
REST_S = 5.0
"""In which heads come to rest behind the last answer."""
TELL_S = 0.25
REPORT_S = 2.0
ANSWER_S = 1.0
"""Within which a report is answered, or lost."""
WAIT_S = 5.0
LOST = 0.15
MOST_LOST = 2
"""Of one router's reports, one behind another: fewer than make it count as gone."""


@dataclass(eq=False)
class Visit:
    """One request of a client, at one router."""

    tenant: Tenant
    request: GenerationRequest
    door: Door
    by_s: float | None
    prompt_bytes: int
    length: int
    """Tokens of each choice, at its end."""
    waiter: Waiter = field(init=False)
    phase: str = "new"
    """reading its prompt, waiting, running, ended, refused, or left."""
    head: Head | None = None
    produced: list[int] = field(init=False)
    """Tokens of each choice."""
    predicted_s: float | None = None
    sent_s: float = 0.0
    arrival: int = 0
    """Among those that came to wait at its router."""

    def __post_init__(self) -> None:
        self.waiter = Waiter(self.request, self.by_s, self.prompt_bytes)
        self.produced = [0] * self.request.choices

    @property
    def used(self) -> int:
        """Tokens that it came to."""
        return len(self.request.prompt_ids) + sum(self.produced)


class Door:
    """A router: what its request path does with the cores, in that order."""

    def __init__(self, world: Doors, number: int) -> None:
        self.world, self.name = world, f"router-{number}"
        self.most = world.random.choice((6, 12, 40))
        self.quotas, self.admission = Quotas(), Admission(self.most)
        self.balancer = Balancer()
        self.dispatcher = Dispatcher(self.balancer)
        self.lost = self.arrivals = 0
        self.visits: list[Visit] = []
        """Those that hold something here."""

    # Requests

    def comes(self, visit: Visit) -> None:
        """Somebody asks."""
        world, now_s, tenant = self.world, self.world.clock.now_s, visit.tenant
        model_id = visit.request.model.model_id
        try:
            self.admission.check(model_id, (model.model_id for model in MODELS))
            self.admission.check_tenant(tenant.name, tenant.weight)
        except ResourceExhausted:
            world.oracle.no_place(self, visit)
            return self._refused(visit, "place")
        world.oracle.place(self, visit)
        self.admission.take(model_id, tenant.name, tenant.weight)
        self.visits.append(visit)
        visit.phase = "reading"
        try:
            self.quotas.ask(tenant, now_s)
            world.oracle.asked(self, tenant, now_s)
            self.quotas.check_stream(tenant, visit.request.generation_id)
        except ResourceExhausted as refusal:
            world.oracle.told_to_wait(self, visit, refusal)
            self._leave_place(visit)
            return self._refused(visit, "quota")
        self.quotas.opened(tenant.name, visit.request.generation_id)
        try:
            comer = Comer(tenant.name, tenant.weight, 0, visit.request.choices, 1, 1)
            self.dispatcher.check(model_id, comer, visit.by_s, now_s, visit.prompt_bytes)
        except ResourceExhausted:
            self._let_go(visit)
            return self._refused(visit, "time")
        world.clock.after(0.05 * world.random.random(), self._read, visit)
        return None

    def _read(self, visit: Visit) -> None:
        """Its prompt is known."""
        if visit.phase != "reading":
            return None
        now_s = self.world.clock.now_s
        try:
            self.quotas.reserve(visit.tenant, visit.request, now_s)
            self.world.oracle.reserved(self, visit, now_s)
        except ResourceExhausted as refusal:
            self.world.oracle.told_to_wait(self, visit, refusal)
            self._let_go(visit)
            return self._refused(visit, "quota")
        try:
            sending = self.dispatcher.send(visit.waiter, now_s)
        except ResourceExhausted:
            self._let_go(visit)
            return self._refused(visit, "time")
        if sending is not None:
            return self._sent(visit, sending)
        visit.phase = "waiting"
        self.arrivals += 1
        visit.arrival = self.arrivals
        self.dispatcher.wait(visit.waiter)
        until_s = now_s + WAIT_S if visit.by_s is None else min(now_s + WAIT_S, visit.by_s)
        self.world.clock.after(max(0.0, until_s - now_s), self._waited, visit)
        return None

    def _waited(self, visit: Visit) -> None:
        """Long enough."""
        if visit.phase != "waiting":
            return None
        self.dispatcher.leave(visit.waiter)
        try:
            sending = self.dispatcher.send(visit.waiter, self.world.clock.now_s, anyway=True)
        except ResourceExhausted:
            sending = None
        if sending is None:
            self._let_go(visit)
            return self._refused(visit, "no pipeline")
        return self._sent(visit, sending, anyway=True)

    def look(self) -> None:
        """Routes or loads changed, or something ended."""
        now_s = self.world.clock.now_s
        gone = self.dispatcher.released(now_s)
        self.world.oracle.released(self, [waiter for waiter, _ in gone])
        for waiter, outcome in gone:
            visit = next(v for v in self.visits if v.waiter is waiter)
            if isinstance(outcome, Sending):
                self._sent(visit, outcome)
            else:
                self._let_go(visit)
                self._refused(visit, "time")

    def _sent(self, visit: Visit, sending: Sending, *, anyway: bool = False) -> None:
        world, request = self.world, visit.request
        world.oracle.sent(self, visit, sending, anyway=anyway)
        self.admission.take(request.model.model_id, request.tenant, request.tenant_weight)
        self.quotas.opened(request.tenant, request.generation_id)
        self._leave_place(visit)
        self.quotas.closed(request.tenant, request.generation_id)
        self.visits.append(visit)
        visit.phase, visit.sent_s = "running", world.clock.now_s
        visit.predicted_s = sending.first_token_s
        world.happened["sent"] += 1
        self._run(visit, world.heads[sending.route.formation_id])

    def _run(self, visit: Visit, head: Head) -> None:
        visit.head = head
        self.balancer.began(head.name)
        head.start(
            visit.request, visit.produced, visit.length, lambda share: self._token(visit, share)
        )

    def _token(self, visit: Visit, share: Share) -> None:
        if visit.phase != "running":
            return
        now_s = self.world.clock.now_s
        if not any(visit.produced) and visit.predicted_s is not None and visit.head is not None:
            took_s = now_s - visit.sent_s
            self.dispatcher.predictor.measured(visit.head.name, visit.predicted_s, took_s)
        visit.produced[share.choice] = share.produced
        if all(count >= visit.length for count in visit.produced):
            self._ended(visit)

    def _ended(self, visit: Visit) -> None:
        visit.phase = "ended"
        self.world.happened["ended"] += 1
        self.close(visit)
        self._settle(visit, visit.used)
        self.look()
        if self.world.random.random() < 0.2:
            self.world.clock.after(self.world.random.random(), self._told_again, visit)

    def _told_again(self, visit: Visit) -> None:
        """Its client comes back for an answer that has ended."""
        request, now_s = visit.request, self.world.clock.now_s
        try:
            self.quotas.check_stream(visit.tenant, request.generation_id)
        except ResourceExhausted:
            return
        self.quotas.opened(request.tenant, request.generation_id)
        self.quotas.closed(request.tenant, request.generation_id)
        self.quotas.settle(request.generation_id, visit.used, now_s)
        self.world.happened["told again"] += 1

    def again(self, visit: Visit) -> None:
        """A second reader comes, and the first is let go."""
        request = visit.request
        try:
            self.quotas.check_stream(visit.tenant, request.generation_id)
        except ResourceExhausted:
            self.world.oracle.fail("who is followed already is refused as one stream more")
        self.quotas.opened(request.tenant, request.generation_id)
        self.quotas.closed(request.tenant, request.generation_id)
        self.world.happened["read again"] += 1

    def leaves(self, visit: Visit) -> None:
        """Its client is gone."""
        self.world.happened[f"left {visit.phase}"] += 1
        if visit.phase in ("reading", "waiting"):
            self.dispatcher.leave(visit.waiter)
            self._let_go(visit)
            visit.phase = "left"
        elif visit.phase == "running":
            visit.phase = "left"
            self.close(visit)
            self.look()

    def close(self, visit: Visit) -> None:
        """A session ends; what it took of tokens is settled with its answer's end."""
        request = visit.request
        if visit.head is not None:
            visit.head.drop(request)
            self.balancer.ended(visit.head.name)
            visit.head = None
        self._leave_place(visit)
        self.quotas.closed(request.tenant, request.generation_id)

    def moves(self, visit: Visit, head: Head | None) -> None:
        """Its head is gone; it goes on at another one, once there is one."""
        if visit.head is not None:
            self.balancer.ended(visit.head.name)
            visit.head = None
        if head is not None:
            self.world.happened["moved"] += 1
            self._run(visit, head)

    def _let_go(self, visit: Visit) -> None:
        """A request that comes to nothing."""
        self._settle(visit, 0)
        self.quotas.closed(visit.tenant.name, visit.request.generation_id)
        self._leave_place(visit)

    def _settle(self, visit: Visit, used: int) -> None:
        now_s = self.world.clock.now_s
        self.quotas.settle(visit.request.generation_id, used, now_s)
        self.world.oracle.settled(visit, used, now_s)

    def _leave_place(self, visit: Visit) -> None:
        self.visits.remove(visit)
        self.admission.leave(visit.request.model.model_id, visit.tenant.name)

    def _refused(self, visit: Visit, why: str) -> None:
        if visit.phase == "running":
            self.world.oracle.fail("what was accepted is refused")
        visit.phase = "refused"
        self.world.happened[f"refused: {why}"] += 1

    # The controller and heads

    def report(self) -> None:
        """What was asked is told; the answer is this router's shares."""
        world, random = self.world, self.world.random
        demands = self.quotas.demands(world.clock.now_s)
        routers = self.quotas.shares.routers
        self.lost = self.lost + 1 if random.random() < LOST and self.lost < MOST_LOST else 0
        if self.lost and random.random() < 0.5:
            world.clock.after(ANSWER_S + REPORT_S, self.report)
            return

        def arrive() -> None:
            shares = world.dealer.reported(self.name, routers, demands, world.clock.now_s)
            if not self.lost:
                world.clock.after(ANSWER_S / 2 * random.random(), self._answered, shares)

        world.clock.after(ANSWER_S / 2 * random.random(), arrive)
        if self.lost:
            world.clock.after(ANSWER_S + REPORT_S, self.report)

    def _answered(self, shares: Shares) -> None:
        self.quotas.shares = shares
        world = self.world
        if all(door.quotas.shares.routers == len(world.doors) for door in world.doors):
            world.dealt = True
            world.oracle.all_know()
        world.oracle.shares_told()
        self.world.clock.after(REPORT_S, self.report)

    def told(self, head: Head) -> None:
        """A head's load."""
        if head.alive:
            news = PrefixNews(BLOCK_SIZE, False, load=head.load())
            self.world.oracle.load_told(self, head, news.load)
            self.dispatcher.told(head.name, news, self.world.clock.now_s)
            self.look()

    def routes(self) -> None:
        """Heads came or went."""
        routes = [head.route for head in self.world.heads.values() if head.alive]
        self.balancer.update(routes)
        self.dispatcher.update(routes)
        self.look()


class Doors:
    """One run."""

    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, Random(seed)
        random = self.random
        self.clock, self.dealer = Clock(), TenantShares()
        self.happened: Counter[str] = Counter()
        self.heads: dict[str, Head] = {}
        self.oracle = DoorOracle(self)
        self.tenants = [NOBODY] if random.random() < 0.15 else self._tenants()
        self.doors = list[Door]()
        for _ in range(random.randrange(1, 4)):
            self._door_comes()
        self._visits = 0
        self.dealt = False
        """Each router has heard of all others: from then on clients come."""

    def _tenants(self) -> list[Tenant]:
        def limit(*some: int) -> int | None:
            return self.random.choice((None, *some))

        return [
            Tenant(
                f"tenant-{number}",
                self.random.choice(list(PriorityClass)),
                self.random.choice((1, 1, 2, 5)),
                Limits(limit(20, 300), limit(900, 20_000), limit(2, 9)),
            )
            for number in range(self.random.randrange(2, 5))
        ]

    def run(self) -> None:
        """Raises Violation."""
        judged(self._run)

    def _run(self) -> None:
        random, clock = self.random, self.clock
        for _ in range(random.randrange(1, 4)):
            self._head_comes()
        for door in self.doors:
            clock.after(random.random(), door.report)
        for tenant in self.tenants:
            clock.after(3 * random.random(), self._comes, tenant, random.choice((0.05, 0.3, 1.5)))
        clock.after(20 * random.random(), self._dealer_anew)
        clock.after(10 * random.random(), self._head_goes)
        clock.after(TELL_S, self._tell)
        if self.seed % 3 == 0:
            clock.after(5 + self.seed % 11, self._joins)
        clock.run(BUSY_S)
        for _ in MODELS:
            self._head_comes()
        clock.run(END_S, lambda: not any(door.visits for door in self.doors))
        clock.run(clock.now_s + REST_S)
        self.oracle.check_rest()

    def _comes(self, tenant: Tenant, every_s: float) -> None:
        """Clients of one tenant, one behind another; a burst at times."""
        random = self.random
        if self.clock.now_s > BUSY_S:
            return
        for _ in range(8 if random.random() < 0.03 else 1):
            if self.dealt:
                self._ask(tenant, random.choice([d for d in self.doors if d.quotas.shares.routers]))
        self.clock.after(2 * every_s * random.random(), self._comes, tenant, every_s)

    def _ask(self, tenant: Tenant, door: Door) -> None:
        random = self.random
        self._visits += 1
        prompt, most = random.randrange(2, 120), random.randrange(1, 60)
        request = GenerationRequest(
            f"g{self._visits}",
            random.choice(MODELS),  # type: ignore[arg-type]
            tuple(range(prompt)),
            Sampling(most),
            choices=random.choice((1, 1, 1, 3)),
            tenant=tenant.name,
            priority=tenant.priority,
            tenant_weight=tenant.weight,
        )
        by_s = self.clock.now_s + random.choice((0.3, 2.0)) if random.random() < 0.3 else None
        length = random.choice((most, random.randrange(1, most + 1)))
        visit = Visit(tenant, request, door, by_s, prompt * 4, length)
        door.comes(visit)
        if random.random() < 0.25:
            self.clock.after(6 * random.random() ** 2, self._leaves, visit)
        elif random.random() < 0.2:
            self.clock.after(2 * random.random(), self._again, visit)

    @staticmethod
    def _leaves(visit: Visit) -> None:
        visit.door.leaves(visit)

    @staticmethod
    def _again(visit: Visit) -> None:
        if visit.phase == "running":
            visit.door.again(visit)

    def _tell(self) -> None:
        for head in [head for head in self.heads.values() if head.alive]:
            for door in self.doors:
                self.clock.after(0.1 * self.random.random(), door.told, head)
        self.oracle.check_counts()
        self.clock.after(TELL_S, self._tell)

    def _dealer_anew(self) -> None:
        """Another controller leads: it knows who there was, and not what they hold."""
        self.dealer = TenantShares(self.dealer.names)
        self.happened["controllers"] += 1
        self.clock.after(15 + 20 * self.random.random(), self._dealer_anew)

    def _door_comes(self) -> Door:
        """One more router."""
        door = Door(self, len(self.doors))
        self.doors.append(door)
        self.oracle.comes(1 / len(self.doors))
        return door

    def _joins(self) -> None:
        """A router comes while the others serve; at times another controller has just begun."""
        if self.seed % 2:
            self.dealer = TenantShares(self.dealer.names)
        door = self._door_comes()
        door.routes()
        door.report()
        self.happened["joined"] += 1

    def _head_comes(self) -> None:
        number = len(self.heads)
        head = Head(self.clock, self.random, number, MODELS[number % len(MODELS)])
        self.heads[head.name] = head
        for door in self.doors:
            door.routes()
            for visit in [v for v in door.visits if v.phase == "running" and v.head is None]:
                if visit.request.model == head.model:
                    door.moves(visit, head)

    def _head_goes(self) -> None:
        """One dies, and another comes a while later."""
        alive = [head for head in self.heads.values() if head.alive]
        if alive:
            gone = self.random.choice(alive)
            gone.alive = False
            self.happened["heads lost"] += 1
            for door in self.doors:
                for visit in [v for v in door.visits if v.head is gone]:
                    others = [h for h in alive if h.alive and h.model == gone.model]
                    door.moves(visit, self.random.choice(others) if others else None)
                door.routes()
        self.clock.after(3 * self.random.random(), self._head_comes)
        if self.clock.now_s < BUSY_S:
            self.clock.after(5 + 15 * self.random.random(), self._head_goes)


if __name__ == "__main__":
    program(Doors, lambda run: run.happened)
