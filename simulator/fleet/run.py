"""One run of a scenario under one strategy and seed: production cores on a virtual clock.

The controller's cluster, market and succession, placement's planners, the router's balancer and
admission are those that serve; nodes are models of engines (`simulator.fleet.node`). Time begins
with the first pipeline that serves. At the end the books have to balance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from services.common.nodes import NodeShape
from services.controller.core.cluster.actions import LogEvent
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.goals import Aim, Goal, Goals
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.question import Wishes
from services.controller.core.cluster.replanning import ReplanSettings
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.succession import SuccessionSettings
from services.controller.core.cluster.workload import WorkloadSettings
from services.controller.core.ledger.outcomes import LedgerSettings
from services.controller.core.model_facts import ModelFacts
from services.controller.core.strategy import Strategy
from services.controller.providers.market_file import MarketEvent
from services.placement.estimate.cluster import CandidateNode
from services.placement.search.planners import shuntserve
from simulator.environment.clock import Clock
from simulator.environment.environment import Environment
from simulator.environment.network import Process
from simulator.environment.settings import SimulationSettings
from simulator.fleet import result
from simulator.fleet.batch import Generation
from simulator.fleet.front import FleetFront
from simulator.fleet.meter import Meter, NotConserved
from simulator.fleet.node import Fleet, FleetNode
from simulator.fleet.planning import FleetPlacement
from simulator.fleet.playing import MarketPlay
from simulator.fleet.replicas import Replicas
from simulator.fleet.result import Happened, Interruption, Outcome, Sample, percentiles
from simulator.fleet.scenario import Scenario
from simulator.fleet.strategies import FLEET_STRATEGIES, SKYSERVE
from simulator.processes.controller import SimulatedController
from simulator.processes.placement import Judge
from simulator.processes.provider import SimulatedProvider
from simulator.unwatched import Unwatched

READY_WITHIN_S = 7200.0
WHOLE_WITHIN_S = 600.0
"""So long the first pipeline waits for the plan's others."""
BEAT_S = 1.0
LOOK_S = 0.5
"""Between two looks at whether another plan is to be asked for: little beside a start."""
SAMPLES = 240
"""Looks at the fleet in a run."""
KEPT_KINDS = frozenset(
    {
        *("node_lost", "interruption_noticed", "plan_chosen", "plan_ready", "pipeline_ready"),
        *("pipeline_lost", "handover_started", "handover_finished", "replacement_ready"),
    }
)
Progress = Callable[[float], object]
"""Told the share of the run that is over."""


def settings_of(scenario: Scenario, strategy: Strategy) -> SimulationSettings:
    """Those of a mesh on this market: production's own times, but that nodes beat each second."""
    document, model = scenario.document, scenario.costs.model
    facts = ModelFacts(model.name or "model", "fleet", model.layers, model.vocab, 1 << 20, "{}")
    objective = document.objective
    aim = Aim(objective.name)
    if objective.name != "throughput":
        aim = Aim(objective.name, objective.ttft_s or 0.0, objective.tpot_s or 0.0)
    goal = Goal(facts, aim)
    initial = tuple(offer.shape for offer, count in scenario.initial for _ in range(count))
    slowest_s = max(offer.launch_s for offer in scenario.offers) + scenario.costs.engine.start_s
    most = document.nodes_max or _most(scenario)
    cool_down_s = 0.0 if strategy.uniform else ReplanSettings().cool_down_s
    return SimulationSettings(
        cluster=ClusterSettings(
            first=goal,
            initial=initial,
            expected_nodes=len(initial),
            strategy=strategy,
            budget_per_hour=document.budget_per_hour,
            heartbeat_interval_s=BEAT_S,
            glance_s=BEAT_S,
            doubt_s=2 * BEAT_S,
            stall_s=60.0,
            progress_s=60.0,
            node_lost_s=5 * BEAT_S,
            launch_timeout_s=2 * slowest_s + 60.0,
        ),
        ledger=LedgerSettings(strategy=strategy),
        goals=Goals.of(goal),
        offers=scenario.offers,
        wishes=Wishes(
            budget_per_hour=document.budget_per_hour,
            nodes_max=most,
            horizon_s=min(1800.0, document.horizon_s),
        ),
        replanning=ReplanSettings(
            counts_arrivals=not aim.is_plain, cool_down_s=cool_down_s, anew=strategy.uniform
        ),
        succession=SuccessionSettings(automatic=document.replans),
        workloads=WorkloadSettings(),
        shun_offer_s=60.0,
        hold_timeout_s=7200.0,
        look_s=LOOK_S,
        routers=1,
    )


def _most(scenario: Scenario) -> int:
    """Nodes that are offered together at most, each offer at its best time."""
    most = {offer.offer_id: offer.count for offer in scenario.offers}
    for event in scenario.events:
        if event.count is not None:
            most[event.offer_id] = max(most[event.offer_id], event.count)
    return sum(most.values())


