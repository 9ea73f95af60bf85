"""Invariants of plans that change and of what is bought for them: 22 to 30 of the list in
oracles.py."""

from __future__ import annotations

from collections import Counter
from math import inf

from oracle_cluster import SLACK, ClusterOracle

from services.controller.core.cluster.actions import LogEvent
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.market import (
    LaunchFailed,
    Market,
    NodeGone,
    Offer,
    OffersChanged,
    ProviderEvent,
)
from services.controller.core.cluster.pipeline import Pipeline
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.question import NextPlan, Question, Replanning
from services.controller.core.cluster.state import State
from services.controller.core.cluster.succession import Replanned

CHANGES_AT_REST = 4
"""Plans that may be chosen when nothing happens any more: what was repaired is improved, and so is
what was put off by the cool-down and by offers that had yet to stand."""


class MarketOracle(ClusterOracle):
    """What is asked of placement, ordered and paid for, and what serves meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[float] = []
        """When a plan was chosen."""
        self._ordered: dict[str, str] = {}
        """The offer of each node that was ordered."""
        self._refused_until_s: dict[str, float] = {}
        """Of offers that said no to the present controller."""
        self._counts: dict[str, int] = {}
        self._last_number = 0
        self._common: set[str] = set()
        """Pipelines that two plans have in common."""
        self._changed_s = -inf
        """When the present controller chose a plan."""
        self._operators = 0
        """Who asked the present controller for a plan, and was told nothing yet."""

    def restarted(self) -> None:
        """What was said to the one before, nobody has heard."""
        super().restarted()
        self._refused_until_s.clear()
        self._changed_s = -inf
        self._operators = 0

    # What the provider says, and what is ordered of it

    def hears(self, event: ProviderEvent, market: Market) -> None:
        """The controller heard it."""
        self.note("hears", type(event).__name__)
        if isinstance(event, NodeGone) and market.offer_id_of(event.node_id):
            self.fail(28, f"{event.node_id} is gone, and paid for")
        if isinstance(event, LaunchFailed) and event.retry_after_s > 0:
            offer_id = self._ordered.get(event.node_id, "")
            until_s = self._now_s + event.retry_after_s
            self._refused_until_s[offer_id] = max(until_s, self._refused_until_s.get(offer_id, 0.0))
        elif isinstance(event, OffersChanged):
            counts = {offer.offer_id: offer.count for offer in market.offers()}
            for offer_id in list(self._refused_until_s):
                before = self._counts.get(offer_id, 0)
                if counts.get(offer_id, before + 1) > before:
                    del self._refused_until_s[offer_id]  # there is more of it, or it is another
            self._counts = counts

    def orders(self, node_id: str, offer: Offer, market: Market) -> None:
        """A node is ordered."""
        self.note("orders", node_id, offer.offer_id)
        self._ordered[node_id] = offer.offer_id
        if self._now_s < self._refused_until_s.get(offer.offer_id, 0.0) - SLACK:
            self.fail(23, f"{offer.offer_id} said no and is asked again")
        if market.running(offer.offer_id) > offer.count:
            self.fail(23, f"{offer.offer_id} has {offer.count}, all taken")
        self._within_budget(market, f"with {node_id}")

    def _within_budget(self, market: Market, when: str) -> None:
        """What the plan has, and is not about to go, at the prices there are."""
        budget, state = self._budget, self._state
        if not budget or state is None or state.plan is None:
            return
        cost = 0.0
        for node_id in _seated(state):
            node = state.nodes.get(node_id)
            offer = market.offer(market.offer_id_of(node_id))
            if node is not None and node.stays and offer is not None:
                cost += offer.price_per_hour or 0.0
        if cost > budget + SLACK:
            self.fail(22, f"{cost:.2f} $/h {when}, of {budget:.2f}")

    @property
    def _budget(self) -> float:
        controller = self.world.controller if self.world is not None else None
        return controller.cluster.settings.budget_per_hour if controller is not None else 0.0

    @property
    def _state(self) -> State | None:
        controller = self.world.controller if self.world is not None else None
        return controller.cluster._state if controller is not None and controller.alive else None

    # Plans

    def asks(self, question: Question) -> None:
        """Placement is asked for another plan."""
        improve = isinstance(question, Replanning) and question.improve
        self.note("asks", question.number, improve)
        for one in question.candidates:
            if self._now_s < self._refused_until_s.get(one.offer.offer_id, 0.0) - SLACK:
                self.fail(23, f"{one.offer.offer_id} said no and is named again")
        cool_s = self.world.settings.replanning.cool_down_s if self.world is not None else 0.0
        improving = improve and not self._operators
        if improving and self._now_s < self._changed_s + cool_s - SLACK:
            self.fail(27, f"asked to improve {self._now_s - self._changed_s:.2f} s behind a change")

    def operator_asks(self) -> None:
        """An operator has the whole planned anew."""
        self._operators += 1

    def operator_told(self, replanned: Replanned | None) -> None:
        """What came of it; None where that is an error."""
        state = self._state
        number = state.plan.number if state is not None and state.plan is not None else 0
        if not self._operators:
            self.fail(25, "nobody asked, and somebody is told")
        if replanned is not None and (replanned.number != number or not replanned.reasons):
            self.fail(25, f"{replanned} is told of plan {number}")
        self._operators = 0

    def answers(self, question: Question, answer: NextPlan) -> None:
        """It answers."""
        if answer.plan is None:
            return
        if answer.plan.number <= self._last_number:
            self.fail(29, f"plan {answer.plan.number} is taken up behind {self._last_number}")
        self.chosen.append(self._now_s)
        self._changed_s = self._now_s
        if not all(answer.reasons):
            self.fail(25, f"plan {answer.plan.number} does not say why")
        prices = {
            one.offer.offer_id: one.offer.price_per_hour or 0.0 for one in question.candidates
        }
        there = {
            node.node_id: (node.offer.price_per_hour or 0.0) if node.offer is not None else 0.0
            for node in question.nodes
        }
        cost = sum(
            there[stage.node_id] if stage.node_id else prices[stage.offer_id]
            for stage in answer.plan.stages()
        )
        if self._budget and cost > self._budget + SLACK:
            self.fail(22, f"plan {answer.plan.number} costs {cost:.2f} $/h, of {self._budget:.2f}")

    def adopts(self, plan: Plan) -> dict[str, str]:
        """A plan is about to be adopted; what serves, formations by pipeline."""
        state = self._state
        if state is None or state.plan is None or plan.number <= state.last_number:
            return {}
        self.plans += 1
        for stage in plan.stages():
            node = state.nodes.get(stage.node_id)
            if node is None or not node.stays:
                self.vacancies += 1
                self.troubled.add(stage.node_id)
        wanted = {
            frozenset(
                (deployment.model, stage.layers.start, stage.tp_degree, stage.node_id)
                for stage in pipeline.stages
            )
            for deployment, pipeline in plan.pipelines()
        }
        serving, self._common = {}, set()
        for pipeline in state.pipelines.values():
            seats = frozenset(
                (pipeline.model, seat.stage.layers.start, seat.stage.tp_degree, seat.node_id)
                for seat in pipeline.seats
            )
            formation = pipeline.formation
            if formation is not None and pipeline.is_ready:
                serving[pipeline.pipeline_id] = formation.formation_id
                if seats in wanted:
                    self._common.add(pipeline.pipeline_id)
        return serving

    def adopted(self, serving: dict[str, str]) -> None:
        """It was: what served serves, and what both plans have goes on untouched."""
        state = self._state
        if state is None:
            return
        for pipeline_id, formation_id in serving.items():
            pipeline = state.pipelines.get(pipeline_id)
            formation = pipeline.formation if pipeline is not None else None
            if pipeline is None or formation is None or formation.formation_id != formation_id:
                self.fail(24, f"{pipeline_id} serves no more since another plan came")
            elif pipeline.retiring and pipeline_id in self._common:
                self.fail(26, f"{pipeline_id} is in both plans and goes")
            elif not pipeline.retiring:
                self._bought_as_planned(state, pipeline)

    def _bought_as_planned(self, state: State, kept: Pipeline) -> None:
        """Where the plan names an offer instead of a node, whoever sits there was bought of it."""
        plan, provider = state.plan, self.world.provider if self.world is not None else None
        planned = {p.pipeline_id: p for _, p in plan.pipelines()} if plan is not None else {}
        if provider is None or kept.pipeline_id not in planned:
            return
        for stage, seat in zip(planned[kept.pipeline_id].stages, kept.seats, strict=True):
            offer_id = provider.offer_of(seat.node_id)
            if stage.offer_id and not stage.node_id and offer_id not in ("", stage.offer_id):
                self.fail(26, f"{seat.node_id} of {offer_id} stays where {stage.offer_id} is meant")

    def check_numbers(self) -> None:
        """At any time: the newest plan counts, and none before it comes back."""
        state = self._state
        number = state.plan.number if state is not None and state.plan is not None else 0
        if number and number < self._last_number:
            self.fail(29, f"plan {number} behind plan {self._last_number}")
        self._last_number = max(number, self._last_number)

    # What serves meanwhile

    def cluster_event(self, cluster: Cluster, event: LogEvent) -> None:
        """Of the event log."""
        super().cluster_event(cluster, event)
        state = cluster._state
        if event.kind == "interruption_noticed" and event.attributes["kind"] == "rebalance":
            self.fail(30, f"{event.node_id} was advised, and has a deadline")
        if event.kind == "handover_started":
            drained = state.pipelines.get(event.pipeline_id)
            if drained is not None and drained.retiring and drained.drains:
                overlaps = cluster.settings.strategy.concurrent_initialisation
                self._gives_way(state, drained, overlaps=overlaps)
            elif drained is not None and drained.drains:
                self._follows(state, drained)

    def _follows(self, state: State, drained: Pipeline) -> None:
        """A formation that the plan has is drained; where only advice has it so, for those who hold
        what they are to take over."""
        if state.draining(drained):
            return
        nodes = state.nodes
        followed = [s for s in drained.seats if nodes[s.node_id].advised and s.successor_id]
        if not followed or not all(nodes[s.successor_id].holds(s.stage) for s in followed):
            self.fail(30, f"{drained.pipeline_id} goes, and nobody that holds its stages follows")

    def _gives_way(self, state: State, drained: Pipeline, *, overlaps: bool) -> None:
        """A formation that the plan lacks is drained; where nothing else serves, everything the
        plan has and can have needs its nodes, or may not load before it has ended."""
        members = drained.formation.members if drained.formation is not None else ()
        nodes = {member.node_id for member in members}
        if drained.stalled or any(
            state.nodes[name].departs for name in nodes if name in state.nodes
        ):
            return
        others = [p for p in state.pipelines.values() if p is not drained]
        if sum(p.drains and p.retiring for p in others):
            self.fail(24, f"{drained.pipeline_id} goes while another one does")
        if not overlaps or any(p.is_ready and not p.stalled for p in others):
            return
        for other in state.wanted():
            if self._can_come(state, other) and nodes.isdisjoint(s.node_id for s in other.seats):
                self.fail(24, f"{drained.pipeline_id} goes, the last, before {other.pipeline_id}")

    def _can_come(self, state: State, pipeline: Pipeline) -> bool:
        """Nothing is known that keeps it from serving."""
        if pipeline.unlike:
            return False
        for seat in pipeline.seats:
            node = state.nodes.get(seat.node_id)
            if node is None or not node.present:
                return False
            if node.refused == seat.stage:
                return False
        return True

    # At rest

    def at_rest(self) -> bool:
        """What runs is what the plan says, nothing else runs or is paid for, nobody waits for a
        plan, and spares hold what they can."""
        settled = self.carried_out() and not self._operators and not self.cold_spares()
        return settled and not (self._idle() or self._wrong_books() or self._unfollowed())

    def _unfollowed(self) -> list[str]:
        """Nodes that are likely to be taken away and serve, though nothing keeps others from it."""
        state = self._state
        if state is None:
            return []
        seats = [seat for p in state.wanted() for seat in p.seats if not p.unlike]
        return [
            seat.node_id
            for seat in seats
            if seat.node_id in state.nodes
            and state.nodes[seat.node_id].advised
            and state.nodes[seat.node_id].usable
            and not seat.launches.failures
        ]

    def _idle(self) -> list[str]:
        """Nodes that run, that no plan has a place for, and that are no spares."""
        state, world = self._state, self.world
        if world is None or state is None:
            return []
        living = {name for name, process in world.provider.nodes.items() if process.alive}
        seats = [seat for pipeline in state.wanted() for seat in pipeline.seats]
        going = {name for name, node in state.nodes.items() if not node.stays}
        sit = {s.node_id for s in seats} | {s.successor_id for s in seats if s.node_id in going}
        kept = {spare.node_id for spare in world.controller.cluster.view.spares()}
        return sorted(living - sit - kept)

    def _wrong_books(self) -> list[str]:
        """Offers of which the controller counts other nodes than run."""
        if self.world is None:
            return []
        provider, market = self.world.provider, self.world.controller.dealer.market
        living = (name for name, process in provider.nodes.items() if process.alive)
        books = Counter(map(provider.offer_of, living))
        return [
            f"{market.running(offer.offer_id)} of {offer.offer_id}, not {books[offer.offer_id]}"
            for offer in provider.offers()
            if market.running(offer.offer_id) != books[offer.offer_id]
        ]

    def check_market(self, calm_s: float) -> None:
        """Nothing runs but what the plan has a place for, the books are true, the budget holds, and
        the plan stands."""
        if idle := self._idle():
            self.fail(28, f"{idle} run on, and no plan has a place for them")
        if cold := self.cold_spares():
            self.fail(18, f"{cold} are kept, and hold less than they could")
        if wrong := self._wrong_books():
            self.fail(28, f"the books say {wrong}")
        if unfollowed := self._unfollowed():
            self.fail(30, f"{unfollowed} are likely to go, and nobody follows")
        if self._operators:
            self.fail(25, "an operator who asked for a plan was told nothing")
        if self.world is not None:
            self._within_budget(self.world.controller.dealer.market, "at rest")
        changes = [at_s for at_s in self.chosen if at_s > calm_s]
        if len(changes) > CHANGES_AT_REST:
            self.fail(27, f"{len(changes)} plans though nothing happens any more")


def _seated(state: State) -> set[str]:
    """Nodes that sit somewhere, or are to, by the plan."""
    return {
        node_id
        for pipeline in state.wanted()
        for seat in pipeline.seats
        for node_id in seat.node_ids
    }
