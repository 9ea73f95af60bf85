"""Invariants of the cluster: 13 to 18, 20 and 21 of the list in oracles.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from watch import Watch

from services.controller.core.cluster.actions import (
    Action,
    FormPipeline,
    LaunchNode,
    LogEvent,
    PipelineState,
    TerminateNode,
)
from services.controller.core.cluster.changes import in_the_way
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.difference import Difference
from services.controller.core.cluster.lacks import waits_for_money
from services.controller.core.cluster.node import Node
from services.controller.core.cluster.pipeline import Pipeline, Seat
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.spares import suits
from services.controller.core.cluster.state import State
from simulator.processes.controller import SimulatedController
from simulator.processes.engine import SimulatedEngine
from simulator.processes.stages import LAYER_COUNT

TROUBLES = (
    "node_lost",
    "interruption_noticed",
    "replacement_advised",
    "load_failed",
    "node_released",
)
SLACK = 1e-6
WANTING = ("node_lost", "interruption_noticed", "load_failed", "stage_taken", "plan_ready")
"""Each may cost a spare."""
SETTLED_LAUNCHES = 3
"""Failed launches with which a plan may be made from the nodes there are; one of which nobody
hears again is waited for longer than for a plan."""


class ClusterOracle(Watch):
    """Who is in which formation, and how far the plan was carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[float, str, str]] = []
        """Time, kind and pipeline of the cluster's events."""
        self._released: set[str] = set()
        self._lost_as_released = 0
        self.plans = 0
        """Given beside those that the cluster asked for."""
        self.vacancies = 0
        """Seats for which those named no node that could be had."""
        self.troubled: set[str] = set()
        """Nodes that another may have taken the place of."""
        self._leaving: set[tuple[str, str]] = set()
        """Members that were told to leave a formation, and have yet to answer."""
        self._checked: tuple[SimulatedController, int] | None = None
        """Whose formations were looked at, and behind how many of its deeds."""

    def cluster_event(self, cluster: Cluster, event: LogEvent) -> None:
        """Of the event log."""
        self.note(event.kind, event.node_id, event.pipeline_id)
        self.events.append((self._now_s, event.kind, event.pipeline_id))
        if event.kind in TROUBLES:
            self.troubled.add(event.node_id)
        if event.kind == "node_released":
            self._released.add(event.node_id)
        elif event.kind == "node_lost" and event.node_id in self._released:
            self._lost_as_released += 1
        if event.kind == "handover_started":
            self._check_gives_way(cluster, event.pipeline_id)
        elif event.kind == "stage_taken":
            self._check_taken(cluster._state, event.node_id)
        elif event.kind == "spare_wanted":
            self._check_wanted(cluster.settings)

    def came_of(self, told: Difference, cluster: Cluster, actions: Sequence[Action]) -> None:
        """A plan was adopted, of which this had been told before."""
        views = cluster.view.pipelines()
        wanted = {p.pipeline_id for _, p in cluster.plan.pipelines()} if cluster.plan else set()
        said = {
            name: [(stage.node_id, stage.layers, stage.tp_degree) for stage in stages]
            for name, stages in told.pipelines.items()
        }
        done = {
            view.pipeline_id: [
                (stage.node_id, stage.layers, stage.tp_degree) for stage in view.stages
            ]
            for view in views
            if view.pipeline_id in wanted
        }
        if said != done:
            self.fail(17, f"{said} was told, and there is {done}")
        events = [action for action in actions if isinstance(action, LogEvent)]
        spares = {event.node_id for event in events if event.kind == "spare_wanted"}
        launches = [action.node_id for action in actions if isinstance(action, LaunchNode)]
        launched = [node_id for node_id in launches if node_id not in spares]
        if list(told.launched) != launched:
            self.fail(17, f"{list(told.launched)} was told, and {launched} launched")

    def _check_gives_way(self, cluster: Cluster, pipeline_id: str) -> None:
        """It is drained for the plan's sake, and no notice has it so."""
        state, settings = cluster._state, cluster.settings
        giving = state.pipelines[pipeline_id]
        if not giving.retiring:
            return
        nodes = [state.nodes[seat.node_id] for seat in giving.seats]
        followers = [p for p in state.wanted() if giving in in_the_way(state, settings, p)]
        if any(node.departs for node in nodes) or all(p.is_ready for p in state.wanted()):
            return
        overlaps = settings.strategy.concurrent_initialisation
        begins = self._can_begin if overlaps else self._can_load
        if not any(begins(state, follower) for follower in followers):
            self.fail(20, f"{pipeline_id} gives way to {followers}, which is not prepared")

    def _can_load(self, state: State, pipeline: Pipeline) -> bool:
        """Every node that is paid for is there, as far as the controller knows."""
        nodes = [(seat, state.nodes.get(seat.node_id)) for seat in pipeline.seats]
        return all((n is not None and n.present) or waits_for_money(seat) for seat, n in nodes)

    def _can_begin(self, state: State, pipeline: Pipeline) -> bool:
        """Every process holds its stage, or has fetched it and serves with another one; those that
        ended and were not missed yet are nobody's mistake."""
        provider = self.world.provider if self.world is not None else None
        for seat in pipeline.seats:
            if waits_for_money(seat):
                continue
            process = provider.nodes.get(seat.node_id) if provider is not None else None
            if not isinstance(process, SimulatedEngine):
                return False
            stage, holdings = (seat.stage.model, seat.stage.spec), process.holdings
            has = holdings.can_form(stage) or stage in holdings.fetched
            known = process.alive and process.name == state.nodes[seat.node_id].incarnation
            if known and not has:
                return False
        return True

    def ends_node(self, cluster: Cluster, end: TerminateNode) -> None:
        """The cluster has a node ended; a kill is somebody's order."""
        node = cluster._state.nodes.get(end.node_id)
        if node is not None and cluster._state.serves(node) and not end.kill:
            self.fail(21, f"{end.node_id} is to end while it serves")

    def _check_taken(self, state: State, node_id: str) -> None:
        """Nobody that is about to go is given a place."""
        node = state.nodes.get(node_id)
        if node is not None and node.deadline_s is not None:  # it may have been let go since
            self.fail(18, f"{node_id} is given a place, and is about to go")

    def _check_wanted(self, settings: ClusterSettings) -> None:
        """No spare is launched but for one that was lost, given up or taken, and the first ones;
        where there is a budget, one may have been too dear for a while."""
        kinds = Counter(kind for _, kind, _ in self.events)
        reasons = sum(kinds[kind] for kind in WANTING)
        if settings.budget_per_hour:
            reasons += kinds["node_released"]
        else:
            reasons -= self._lost_as_released
        if kinds["spare_wanted"] >= settings.spares + reasons:
            self.fail(16, f"{kinds['spare_wanted']} spares were launched for less")

    # Formations

    def dissolves(self, incarnation: str, formation_id: str) -> None:
        """A member is told to leave."""
        self._leaving.add((incarnation, formation_id))

    def dissolved(self, incarnation: str, formation_id: str) -> None:
        """It answered, or did not in time."""
        self._leaving.discard((incarnation, formation_id))

    def forms(self, form: FormPipeline) -> None:
        """Members are told to join."""
        self.note("forms", form.formation_id)
        for incarnation, formation_id in self._leaving:
            if any(member.incarnation == incarnation for member in form.members):
                self.fail(13, f"{incarnation} is to join before it has left {formation_id}")

    def restarted(self) -> None:
        """What the one before waited for, nobody waits for any more."""
        self._leaving.clear()

    # The plan

    def check_cluster(self) -> None:
        """At any time: each process is in one formation at most, each formation covers every layer
        once, each node has one seat, and the plan's pipelines are there."""
        controller = self.world.controller if self.world else None
        if controller is None or not controller.alive:
            return
        if self._checked == (controller, controller.deeds):
            return
        self._checked = controller, controller.deeds
        state = controller.cluster._state
        processes: Counter[str] = Counter()
        for pipeline in state.pipelines.values():
            if pipeline.formation is not None:
                layers = [member.layers for member in pipeline.formation.members]
                processes.update(m.incarnation for m in pipeline.formation.members)
                ends = [0, *(part.end for part in layers)]
                if [part.start for part in layers] != ends[:-1] or ends[-1] != LAYER_COUNT:
                    self.fail(14, f"{pipeline.pipeline_id} runs {layers}")
                degrees = [member.tp_degree for member in pipeline.formation.members]
                if degrees != [seat.stage.tp_degree for seat in pipeline.seats]:
                    self.fail(14, f"{pipeline.pipeline_id} runs its stages on {degrees} ranks")
            elif pipeline.retiring:
                self.fail(14, f"{pipeline.pipeline_id} is not in the plan and serves nobody")
        wanted = state.wanted()
        seats = Counter(n for pipeline in wanted for seat in pipeline.seats for n in seat.node_ids)
        for what, counts in (("formations", processes), ("seats", seats)):
            if twice := [name for name, count in counts.items() if count > 1]:
                self.fail(14, f"{twice} in several {what}")
        wanted = [pipeline.pipeline_id for pipeline in state.wanted()]
        planned = [p.pipeline_id for _, p in state.plan.pipelines()] if state.plan else []
        if sorted(wanted) != sorted(planned):
            self.fail(14, f"the plan has {planned}, the cluster {wanted}")

    def check_status(self) -> None:
        """At any time: what the status shows is what there is, and its parts agree."""
        controller = self.world.controller if self.world else None
        if controller is None or not controller.alive:
            return
        cluster, view, market = (
            controller.cluster,
            controller.cluster.view,
            controller.dealer.market,
        )
        nodes = {node.node_id: node for node in view.nodes()}
        if any(view.node(node_id) != node for node_id, node in nodes.items()):
            self.fail(8, "a node is shown otherwise alone")
        if view.addresses() != {node.address for node in nodes.values() if node.address}:
            self.fail(8, f"{view.addresses()} are no addresses of {nodes}")
        for pipeline in view.pipelines():
            if any(stage.node_id and stage.node_id not in nodes for stage in pipeline.stages):
                self.fail(8, f"{pipeline.pipeline_id} has stages that are no nodes")
        if cluster.routes()[1] and view.unusable():
            self.fail(8, f"there are routes, and for good there are none: {view.unusable()}")
        if {model.model for model in view.models()} != cluster.goals.models:
            self.fail(8, f"{view.models()} is shown of {cluster.goals.models}")
        if any(fault.failures < 1 for fault in view.faults()):
            self.fail(8, f"{view.faults()} is shown, and nothing fails")
        costs = market.cost_per_hour(), view.spares_cost_per_hour()
        if costs[0] is not None and costs[1] is not None and costs[1] > costs[0] + SLACK:
            self.fail(8, f"spares cost {costs[1]} $/h of {costs[0]}")
        firm = market.on_demand_cost_per_hour()
        if firm is not None and firm < 0:
            self.fail(8, f"on demand it costs {firm} $/h")

    def carried_out(self) -> bool:
        """What runs is what the plan says, but for nodes that another took the place of."""
        controller = self.world.controller if self.world else None
        if controller is None or not controller.alive:
            return False
        state = controller.cluster._state
        if state.plan is None or state.falls_short or state.retiring():
            return False
        for _, planned in state.plan.pipelines():
            pipeline = state.pipelines[planned.pipeline_id]
            if not pipeline.is_ready or pipeline.stalled:
                return False
            for stage, seat in zip(planned.stages, pipeline.seats, strict=True):
                if (stage.layers, stage.tp_degree) != (seat.stage.layers, seat.stage.tp_degree):
                    return False
                if stage.node_id not in ("", seat.node_id) and stage.node_id not in self.troubled:
                    return False
        return True

    def check_plan(self) -> None:
        """Faults have ceased for long enough."""
        if not self.carried_out():
            cluster = self.world.controller.cluster if self.world else None
            self.fail(15, f"{cluster and cluster.plan} is not what runs")
        if self.world is not None:
            self._check_views(self.world.controller.cluster)

    def _check_views(self, cluster: Cluster) -> None:
        """What a next plan is asked with is what there is."""
        staying = {node.node_id for node in cluster.view.staying()}
        seated = {
            stage.node_id for _, pipeline in cluster.view.running() for stage in pipeline.stages
        }
        if not cluster.view.busy and not cluster.view.lacks() and not seated <= staying:
            self.fail(15, f"{seated - staying} serve and do not stay")
        if not cluster.view.guests() <= staying - seated:
            self.fail(15, f"{cluster.view.guests()} are guests, of {staying} without {seated}")

    def check_launches(self) -> None:
        """No node was launched but for one that was lost, noticed or given up, or for a seat that
        a plan left open."""
        kinds = Counter(kind for _, kind, _ in self.events)
        reasons = sum(kinds[kind] for kind in TROUBLES if kind != "node_released")
        launches = sum(bool(p) for _, kind, p in self.events if kind == "node_launched")
        if launches > reasons + self.vacancies:
            self.fail(16, f"{launches} launches for {reasons} + {self.vacancies}")

    def has_spares(self) -> bool:
        """As many as are wanted are there, and hold a stage of the plan, or may hold none."""
        controller = self.world.controller if self.world else None
        if controller is None or not controller.alive:
            return False
        kept = controller.cluster.view.spares()
        return len(kept) == controller.cluster.settings.spares and not self.cold_spares()

    def cold_spares(self) -> list[str]:
        """Those that do not hold what they could, or are not there where they may hold nothing."""
        cluster = self.world.controller.cluster if self.world else None
        if cluster is None:
            return []
        state = cluster._state
        seats = [seat for pipeline in state.wanted() for seat in pipeline.seats]
        names = [spare.node_id for spare in cluster.view.spares()]
        if not cluster.settings.strategy.concurrent_initialisation:
            return [name for name in names if not state.nodes[name].present]
        return [name for name in names if not _is_warm(state.nodes[name], seats)]

    def check_spares(self) -> None:
        """Faults have ceased for long enough."""
        if self.serves() and not self.has_spares():
            cluster = self.world.controller.cluster if self.world else None
            self.fail(18, f"{cluster and cluster.view.spares()} are no warm spares")

    def serves(self) -> bool:
        """There is a plan, and every pipeline of it serves."""
        views = self.world.controller.cluster.view.pipelines() if self.world else ()
        return bool(views) and all(view.state is PipelineState.READY for view in views)

    def check_serves(self) -> None:
        """Whatever was lost, or failed to start or load, was replaced."""
        pipelines = self.world.controller.cluster.view.pipelines() if self.world else ()
        idle = [view for view in pipelines if view.state is not PipelineState.READY]
        if idle:
            self.fail(5, f"faults ceased, but this does not serve: {idle}")
        provider = self.world.provider if self.world is not None else None
        all_came = provider is not None and not provider.lost_launches
        whole = all_came and provider.failed_launches < SETTLED_LAUNCHES
        asked = self.world.environment.settings.cluster.pipelines if self.world else 0
        if not self.plans and len(pipelines) < ((asked or 2) if whole else 1):
            self.fail(5, f"a plan of {len(pipelines)} pipelines")


def _is_warm(node: Node, seats: Sequence[Seat]) -> bool:
    """It holds stages that it could take over, all of one model or as many as it has room for."""
    models = {stage.model for stage in node.stages}
    own = {s.stage for s in seats if s.stage.model in models and suits(node.shape, s)}
    return bool(own) and own <= {*node.stages, *node.lacks}
