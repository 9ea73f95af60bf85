"""The difference between the plan and what runs: the next steps from here to there.

Idempotent: it looks at plan and state alone and may be asked after every event; what it answers is
what is still lacking. What changes the state of record answers with at least one action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from services.common.nodes import NodeFacts
from services.common.numerics import form_one, pipeline_class
from services.controller.core.cluster.actions import (
    Action,
    AskPlan,
    FormPipeline,
    LogEvent,
    TerminateNode,
)
from services.controller.core.cluster.ahead import copy_ahead, prepare, seated
from services.controller.core.cluster.backends import agree
from services.controller.core.cluster.changes import blockers, may_load, take_turns
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.lacks import waits_for_money
from services.controller.core.cluster.losses import give_up
from services.controller.core.cluster.market import Market
from services.controller.core.cluster.node import Node
from services.controller.core.cluster.notices import hand_over
from services.controller.core.cluster.orders import launched, load
from services.controller.core.cluster.pipeline import Formation, Pipeline, Seat
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.spares import spares, suits
from services.controller.core.cluster.state import State, match_shapes
from services.controller.core.cluster.surplus import Surplus


def steps(
    state: State,
    settings: ClusterSettings,
    market: Market,
    draw_id: Callable[[], str],
    now_s: float,
) -> list[Action]:
    """The next steps; `draw_id` gives ids of formations."""
    if state.plan is None:
        return [*_launch_first(state, settings, now_s), *_ask_plan(state, settings, now_s)]
    asked = _ask_plan(state, settings, now_s) if state.falls_short else []
    return [*_Steps(state, settings, market, draw_id, now_s).all(), *asked]


def _launch_first(state: State, settings: ClusterSettings, now_s: float) -> list[Action]:
    """Nodes for the first plan that neither are there nor start."""
    if not settings.can_launch or now_s < state.first_launches.retry_at_s:
        return []
    lacking, surplus = match_shapes(settings.initial, state.staying())
    missing = lacking[: max(0, len(lacking) - len(surplus))]
    nodes = [state.launch(shape, now_s) for shape in missing]
    return [action for node in nodes for action in launched(node)]


def _ask_plan(state: State, settings: ClusterSettings, now_s: float) -> list[Action]:
    nodes = [node for node in state.nodes.values() if node.usable]
    enough = len(nodes) >= settings.expected_nodes or state.plan is not None
    first_s = min((node.since_s for node in nodes), default=now_s)
    starting = any(node.facts is None and not node.lost for node in state.nodes.values())
    settled = bool(nodes) and now_s >= first_s + settings.settle_s and not starting
    facts = tuple(node.facts for node in nodes if node.facts is not None)
    if not (enough or settled) or not state.asking.may_ask(facts, now_s):
        return []
    state.asking.ask(facts)
    return [plan_question(state, settings, state.goals, facts)]


def plan_question(
    state: State, settings: ClusterSettings, goals: Goals, nodes: tuple[NodeFacts, ...]
) -> AskPlan:
    """For a plan that serves these goals, and takes the place of every one there was."""
    return AskPlan(
        state.last_number + 1, goals.deployed, nodes, settings.pipelines, state.running()
    )


class _Steps:
    """One look at what is lacking."""

    def __init__(
        self,
        state: State,
        settings: ClusterSettings,
        market: Market,
        draw_id: Callable[[], str],
        now_s: float,
    ) -> None:
        self._state = state
        self._settings = settings
        self._market = market
        self._draw_id = draw_id
        self._now_s = now_s
        self._free: list[Node] | None = None

    def all(self) -> list[Action]:
        state = self._state
        actions: list[Action] = []
        seats = list(state.lacking_seats())
        for pipeline, seat in seats:
            actions += self._fill(pipeline, seat, only_loaded=True)  # others may want less
        for pipeline, seat in seats:
            actions += self._fill(pipeline, seat)
        for pipeline in state.lacking():
            if may_load(state, self._settings, pipeline):
                for seat in pipeline.seats:
                    for node_id in seat.node_ids:
                        actions += self._load(node_id, seat)
            actions += self._replacement_ready(pipeline)
            actions += self._form(pipeline)
        actions += take_turns(state, self._settings, self._now_s)
        surplus = Surplus(state, self._settings, self._market, self._now_s)
        return [*actions, *surplus.end(), *surplus.keep()]

    # Who sits where

    def _fill(self, pipeline: Pipeline, seat: Seat, *, only_loaded: bool = False) -> list[Action]:
        """Finds a node for a vacant seat or one whose node cannot load its stage, and a successor
        for one that will be taken away; `only_loaded`: one that holds the stage already."""
        node = self._state.nodes.get(seat.node_id)
        successor = self._state.nodes.get(seat.successor_id)
        if node is None or self._cannot_load(node, seat):
            found, actions = self._find(pipeline, seat, node, only_loaded)
            if found is None:
                return []
            seat.take(found.node_id)
            return [*actions, *self._give_up(node, seat)]
        if node.facts is None:
            if node.node_id == seat.planned.node_id:
                return []
            loaded = self._idle(seat, loaded=True)
            if loaded is not None:
                seat.take(loaded.node_id)
                return self._taken(pipeline, loaded)
        elif node.outgoing and (successor is None or self._cannot_load(successor, seat)):
            found, actions = self._find(pipeline, seat, successor, only_loaded)
            if found is None:
                return []
            seat.promise(found.node_id)
            prepare(self._state, pipeline)
            return [*actions, *self._give_up(successor, seat)]
        return []

    def _cannot_load(self, node: Node, seat: Seat) -> bool:
        attempts = 1 if seat.given_up else self._settings.load_attempts
        return node.cannot_load(seat.stage, attempts)

    def _give_up(self, node: Node | None, seat: Seat) -> list[Action]:
        """Lets go of a node that could not load its stage, once it serves no more."""
        if node is None:
            return []
        give_up(self._settings, seat, node, self._now_s)
        if not self._settings.can_launch:
            self._free = None
            return []
        if self._state.serves(node):
            node.release()
            return []
        node.leave()
        return [TerminateNode(node.node_id)]

    def _find(
        self, pipeline: Pipeline, seat: Seat, instead_of: Node | None, only_loaded: bool
    ) -> tuple[Node | None, list[Action]]:
        idle = self._idle(seat, loaded=True)
        if idle is None and not only_loaded:
            idle = self._idle(seat, loaded=False)
        if idle is not None and (instead_of is None or not self._cannot_load(idle, seat)):
            return idle, self._taken(pipeline, idle)
        if only_loaded or not self._settings.can_launch:
            return None, []
        if instead_of is not None and self._is_in_vain(instead_of, seat):
            return None, []
        coming = self._coming(seat)
        if coming is not None:
            return coming, self._taken(pipeline, coming)
        if self._now_s < seat.launches.retry_at_s:
            return None, []
        node = self._state.launch(seat.shape, self._now_s)
        return node, launched(node, pipeline.pipeline_id, seat.planned.offer_id)

    def _taken(self, pipeline: Pipeline, node: Node) -> list[Action]:
        node.employ()
        if self._free is not None and node in self._free:
            self._free.remove(node)
        return [LogEvent("stage_taken", node.node_id, pipeline.pipeline_id)]

    def _idle(self, seat: Seat, *, loaded: bool) -> Node | None:
        """A node without a place that could run the stage, or that holds it; rather not one that
        failed to load what it was given. One that the plan has no place for is nothing for a seat
        that another offer was chosen for."""

        def order(node: Node) -> tuple[bool, bool, bool, int]:
            failed = self._cannot_load(node, seat)
            return failed, node.advised, node.loading != seat.stage, len(node.stages)

        sitting = self._state.nodes.get(seat.node_id)
        may_wait = sitting is not None and sitting.usable
        for node in sorted(self._idle_nodes(), key=order):
            if node.advised and may_wait:
                continue  # whoever sits there is no worse
            if node.released and seat.planned.offer_id and self._is_dear(node, seat):
                continue
            if not agree(node.shape, seat.shape):
                continue
            enough = node.shape.device_count >= seat.stage.tp_degree
            fits = enough and node.shape.memory_bytes >= seat.shape.memory_bytes
            if node.has(seat.stage) if loaded else fits:
                return node
        return None

    def _is_dear(self, node: Node, seat: Seat) -> bool:
        """It was bought elsewhere, and is no spare, or the seat waits for the money it costs."""
        if not node.launched or node.offer_id == seat.planned.offer_id:
            return False
        return waits_for_money(seat) or node not in spares(
            self._state, self._settings, self._market
        )

    def _is_in_vain(self, failed: Node, seat: Seat) -> bool:
        """One more node would say the same: this one is what was ordered or, where nobody names a
        price, what there is."""
        offer = self._market.offer(failed.offer_id)
        priceless = offer is not None and offer.price_per_hour is None
        return failed.loads.permanent and (priceless or failed.shape == seat.shape)

    def _coming(self, seat: Seat) -> Node | None:
        """A spare that starts and could sit there: it is nearer than one that is ordered now."""
        for node in spares(self._state, self._settings, self._market):
            if node.facts is None and suits(node.shape, seat):
                return node
        return None

    def _idle_nodes(self) -> list[Node]:
        """Usable nodes without a place; where none can be launched, those too that serve in what
        the plan lacks."""
        if self._free is None:
            state = self._state
            self._free = [
                node
                for node in state.indexes.seatless()
                if node.usable and (not state.serves(node) or not self._settings.can_launch)
            ]
            self._free.sort(key=state.serves)
        return self._free

    # What they hold

    def _load(self, node_id: str, seat: Seat) -> list[Action]:
        node = self._state.nodes.get(node_id)
        if node is None or node.facts is None or not node.present:
            return []
        if node.holds(seat.stage) or node.loading == seat.stage:
            return []
        if node.has_fetched(seat.stage) and self._state.serves(node):
            return []  # there is room for it once that formation has ended
        if node.refused == seat.stage:
            if node.loads.permanent or self._now_s < node.loads.retry_at_s:
                return []
            if self._settings.can_launch and self._cannot_load(node, seat):
                return []  # it has had its attempts; the next is another node's
        self._state.load(node, seat.stage)
        return [load(node, seat.stage)]

    def _replacement_ready(self, pipeline: Pipeline) -> list[Action]:
        """Every node that will be taken away has a loaded replacement: the pipeline is drained."""
        if not pipeline.is_ready:
            return []
        leaving = self._leaving(pipeline)
        names = [s.successor_id if s in leaving else s.node_id for s in pipeline.seats]
        members = [self._state.nodes.get(name) for name in names]
        if not leaving or not all(
            node is not None and node.may_follow(self._settings, seat.stage)
            for node, seat in zip(members, pipeline.seats, strict=True)
        ):
            return []
        held = self._members(pipeline, names)
        if held is not None and not form_one(node.numerics_class for node in held):
            return self._tell_classes(pipeline, held)
        prepare(self._state, pipeline)
        followers = seated(self._state, pipeline, names)
        copies = copy_ahead(self._state, self._settings, pipeline, followers, self._now_s)
        if copies is not None:
            return copies
        pipeline.be_ready_to_hand_over()
        return [
            *(
                LogEvent("replacement_ready", seat.successor_id, pipeline.pipeline_id)
                for seat in leaving
            ),
            *hand_over(self._state, pipeline, self._now_s),
        ]

    def _leaving(self, pipeline: Pipeline) -> list[Seat]:
        """Seats that are handed over together: of all nodes that will be taken away, and of those
        that are likely to be, if somebody is to follow. Nothing waits for the latter ones but what
        is advised as they are."""
        nodes = self._state.nodes
        taken = [seat for seat in pipeline.seats if self._state.is_taken_away(seat)]
        followed = [seat for seat in pipeline.seats if seat.successor_id in nodes]
        likely = [seat for seat in followed if nodes[seat.node_id].advised and seat not in taken]
        if taken:
            likely = [seat for seat in likely if nodes[seat.successor_id].holds(seat.stage)]
        return [*taken, *likely]

    # What they form

    def _form(self, pipeline: Pipeline) -> list[Action]:
        if pipeline.formation is not None or self._now_s < pipeline.forms.retry_at_s:
            return []
        nodes = self._members(pipeline, [seat.node_id for seat in pipeline.seats])
        if nodes is None or blockers(self._state, pipeline):
            return []
        if not form_one(node.numerics_class for node in nodes):
            return self._tell_classes(pipeline, nodes)
        members = seated(self._state, pipeline, [node.node_id for node in nodes])
        blocks = min(node.kv_blocks for node in nodes)
        of_all = pipeline_class(
            nodes[0].numerics_class, [seat.stage.spec for seat in pipeline.seats]
        )
        formation = Formation(self._draw_id(), members, blocks, numerics_class=of_all)
        self._state.form(pipeline, formation, self._now_s)
        return [
            FormPipeline(
                formation.formation_id,
                pipeline.pipeline_id,
                pipeline.model,
                formation.members,
                formation.kv_blocks,
            )
        ]

    def _members(self, pipeline: Pipeline, node_ids: Iterable[str]) -> list[Node] | None:
        """The nodes, a seat each; None unless all of them hold their stages."""
        nodes = [self._state.nodes.get(node_id) for node_id in node_ids]
        held = [
            node
            for node, seat in zip(nodes, pipeline.seats, strict=True)
            if node is not None and node.holds(seat.stage)
        ]
        return held if len(held) == len(nodes) else None

    def _tell_classes(self, pipeline: Pipeline, nodes: Iterable[Node]) -> list[Action]:
        """Stages of different arithmetic form no pipeline; said once."""
        classes = ", ".join(sorted({node.numerics_class for node in nodes}))
        if not pipeline.tell_apart(classes):
            return []
        return [LogEvent("numerics_differ", "", pipeline.pipeline_id, {"classes": classes})]
