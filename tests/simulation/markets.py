"""Random markets around a mesh that follows them: a seed decides what is offered, refused, taken
and promised, how prices move, and who dies meanwhile.

Run as a program with seeds it prints how often each thing happened, or the first violation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import nan
from random import Random

from oracles import Oracle
from seeds import program
from watch import judged

from services.common.demand import Demand
from services.common.errors import ShuntError
from services.common.generation import GenerationRequest, Sampling
from services.common.nodes import NodeShape
from services.common.notices import NoticeKind
from services.controller.core.cluster.goals import Aim, Goal, Goals
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.question import Wishes, question
from services.controller.core.cluster.replanning import Ask
from services.router.core.demand import DemandCounter
from simulator.environment.addresses import CONTROLLER
from simulator.environment.network import Trouble
from simulator.environment.settings import FACTS, OTHER, SimulationSettings
from simulator.processes.placement import next_plan
from simulator.processes.provider import Lie
from simulator.world import World

SMALL = NodeShape(288 << 20, 1.0, device_count=4)
"""Holds two thirds of the layers."""
BIG = NodeShape(768 << 20, 2.5, device_count=4)
"""Holds all of them."""
OFFERS = (
    Offer("small-spot", "small", SMALL, 4, 0.3, "east", True, 0.5, 0.3),
    Offer("small", "small", SMALL, 6, 1.0, "small", False, 0.0, 0.3),
    Offer("big-spot", "big", BIG, 2, 0.6, "west", True, 0.5, 0.5),
    Offer("big", "big", BIG, 2, 2.2, "big", False, 0.0, 0.5),
)
BUDGETS = (0.0, 0.0, 1.9, 2.5, 4.0)
OBJECTIVES = ("throughput", "throughput-per-cost", "goodput-per-cost")
TWO_MODELS = 0.3
"""Share of the markets in which two models share the nodes, and the budget."""
SPARED = 0.25
"""Share of the markets whose mesh keeps up to two spares."""
ADVISED = 0.3
"""Share of the markets that say of a node, without a deadline, that they are likely to take it."""
SPENT_ANEW = 0.2
"""Share of the markets in which an operator sets another budget."""
NODES_MAX = 7
RATES = (0.0, 2.0, 10.0, 40.0)
REPORT_S = 0.5
STARTS_S = 1.0
FAULTS_CEASE_S = 8.0
CALM_S = 8.0
"""So long behind the last event nothing is asked any more."""
CARRIED_OUT_S = 30.0
"""What runs is what the plan says, at the latest so long behind that."""
END_S = 60.0


class MarketSchedule:
    """One world and what its market does to it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random = Random(f"market {seed}")
        self.oracle = Oracle(exact=seed % 2 == 0)
        goal, budget = Goal(FACTS, Aim(random.choice(OBJECTIVES))), random.choice(BUDGETS)
        self._models = Random(f"market {seed} models")
        goals = Goals.of(goal)
        if self._models.random() < TWO_MODELS:
            goals = goals.adding(Goal(OTHER, Aim(self._models.choice(OBJECTIVES))))
        settings = SimulationSettings(exact=seed % 2 == 0, offers=OFFERS, goals=goals)
        wishes = Wishes(
            budget_per_hour=budget,
            nodes_min=random.choice((0, 1, 2)),
            nodes_max=NODES_MAX,
            horizon_s=random.choice((60.0, 900.0)),
        )
        cluster = replace(
            settings.cluster, first=goal, initial=(SMALL,) * 4, budget_per_hour=budget
        )
        of_spares = Random(f"market {seed} spares")
        if of_spares.random() < SPARED:
            cluster = replace(cluster, spares=of_spares.choice((1, 2)))
        settings = replace(settings, wishes=wishes, cluster=cluster, room=of_spares.choice((2, 3)))
        self.world = World(random, settings, self.oracle)
        self.oracle.world = self.world
        self.happened: Counter[str] = Counter()
        self.disruptions = 0
        clock = self.world.clock
        self._expected = random.choice((1, 1, 2))
        """Clients, those too that have yet to arrive."""
        for number in range(self._expected):
            clock.after(1.0 + random.random(), self._arrive, number)
        for _ in range(random.randint(2, 9)):
            event = random.choice(EVENTS)
            at_s = STARTS_S + (FAULTS_CEASE_S - STARTS_S) * random.random()
            clock.after(at_s, self._happens, event)
            if random.random() < 0.3:  # what happens together
                clock.after(at_s + 0.5 * random.random(), self._happens, random.choice(EVENTS))
        self._spends = Random(f"market {seed} spends")
        if self._spends.random() < SPENT_ANEW:
            at_s = STARTS_S + (FAULTS_CEASE_S - STARTS_S) * self._spends.random()
            clock.after(at_s, self._happens, "spends")
        self._advises = Random(f"market {seed} advises")
        if self._advises.random() < ADVISED:
            at_s = STARTS_S + (FAULTS_CEASE_S - STARTS_S) * self._advises.random()
            clock.after(at_s, self._happens, "advised")
        clock.after(STARTS_S, self._watch)
        self._demand = DemandCounter()
        self._rate_rps = random.choice(RATES)
        """Of requests beside those of the clients, which are answered at once."""
        clock.after(REPORT_S, self._report)
        self._plans_seen = 0

    def _arrive(self, number: int) -> None:
        random = self.random
        tokens = random.choice((40, 150, 260))
        sampling = Sampling(
            max_tokens=tokens, seed=random.randrange(1000), eos_token_ids=(2,), ignore_eos=True
        )
        prompt = tuple(random.randrange(1000) for _ in range(random.choice((3, 20))))
        model = self._models.choice(self.world.settings.goals.deployed).model
        self.world.ask(GenerationRequest(f"g{number}", model, prompt, sampling))

    def _report(self) -> None:
        """As one router does for all."""
        clock, counter = self.world.clock, self._demand
        goals = self.world.settings.goals.deployed
        for _ in range(round(self._rate_rps * REPORT_S)):
            name = self._models.choice(goals).model.model_id
            counter.asked(name, self.random.choice((100, 1000)), 1)
            counter.answered(name, 200, 1)
        waiting = Counter(one.request.model.model_id for one in self.world.clients if not one.ended)
        for name in (goal.model.model_id for goal in goals):
            while (known := counter.counts().get(name, Demand()).open) != waiting[name]:
                (counter.opened if known < waiting[name] else counter.closed)(name)
        said = "router", clock.now_s, dict(counter.counts())
        self.world.network.tell(CONTROLLER, "reported", *said, after_s=0.002)
        clock.after(REPORT_S, self._report)
        self.oracle.check_status()

    def _watch(self) -> None:
        """Looks, and now and then has the controller die in the middle of a change."""
        self.oracle.check_cluster()
        self.oracle.check_numbers()
        chosen = len(self.oracle.chosen)
        if chosen > self._plans_seen and self.random.random() < 0.15:
            self.world.clock.after(0.8 * self.random.random(), self._happens, "crash_in_change")
        self._plans_seen = chosen
        if self.world.clock.now_s < FAULTS_CEASE_S:
            self.world.clock.after(0.05, self._watch)

    # What happens

    def _happens(self, event: str) -> None:
        if self.world.clock.now_s >= FAULTS_CEASE_S:
            return
        if HAPPENINGS[event](self):
            self.oracle.note("happens", event)
            self.happened[event] += 1

    def _offer(self) -> Offer | None:
        offers = self.world.provider.offers()
        return self.random.choice(offers) if offers else None

    def price(self) -> bool:
        """Of one offer."""
        offer = self._offer()
        if offer is None:
            return False
        usual = next((o.price_per_hour for o in OFFERS if o.offer_id == offer.offer_id), None)
        price = (usual or 1.0) * self.random.choice((0.3, 0.7, 1.0, 1.5, 3.0))
        self.world.provider.change(offer.offer_id, price_per_hour=price)
        return True

    def capacity(self) -> bool:
        """There is more of an offer, or less; what runs of it runs on."""
        offer = self._offer()
        if offer is None:
            return False
        self.world.provider.change(offer.offer_id, count=self.random.choice((0, 1, 2, 4, 6)))
        return True

    def withdrawn(self) -> bool:
        """Some offers are no more, and come back."""
        provider = self.world.provider
        whole = list(provider.offers())
        left = [offer for offer in whole if self.random.random() < 0.6]
        provider.replace(left)
        self.world.clock.after(0.5 + 2.0 * self.random.random(), provider.replace, whole)
        return True

    def absurd(self) -> bool:
        """Offers that cannot be, beside those that can."""
        provider = self.world.provider
        offers = list(provider.offers())
        wrong = [
            replace(OFFERS[0], offer_id="nan", price_per_hour=nan),
            replace(OFFERS[0], offer_id="free", price_per_hour=0.0),
            replace(OFFERS[0], offer_id="paid", price_per_hour=-1.0),
            replace(OFFERS[0], offer_id="none", count=-1),
            replace(OFFERS[0], offer_id=""),
            replace(OFFERS[0], offer_id="fast", shape=NodeShape(1, nan)),
            replace(OFFERS[0], price_per_hour=0.01),
        ]
        mixed = [*offers, *self.random.sample(wrong, 3)]
        if self.random.random() < 0.2:
            mixed += [replace(OFFERS[0], offer_id=f"more-{n}", count=0) for n in range(1100)]
        provider.replace(mixed)
        return True

    def refused(self) -> bool:
        """Launches of an offer come to nothing for a while."""
        offer = self._offer()
        if offer is None:
            return False
        self.world.provider.refuse(offer.offer_id, self.random.choice((0.5, 1.5, 4.0)))
        return True

    def lies(self) -> bool:
        """What the provider says of its next launches is not so."""
        count = self.random.choice((1, 1, 2))
        self.world.provider.lies += [self.random.choice(tuple(Lie)) for _ in range(count)]
        return True

    def pool_taken(self) -> bool:
        """All nodes of a pool at once, and none of it is to be had for a while."""
        provider, random = self.world.provider, self.random
        pool = random.choice(("east", "west", "small"))
        nodes = provider.in_pool(pool)
        if not nodes:
            return False
        notice_s = random.choice((0.0, 0.0, 0.5, 2.0, 4.0))
        self.disruptions += len(nodes)
        provider.take(nodes, notice_s, random.choice((NoticeKind.SPOT, NoticeKind.SHUTDOWN)))
        gone = [offer for offer in provider.offers() if offer.pool == pool]
        for offer in gone:
            provider.change(offer.offer_id, count=0)
            again_s = notice_s + random.choice((0.5, 2.0))
            count = max(offer.count, 1)
            self.world.clock.after(again_s, self._comes_back, offer.offer_id, count)
        return True

    def _comes_back(self, offer_id: str, count: int) -> None:
        self.world.provider.change(offer_id, count=count)

    def one_taken(self) -> bool:
        """Killed, as a market does or a fault."""
        engines = self.world.engines
        if not engines:
            return False
        self.disruptions += 1
        self.random.choice(engines).kill()
        return True

    def noticed(self) -> bool:
        """A notice, which lapses in half the cases."""
        engines = self.world.engines
        if not engines:
            return False
        self.disruptions += 1
        taken = self.random.random() < 0.5
        notice_s, kind = self.random.choice((0.4, 1.5, 3.0)), self.random.choice(tuple(NoticeKind))
        node_id = self.random.choice(engines).node_id
        self.world.provider.notice(node_id, notice_s, taken=taken, kind=kind)
        return True

    def advised(self) -> bool:
        """One is likely to be taken, as its engine hears, or the provider says, or both; in the end
        it is not, or is, without another word."""
        engines, random = self.world.engines, self._advises
        if not engines:
            return False
        self.disruptions += 1
        engine = random.choice(engines)
        if random.random() < 0.7:
            engine.advise()
        if random.random() < 0.5:
            taken, notice_s = random.random() < 0.3, random.choice((1.0, 5.0))
            kind = NoticeKind.REBALANCE
            self.world.provider.notice(engine.node_id, notice_s, taken=taken, kind=kind)
        return True

    def operator(self) -> bool:
        """Hands in a plan of its own, for another objective."""
        controller = self.world.controller
        cluster = controller.cluster
        if not controller.alive or cluster.plan is None or self.world.settings.wishes is None:
            return False
        if len(cluster.goals.deployed) > 1:
            return False  # its plan is one of every model
        ask, now_s = Ask((), True, (), None), self.world.clock.now_s
        goal, wishes = Goal(FACTS, Aim(self.random.choice(OBJECTIVES))), self.world.settings.wishes
        asked = question(cluster, controller.dealer.market, ask, wishes, goal, None, now_s)
        try:
            plan = next_plan(self.world.placement.judge, asked).plan
        except ShuntError:
            return False
        if plan is None:
            return False
        controller.adopt(plan)
        return True

    def replans(self) -> bool:
        """An operator has the whole planned anew."""
        controller = self.world.controller
        if not controller.alive or controller.cluster.plan is None:
            return False
        controller.replans.replan()
        return True

    def spends(self) -> bool:
        """An operator says what may be spent from now on."""
        controller = self.world.controller
        if not controller.alive or controller.frozen or controller.cluster.plan is None:
            return False
        controller.replans.spend(self._spends.choice(BUDGETS))
        return True

    def deploys(self) -> bool:
        """A second model is to be served, or no more once nobody waits for it."""
        world, controller = self.world, self.world.controller
        goals, cluster = world.settings.goals, controller.cluster
        if not controller.alive or cluster.plan is None or cluster.view.asleep():
            return False
        waits = len(world.clients) < self._expected or not all(c.ended for c in world.clients)
        if cluster.settings.budget_per_hour or controller.changing:
            return False
        if goals.find(OTHER.model_id) is None:
            controller.deploy(goals.adding(Goal(OTHER, Aim(self.random.choice(OBJECTIVES)))))
            world.clock.after(self.random.random(), self._arrive, self._expected)
            self._expected += 1
        elif waits:
            return False
        else:
            controller.deploy(goals.removing(OTHER.model_id))
        return True

    def jump(self) -> bool:
        """So much more is asked, or so much less; nothing, for a while or for good."""
        self._rate_rps = self.random.choice(RATES)
        return True

    def placement_away(self) -> bool:
        """Nobody answers what is asked of it."""
        self.world.crash_placement(0.3 + 2.0 * self.random.random())
        return True

    def crash(self) -> bool:
        """The controller is away for a moment."""
        if not self.world.controller.alive:
            return False
        self.disruptions += 1
        self.world.crash_controller(0.2 + 1.5 * self.random.random())
        return True

    def trouble(self) -> bool:
        """Messages go astray."""
        kind = self.random.choice(("lost", "late", "doubled", "half_done"))
        setattr(self.world.network.trouble, kind, self.random.choice((1, 3)))
        self.disruptions += 1
        return True

    # The whole

    def _cease(self) -> None:
        world = self.world
        world.network.trouble = Trouble()
        world.provider.lies.clear()
        world.provider.replace(list(OFFERS))
        if not world.controller.alive:
            world.crash_controller(0.0)
        if not world.placement.alive:
            world.crash_placement(0.0)

    def run(self) -> None:
        """Raises Violation."""
        judged(self._run)

    def _run(self) -> None:
        world, oracle = self.world, self.oracle
        world.clock.run(FAULTS_CEASE_S)
        self._cease()
        world.clock.run(FAULTS_CEASE_S + CALM_S)
        calm_s = world.clock.now_s
        world.clock.run(calm_s + CARRIED_OUT_S, oracle.at_rest)
        oracle.check_cluster()
        oracle.check_numbers()
        oracle.check_plan()
        world.clock.run(END_S, lambda: all(client.ended for client in world.clients))
        oracle.check_ended()
        oracle.check_launches()
        oracle.check_market(calm_s)
        oracle.check_one_sequence()
        oracle.check_moves(self.disruptions)
        oracle.check_serves()
        world.clock.run(world.clock.now_s + 3.0)
        oracle.check_rest()