class Service(Protocol):
    """Who decides what runs, as a run sees it."""

    @property
    def pipelines(self) -> int:
        """That take requests."""

    def serves_whole(self) -> bool:
        """All that is planned serves."""


@dataclass(frozen=True, slots=True)
class Controlled:
    """The production cluster."""

    cluster: Cluster

    @property
    def pipelines(self) -> int:
        return len(self.cluster.routes()[1])

    def serves_whole(self) -> bool:
        plan = self.cluster.plan
        planned = sum(len(one.pipelines) for one in plan.deployments) if plan is not None else 0
        return self.pipelines >= planned


class _Kept(Unwatched):
    """Keeps what the report tells of."""

    def __init__(self) -> None:
        self.happened: list[Happened] = []
        self.clock: Clock | None = None

    def cluster_event(self, cluster: Cluster, event: LogEvent) -> None:
        if event.kind in KEPT_KINDS:
            now_s = self.clock.now_s if self.clock is not None else 0.0
            self.happened.append(
                Happened(now_s, event.kind, event.node_id, event.pipeline_id, event.attributes)
            )


class FleetRun:
    """One of them; `outcome` runs it."""

    def __init__(self, scenario: Scenario, strategy: str, seed: int) -> None:
        self._scenario, self._strategy, self._seed = scenario, FLEET_STRATEGIES[strategy], seed
        self._environment = Environment(
            Random(f"{scenario.name} {seed}"), settings_of(scenario, self._strategy)
        )
        self._clock = self._environment.clock
        self._meter = Meter(lambda name: scenario.catalogue.instance(name).price_per_hour)
        self._offers = {offer.offer_id: offer for offer in scenario.offers}
        for offer in scenario.offers:
            self._meter.priced(offer.offer_id, offer.price_per_hour or 0.0, 0.0)
        workload, goal = scenario.document.workload, self._environment.settings.cluster.first
        self._front = FleetFront(
            self._environment,
            goal.model,
            scenario.requests(seed),
            migration=self._strategy.migration,
            places=workload.places,
            concurrency=workload.concurrency,
            tolerant=workload.tolerant,
        )
        self._fleet = Fleet(scenario.costs, scenario.document.spread, self._candidate, self._front)
        self._nodes: list[FleetNode] = []
        self._provider = SimulatedProvider(self._environment, self._start)
        judge = Judge(
            scenario.costs, shuntserve.plan, self._judged, scenario.costs.engine.load_bytes_per_s
        )
        FleetPlacement(self._environment, judge, scenario.document.first_plan, self._offer_id)
        self._kept = _Kept()
        self._kept.clock = self._clock
        self._service = self._served_by(self._provider)
        self._market = MarketPlay(self._provider)
        self._interruptions: list[Interruption] = []
        self._samples: list[Sample] = []
        self._progress: Progress = lambda share: None

    def _served_by(self, provider: SimulatedProvider) -> Service:
        replicas = self._scenario.document.replicas
        if self._strategy is not SKYSERVE or replicas is None:
            return Controlled(
                SimulatedController(self._environment, self._kept, provider, [], {}).cluster
            )
        model = self._environment.settings.cluster.first.model
        layers = self._scenario.costs.model.layers
        target, extra = replicas.target, replicas.extra
        return Replicas(self._environment, provider, model, layers, target, extra)

    def _start(self, node_id: str, shape: NodeShape) -> Process:
        """The provider starts a node: it is paid for from now on."""
        node = FleetNode(self._environment, self._fleet, node_id, shape)
        self._nodes.append(node)
        offer = self._offers[self._provider.offer_of(node_id)]
        now_s = self._clock.now_s
        self._meter.began(node_id, offer.offer_id, offer.instance_type, now_s)
        node.on_death = lambda: self._meter.ended(node_id, self._clock.now_s)
        return node

    def _judged(self, name: str, shape: NodeShape, offer: Offer | None) -> CandidateNode:
        """A node as placement sees it: by its offer, at the price there is now."""
        if offer is None:
            return self._candidate(name)
        return self._scenario.node(name, offer)

    def _candidate(self, node_id: str) -> CandidateNode:
        return self._scenario.node(node_id, self._offers[self._offer_id(node_id)])

    def _offer_id(self, node_id: str) -> str:
        known = self._provider.offer_of(node_id)
        if known:
            return known
        return next(
            life.offer_id for life in reversed(self._meter.lives) if life.node_id == node_id
        )

    # Time

    def outcome(self, progress: Progress = lambda share: None) -> Outcome:
        """Runs it to its horizon. Raises TimeoutError where nothing serves, and NotConserved."""
        clock, horizon_s = self._clock, self._scenario.document.horizon_s
        self._progress = progress
        service = self._service
        if not clock.run(READY_WITHIN_S, lambda: bool(service.pipelines)):
            raise TimeoutError(f"nothing serves within {READY_WITHIN_S:g} s")
        clock.run(clock.now_s + WHOLE_WITHIN_S, service.serves_whole)
        began_s = clock.now_s
        self._meter.pass_to(began_s)
        paid = self._meter.cost, self._meter.on_demand_cost
        for event in self._scenario.events:
            if event.at_s < horizon_s:
                clock.after(event.at_s, self._happens, event, began_s)
        self._front.begin()
        self._look(began_s, horizon_s / SAMPLES)
        clock.run(began_s + horizon_s)
        return self._outcome(began_s, paid)

    def _happens(self, event: MarketEvent, began_s: float) -> None:
        now_s = self._clock.now_s
        if event.price_per_hour is not None:
            self._meter.priced(event.offer_id, event.price_per_hour, now_s)
        taken = self._market.happens(event)
        self._offers = {offer.offer_id: offer for offer in self._provider.offers()}
        if taken:
            self._interruptions.append(
                Interruption(now_s - began_s, event.offer_id, len(taken), event.notice_s)
            )

    def _look(self, began_s: float, every_s: float) -> None:
        now_s = self._clock.now_s
        self._meter.pass_to(now_s)
        batches = [node.batch for node in self._nodes if node.alive and node.batch is not None]
        waiting = len(self._front.pending.waiting) + sum(one.waiting for one in batches)
        self._samples.append(
            Sample(
                now_s - began_s,
                self._meter.running(),
                self._service.pipelines,
                sum(one.running for one in batches),
                waiting,
                self._front.counts.finished,
                self._meter.cost,
            )
        )
        self._progress((len(self._samples) - 1) / SAMPLES)
        self._clock.after(every_s, self._look, began_s, every_s)

    # What came of it

    def _outcome(self, began_s: float, paid: tuple[float, float]) -> Outcome:
        scenario, front, meter = self._scenario, self._front, self._meter
        under_way = self._settled()
        self._check(under_way)
        objective, horizon_s = scenario.document.objective, scenario.document.horizon_s
        done = front.done
        good = sum(result.within(one, objective.ttft_s, objective.tpot_s) for one in done)
        over = front.counts.finished + front.counts.refused + front.counts.failed
        return Outcome(
            scenario.name,
            self._strategy.name,
            self._seed,
            horizon_s,
            front.counts,
            len(under_way),
            good / horizon_s,
            good / over if over else 0.0,
            percentiles([result.ttft_s(one) for one in done]),
            percentiles([result.tpot_s(one) for one in done]),
            percentiles([result.e2e_s(one) for one in done]),
            meter.cost - paid[0],
            meter.on_demand_cost - paid[1],
            meter.by_offer(self._clock.now_s),
            sum(one.again for one in (*done, *under_way)),
            sum(one.shown for one in (*done, *under_way)),
            sum(node.preempted for node in self._nodes),
            self._told(began_s, [*done, *under_way]),
            tuple(self._samples),
            tuple(replace(one, at_s=one.at_s - began_s) for one in self._kept.happened),
            tuple(done),
        )

    def _settled(self) -> list[Generation]:
        """What is under way, each with what it holds."""
        for node in self._nodes:
            if node.batch is not None:
                node.batch.settle()
        return self._front.under_way()

    def _check(self, under_way: list[Generation]) -> None:
        """Requests, tokens and dollars: what went in came out, or is there."""
        counts, done = self._front.counts, self._front.done
        over = counts.finished + counts.refused + counts.failed + len(under_way)
        if counts.arrived != over or counts.finished != len(done):
            raise NotConserved(f"{counts.arrived} requests came, and {over} are accounted for")
        sampled = sum(node.sampled for node in self._nodes)
        held = sum(one.held for one in (*done, *under_way)) + counts.lost
        if sampled != held or any(one.held != one.output for one in done):
            raise NotConserved(f"{sampled} tokens were sampled, and {held} are accounted for")
        self._meter.check(self._clock.now_s)

    def _told(self, began_s: float, all_: list[Generation]) -> tuple[Interruption, ...]:
        """Interruptions, each with the moves until the next one."""
        gaps = {one.number: one.gap_s for one in all_}
        told = []
        for index, one in enumerate(self._interruptions):
            later = self._interruptions[index + 1 :]
            until_s = next((i.at_s for i in later if i.at_s > one.at_s), float("inf"))
            numbers = {
                move.number
                for move in self._front.moved
                if one.at_s <= move.at_s - began_s < until_s
            }
            ordered = sorted(gaps[number] for number in numbers)
            told.append(
                replace(
                    one,
                    moves=len(numbers),
                    gap_p50_s=result.quantile(ordered, 0.5),
                    gap_max_s=max(ordered, default=0.0),
                )
            )
        return tuple(told)
