"""A market replayed against the controller's replanner and placement's planner, without a mesh.

Time jumps from one moment of the market, or wish of the replanner, to the next. A new pipeline
serves once its nodes have started and loaded; what it replaces serves and is paid for until then.
The bound it is compared with knows the market ahead: at each moment it has the best plan for what
is offered, at once and without a move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from services.common.errors import FailedPrecondition
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.replanning import (
    Ask,
    Cause,
    Replanner,
    ReplanSettings,
)
from services.controller.core.cluster.workload import Workload
from services.placement.estimate.catalogue import HardwareCatalogue
from services.placement.estimate.cluster import CandidateNode, NodeClass, PlacedPipeline, described
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import estimate_pipeline
from services.placement.replan.change import Change
from services.placement.replan.next_plan import replan
from services.placement.search.budget import Unlimited
from services.placement.search.problem import Objective, Planner, Problem
from simulator.fleet.market import Moment

LOAD_BYTES_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Bill:
    """What came of a market."""

    requests: float = 0.0
    dollars: float = 0.0
    arrived: float = 0.0
    changes: int = 0
    """Plans taken up."""
    questions: int = 0

    def plus(self, requests: float, dollars: float, arrived: float) -> Bill:
        return replace(
            self,
            requests=self.requests + requests,
            dollars=self.dollars + dollars,
            arrived=self.arrived + arrived,
        )


@dataclass(slots=True)
class _Fleet:
    """Pipelines by when they serve, and the offer of each node."""

    serving: list[tuple[PlacedPipeline, float]] = field(default_factory=list)
    leaving: list[tuple[PlacedPipeline, float]] = field(default_factory=list)
    """Replaced, and there until then."""
    offer_of: dict[str, str] = field(default_factory=dict)


class Replay:
    """One market, one policy."""

    def __init__(
        self,
        costs: Costs,
        catalogue: HardwareCatalogue,
        moments: Sequence[Moment],
        length_s: float,
        objective: Objective,
        search: Planner,
        settings: ReplanSettings,
        horizon_s: float,
    ) -> None:
        self._costs, self._catalogue = costs, catalogue
        self._moments, self._length_s = moments, length_s
        self._objective, self._search = objective, search
        self._horizon_s = horizon_s
        self._settings = settings
        self._replanner = Replanner(settings)
        self._fleet = _Fleet()
        self._offers: dict[str, Offer] = {}
        self._rate = 0.0
        self._names = 0
        self.bill = Bill()
        self.watch: Callable[[float, Sequence[PlacedPipeline]], None] = lambda now_s, plan: None

    def run(self) -> Bill:
        now_s, index = 0.0, 0
        while now_s < self._length_s:
            if index < len(self._moments) and self._moments[index].at_s <= now_s:
                self._happens(self._moments[index], now_s)
                index += 1
                continue
            ask = self._replanner.due(self._running(), now_s)
            if ask is not None:
                self._answer(ask, now_s)
                continue
            ends = [s for _, s in (*self._fleet.serving, *self._fleet.leaving) if s > now_s]
            next_s = self._moments[index].at_s if index < len(self._moments) else self._length_s
            until_s = min([next_s, self._replanner.wakes_at_s(), self._length_s, *ends])
            self._pass(now_s, until_s)
            now_s = until_s
        return self.bill

    # The market

    def _happens(self, moment: Moment, now_s: float) -> None:
        self._offers = {offer.offer_id: offer for offer in moment.offers}
        self._rate = moment.arrival_rate_rps
        for offer_id, count in moment.taken:
            doomed = [n for n, o in self._fleet.offer_of.items() if o == offer_id][:count]
            self._lose(set(doomed), now_s)
        self._reprice()
        self._replanner.offered(moment.offers, now_s)
        workload = self._costs.workload
        self._replanner.measured(
            Workload(self._rate, workload.input_tokens, workload.output_tokens), now_s
        )
        if not now_s:
            self._replanner.happened(Cause.OPERATOR, now_s)

    def _lose(self, names: set[str], now_s: float) -> None:
        if not names:
            return
        fleet = self._fleet
        fleet.serving = [(p, s) for p, s in fleet.serving if names.isdisjoint(p.node_ids)]
        fleet.leaving = [(p, s) for p, s in fleet.leaving if names.isdisjoint(p.node_ids)]
        for name in names:
            del fleet.offer_of[name]
        self._replanner.happened(Cause.LOST, now_s)

    def _reprice(self) -> None:
        """Nodes that run cost what their offer costs now."""
        fleet = self._fleet
        fleet.serving = [(self._priced(p), s) for p, s in fleet.serving]
        fleet.leaving = [(self._priced(p), s) for p, s in fleet.leaving]

    def _priced(self, pipeline: PlacedPipeline) -> PlacedPipeline:
        stages = tuple(
            replace(
                stage,
                node=CandidateNode(stage.node.node_id, self._kind(self._offer_of(stage.node))),
            )
            for stage in pipeline.stages
        )
        return replace(pipeline, stages=stages)

    def _offer_of(self, node: CandidateNode) -> Offer:
        return self._offers[self._fleet.offer_of[node.node_id]]

    def _kind(self, offer: Offer) -> NodeClass:
        return described(
            self._catalogue,
            instance_type=offer.instance_type,
            price_per_hour=offer.price_per_hour or 0.0,
            pool=offer.pool,
            spot=offer.spot,
            interruptions_per_hour=offer.interruptions_per_hour,
        )

    def _running(self) -> dict[str, int]:
        return dict(Counter(self._fleet.offer_of.values()))

    # Plans

    def _problem(self, nodes: Sequence[CandidateNode]) -> Problem:
        return Problem(self._costs.at_rate(self._rate), tuple(nodes), self._objective)

    def _answer(self, ask: Ask, now_s: float) -> None:
        self.bill = replace(self.bill, questions=self.bill.questions + 1)
        fleet = self._fleet
        running = tuple(pipeline for pipeline, _ in fleet.serving)
        there = [
            CandidateNode(name, self._kind(self._offers[offer_id]))
            for name, offer_id in fleet.offer_of.items()
        ]
        named = {one.name: one.offer for one in ask.candidates}
        open_ = [CandidateNode(name, self._kind(offer)) for name, offer in named.items()]
        change = Change(
            running,
            {},
            horizon_s=self._horizon_s,
            load_bytes_per_s=LOAD_BYTES_PER_S,
            improve=ask.improve,
            ready_in_s={name: offer.launch_s for name, offer in named.items()},
        )
        if not there and not open_:
            self._replanner.failed("nothing is offered", True, now_s)
            return
        try:
            found = replan(self._problem([*there, *open_]), change, self._search, Unlimited())
        except FailedPrecondition as error:
            self._replanner.failed(error.message, True, now_s)
            return
        if not found.change and running:
            self._replanner.kept(now_s)
            return
        self._take(found.pipelines, found.time_to_serve_s, named, now_s)
        self._replanner.taken(now_s)

    def _take(
        self,
        pipelines: Sequence[PlacedPipeline],
        serve_s: float,
        named: dict[str, Offer],
        now_s: float,
    ) -> None:
        fleet, serves_at_s = self._fleet, now_s + serve_s
        before = dict(fleet.serving)
        wanted = [self._launched(pipeline, named) for pipeline in pipelines]
        fresh = [p for p in wanted if p not in before]
        used = {name for p in fresh for name in p.node_ids}
        fleet.serving = [(p, before.get(p, serves_at_s)) for p in wanted]
        for pipeline, since_s in before.items():
            if pipeline not in wanted and since_s <= now_s and used.isdisjoint(pipeline.node_ids):
                fleet.leaving.append((pipeline, serves_at_s))
        needed = {n for p, _ in (*fleet.serving, *fleet.leaving) for n in p.node_ids}
        fleet.offer_of = {n: o for n, o in fleet.offer_of.items() if n in needed}
        self.bill = replace(self.bill, changes=self.bill.changes + 1)
        self.watch(now_s, wanted)

    def _launched(self, pipeline: PlacedPipeline, named: dict[str, Offer]) -> PlacedPipeline:
        """Candidates of the plan become nodes with names of their own."""
        stages = []
        for stage in pipeline.stages:
            offer = named.get(stage.node.node_id)
            if offer is not None:
                self._names += 1
                name = f"{offer.offer_id}-{self._names}"
                self._fleet.offer_of[name] = offer.offer_id
                stage = replace(stage, node=CandidateNode(name, stage.node.kind))
            stages.append(stage)
        return replace(pipeline, stages=tuple(stages))

    def _pass(self, now_s: float, until_s: float) -> None:
        """Serves and pays from one point in time to the next, between which nothing changes."""
        fleet, costs = self._fleet, self._costs
        fleet.leaving = [(p, s) for p, s in fleet.leaving if s > now_s]
        needed = {n for p, _ in (*fleet.serving, *fleet.leaving) for n in p.node_ids}
        fleet.offer_of = {n: o for n, o in fleet.offer_of.items() if n in needed}
        serves = [p for p, since_s in fleet.serving if since_s <= now_s]
        rate = sum(
            estimate_pipeline(costs, p).throughput_rps
            for p in (*serves, *(p for p, _ in fleet.leaving))
        )
        price = sum(self._offers[o].price_per_hour or 0.0 for o in fleet.offer_of.values())
        seconds = until_s - now_s
        self.bill = self.bill.plus(
            min(rate, self._rate) * seconds, price * seconds / 3600, self._rate * seconds
        )


def bound(
    costs: Costs,
    catalogue: HardwareCatalogue,
    moments: Sequence[Moment],
    length_s: float,
    objective: Objective,
    search: Planner,
    most: int,
) -> Bill:
    """Of one that has the best plan at every moment, at once and without a move."""
    bill = Bill()
    for index, moment in enumerate(moments):
        ends_s = moments[index + 1].at_s if index + 1 < len(moments) else length_s
        nodes = [
            CandidateNode(
                f"{offer.offer_id}#{number}",
                described(
                    catalogue,
                    instance_type=offer.instance_type,
                    price_per_hour=offer.price_per_hour or 0.0,
                    pool=offer.pool,
                    spot=offer.spot,
                    interruptions_per_hour=offer.interruptions_per_hour,
                ),
            )
            for offer in moment.offers
            for number in range(min(offer.count, most))
        ]
        rate = moment.arrival_rate_rps
        problem = Problem(costs.at_rate(rate), tuple(nodes), objective)
        pipelines = search(problem, Unlimited()).pipelines
        carried = sum(estimate_pipeline(costs, p).throughput_rps for p in pipelines)
        price = sum(p.cost_per_hour for p in pipelines)
        seconds = ends_s - moment.at_s
        bill = bill.plus(min(carried, rate) * seconds, price * seconds / 3600, rate * seconds)
    return bill