HAPPENINGS: dict[str, Callable[[MarketSchedule], bool]] = {
    "price": MarketSchedule.price,
    "capacity": MarketSchedule.capacity,
    "withdrawn": MarketSchedule.withdrawn,
    "absurd": MarketSchedule.absurd,
    "refused": MarketSchedule.refused,
    "lies": MarketSchedule.lies,
    "pool_taken": MarketSchedule.pool_taken,
    "one_taken": MarketSchedule.one_taken,
    "noticed": MarketSchedule.noticed,
    "advised": MarketSchedule.advised,
    "operator": MarketSchedule.operator,
    "replans": MarketSchedule.replans,
    "deploys": MarketSchedule.deploys,
    "spends": MarketSchedule.spends,
    "jump": MarketSchedule.jump,
    "placement_away": MarketSchedule.placement_away,
    "crash": MarketSchedule.crash,
    "crash_in_change": MarketSchedule.crash,
    "trouble": MarketSchedule.trouble,
}
EVENTS = tuple(name for name in HAPPENINGS if name not in ("crash_in_change", "spends", "advised"))


def _happened(schedule: MarketSchedule) -> Counter[str]:
    return schedule.happened + Counter(plans=len(schedule.oracle.chosen))


if __name__ == "__main__":
    program(MarketSchedule, _happened)
