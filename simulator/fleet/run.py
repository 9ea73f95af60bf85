"""One run of a scenario under one strategy and seed: production cores on a virtual clock.

The controller's cluster, market and succession, placement's planners, the router's balancer and
admission are those that serve; nodes are models of engines (`simulator.fleet.node`). Time begins
with the first pipeline that serves. At the end the books have to balance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
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
from services.controller.core.ledger.outcomes import LedgerSettings, ServingHead
from services.controller.core.model_facts import ModelFacts
from services.controller.core.strategy import Strategy
from services.controller.providers.market_file import MarketEvent
from services.placement.estimate.cluster import CandidateNode
from services.placement.search.planners import shuntserve
from simulator.environment.clock import Clock
from simulator.environment.environment import Environment
from simulator.environment.network import Process
from simulator.environment.settings import SimulationSettings
from simulator.fleet.flow import Flow, Lengths, Rate
from simulator.fleet.flow_front import FlowFront
from simulator.fleet.front import FleetFront
from simulator.fleet.meter import Meter
from simulator.fleet.node import Fleet, FleetNode
from simulator.fleet.planning import FleetPlacement
from simulator.fleet.playing import MarketPlay
from simulator.fleet.replicas import Replicas
from simulator.fleet.result import Happened, Interruption, Outcome, Sample, Targets
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
FLOW_GRAIN_S = 10.0
"""Requests of a flow that come within it are taken together."""
FLOW_BEAT_S, FLOW_LOOK_S = 600.0, 5.0
"""The same two of a flow's nodes: what ends is told by its provider and its neighbours anyway, and
each beat has the cluster look through all nodes for what is due."""
SAMPLES = 240
"""Looks at the fleet in a run."""
KEPT_KINDS = frozenset(
    {
        *("node_launched", "node_registered", "stage_loaded"),
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
    if objective.planned or objective.name != "throughput":
        aim = Aim(objective.name, objective.ttft_s or 0.0, objective.tpot_s or 0.0)
    goal = Goal(facts, aim)
    initial = tuple(offer.shape for offer, count in scenario.initial for _ in range(count))
    slowest_s = max(offer.launch_s for offer in scenario.offers) + scenario.costs.engine.start_s
    most = document.nodes_max or _most(scenario)
    flows = document.workload.flow is not None
    beat_s, look_s = (FLOW_BEAT_S, FLOW_LOOK_S) if flows else (BEAT_S, LOOK_S)
    cool_down_s = 0.0 if strategy.uniform else ReplanSettings().cool_down_s
    return SimulationSettings(
        cluster=ClusterSettings(
            first=goal,
            initial=initial,
            expected_nodes=len(initial),
            strategy=strategy,
            phases=document.phases,
            budget_per_hour=document.budget_per_hour,
            heartbeat_interval_s=beat_s,
            glance_s=beat_s,
            doubt_s=2 * beat_s,
            stall_s=max(60.0, 2 * beat_s),
            progress_s=max(60.0, 2 * beat_s),
            node_lost_s=5 * beat_s,
            empty_node_lost_s=max(15.0, 5 * beat_s),
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
            counts_arrivals=not aim.is_plain,
            counts_lengths=strategy.weights_stay,
            cool_down_s=cool_down_s,
            anew=strategy.uniform,
        ),
        succession=SuccessionSettings(automatic=document.replans),
        workloads=WorkloadSettings(),
        shun_offer_s=60.0,
        hold_timeout_s=7200.0,
        look_s=look_s,
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

    def heads(self, now_s: float) -> Sequence[ServingHead]:
        """Where generations may go on."""


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
        return self.pipelines + len(self.cluster.handing_over()) >= planned

    def heads(self, now_s: float) -> Sequence[ServingHead]:
        return self.cluster.view.heads(now_s)


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
        self._front = self._front_of(scenario)
        self._fleet = Fleet(scenario.costs, scenario.document.spread, self._candidate, self._front)
        self._nodes: list[FleetNode] = []
        self._provider = SimulatedProvider(self._environment, self._start)
        judge = Judge(
            scenario.costs,
            shuntserve.plan,
            self._judged,
            scenario.costs.engine.load_bytes_per_s,
            counts_lengths=True,
        )
        first = scenario.document.first_plan
        FleetPlacement(self._environment, judge, first, self._offer_id)
        self._kept = _Kept()
        self._kept.clock = self._clock
        self._service = self._served_by(self._provider)
        self._market = MarketPlay(self._provider)
        self._interruptions: list[Interruption] = []
        self._samples: list[Sample] = []
        self._progress: Progress = lambda share: None

    def _front_of(self, scenario: Scenario) -> FleetFront | FlowFront:
        """Who follows requests, one by one or as a flow."""
        workload, model = scenario.document.workload, self._environment.settings.cluster.first.model
        migration, flow, means = self._strategy.migration, workload.flow, scenario.costs.workload
        if flow is not None:
            rates = [Rate(one.at_s, one.rps) for one in flow.rates]
            lengths = Lengths(means.input_tokens, means.output_tokens)
            flows = Flow(rates, lengths, migration, workload.places, FLOW_GRAIN_S)
            return FlowFront(self._environment, model, flows, means)
        return FleetFront(
            self._environment,
            model,
            scenario.requests(self._seed),
            migration=migration,
            places=workload.places,
            concurrency=workload.concurrency,
            tolerant=workload.tolerant,
            heads=lambda: self._service.heads(self._clock.now_s),
        )

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
        running, waiting = self._front.crowd(batches)
        self._samples.append(
            Sample(
                now_s - began_s,
                self._meter.running(),
                self._service.pipelines,
                running,
                waiting,
                self._front.counts.finished,
                self._meter.cost,
            )
        )
        self._progress((len(self._samples) - 1) / SAMPLES)
        self._clock.after(every_s, self._look, began_s, every_s)

    # What came of it

    def _outcome(self, began_s: float, paid: tuple[float, float]) -> Outcome:
        scenario, meter, counts = self._scenario, self._meter, self._front.counts
        objective, horizon_s = scenario.document.objective, scenario.document.horizon_s
        batches = [node.batch for node in self._nodes if node.batch is not None]
        targets = Targets(objective.ttft_s, objective.tpot_s)
        sampled = sum(node.sampled for node in self._nodes)
        account = self._front.account(batches, sampled, targets)
        meter.check(self._clock.now_s)
        return Outcome(
            scenario.name,
            self._strategy.name,
            self._seed,
            horizon_s,
            counts,
            account.running,
            account.good / horizon_s,
            account.good / account.over if account.over else 0.0,
            account.ttft_s,
            account.tpot_s,
            account.e2e_s,
            meter.cost - paid[0],
            meter.on_demand_cost - paid[1],
            meter.by_offer(self._clock.now_s),
            account.tokens_replayed,
            account.tokens_out,
            sum(node.preempted for node in self._nodes),
            self._told(began_s),
            tuple(self._samples),
            tuple(replace(one, at_s=one.at_s - began_s) for one in self._kept.happened),
            account.done,
        )

    def _told(self, began_s: float) -> tuple[Interruption, ...]:
        """Interruptions, each with the moves until the next one."""
        told = []
        for index, one in enumerate(self._interruptions):
            later = self._interruptions[index + 1 :]
            until_s = next((i.at_s for i in later if i.at_s > one.at_s), inf)
            moves = self._front.moves_between(began_s + one.at_s, began_s + until_s)
            told.append(
                replace(
                    one,
                    moves=moves.count,
                    gap_p50_s=moves.gap_p50_s,
                    gap_max_s=moves.gap_max_s,
                )
            )
        return tuple(told)
