"""What of the cluster must outlive the controller, a note for each entity: who is who, who forms
what, and the plan.

A note is JSON under a key of its own, so what an event writes does not grow with the cluster. Times
on the controller's clock mean nothing to the next one: a deadline is kept in wall time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from math import inf
from typing import Any

from services.common.generation import LayerRange, ModelRef
from services.common.machine import Device, MachineFacts
from services.common.nodes import Member, NodeFacts, NodeShape
from services.common.phases import PipelinePhase
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.handover import Handover, HandoverState
from services.controller.core.cluster.liveness import Liveness
from services.controller.core.cluster.node import HeldStage, Node
from services.controller.core.cluster.pipeline import Formation, FormationState, Pipeline, Seat
from services.controller.core.cluster.plan import Plan, PlannedStage
from services.controller.core.cluster.plan_json import plan_from_json, plan_to_json
from services.controller.core.cluster.snapshot import in_second_version
from services.controller.core.cluster.state import State

VERSION = 3
"""Before there were notes: see `snapshot`."""
CLUSTER, BASIS, PLAN, NODE, PIPELINE = "cluster", "basis", "plan", "node/", "pipeline/"
"""Keys; those of nodes and pipelines go on with their ids."""

Fields = dict[str, Any]


class Notes:
    """What stands in the notes, and so what has to be written next."""

    def __init__(self, unix_offset_s: float) -> None:
        """`unix_offset_s`: wall time less the clock that the state's times are on."""
        self._unix_offset_s = unix_offset_s
        self._standing: dict[str, str] = {}
        """By key."""
        self._plan: Plan | None = None
        """The one that its note has."""
        self._orders: dict[str, int] = {}
        """In which nodes and pipelines came."""
        self._last_order = 0
        self._compared = False
        """Notes of another controller that nothing here stands for are gone."""

    def recover(
        self, saved: Mapping[str, str], goals: Goals, liveness: Liveness, now_s: float
    ) -> State:
        """The state that the notes tell of, in today's form or an older one; nobody is confirmed
        yet."""
        counters = json.loads(saved[CLUSTER])
        todays = counters.get("version") == VERSION
        if todays:
            nodes, pipelines = self._in_order(saved, NODE), self._in_order(saved, PIPELINE)
            basis, plan = saved[BASIS], saved.get(PLAN)
        else:
            counters = in_second_version(counters)
            nodes, pipelines = counters["nodes"], counters["pipelines"]
            basis, plan = counters["basis"], counters["plan"]
        state = State(basis, goals, liveness)
        state.last_number = counters["last_number"]
        state.launched, state.named = counters["launched"], counters["named"]
        state.plan = None if plan is None else plan_from_json(plan)
        for item in nodes:
            _tell_backend(item)
            state.recover(_node_from(item, now_s, self._unix_offset_s), now_s)
        for item in pipelines:
            if formation := item["formation"]:  # it once had no class of its own
                head = state.nodes[formation["members"][0]["node_id"]]
                formation.setdefault("numerics_class", head.numerics_class)
            for seat in item["seats"]:  # nor had its shapes a backend
                if sits := state.nodes.get(seat["node_id"]):
                    seat["shape"].setdefault("backend", sits.shape.backend)
            state.add(pipeline := _pipeline_from(item, now_s), now_s)
            if pipeline.formation is not None and not pipeline.formation.forming:
                for member in pipeline.formation.members:  # one may hold nothing, and load
                    state.nodes[member.node_id].serve(-inf)
        self._standing = {key: text for key, text in saved.items() if _is_note(key)}
        if todays:
            state.indexes.unwritten.clear()
            self._plan, self._compared = state.plan, True
        return state

    def _in_order(self, saved: Mapping[str, str], prefix: str) -> list[Fields]:
        items = {key: json.loads(text) for key, text in saved.items() if key.startswith(prefix)}
        self._orders |= {key: item["order"] for key, item in items.items()}
        self._last_order = max([self._last_order, *self._orders.values()])
        return sorted(items.values(), key=lambda item: item["order"])

    def changes(self, state: State) -> dict[str, str | None]:
        """What has changed since it was asked last, to be written at once; None for what is gone.
        It is true of the state only as a whole."""
        changed: dict[str, str | None] = {}
        for key in self._touched(state):
            text = self._text(state, key)
            if text == self._standing.get(key):
                continue
            changed[key] = text
            if text is None:
                del self._standing[key]
                self._orders.pop(key, None)
            else:
                self._standing[key] = text
        self._plan = state.plan
        return changed

    def _touched(self, state: State) -> list[str]:
        """Keys of what may have changed."""
        unwritten = state.indexes.unwritten
        keys = [CLUSTER, BASIS]
        keys += [PLAN] if state.plan is not self._plan else []
        keys += [NODE + node_id for node_id in unwritten.nodes]
        keys += [PIPELINE + pipeline_id for pipeline_id in unwritten.pipelines]
        unwritten.clear()
        if not self._compared:
            known = set(keys)
            keys += [key for key in self._standing if key not in known]
            self._compared = True
        return keys

    def _text(self, state: State, key: str) -> str | None:
        """What the note is to say; None when there is to be none."""
        if key == CLUSTER:
            return json.dumps(
                {
                    "version": VERSION,
                    "last_number": state.last_number,
                    "launched": state.launched,
                    "named": state.named,
                }
            )
        if key == BASIS:
            return state.basis
        if key == PLAN:
            return None if state.plan is None else plan_to_json(state.plan)
        if key.startswith(NODE):
            node = state.nodes.get(key.removeprefix(NODE))
            return None if node is None else self._entity(key, _node(node, self._unix_offset_s))
        pipeline = state.pipelines.get(key.removeprefix(PIPELINE))
        return None if pipeline is None else self._entity(key, _pipeline(pipeline))

    def _entity(self, key: str, fields: Fields) -> str:
        if key not in self._orders:
            self._last_order += 1
            self._orders[key] = self._last_order
        return json.dumps(fields | {"order": self._orders[key]}, default=_plain, sort_keys=True)


def _is_note(key: str) -> bool:
    return key in (CLUSTER, BASIS, PLAN) or key.startswith((NODE, PIPELINE))


def _node(node: Node, unix_offset_s: float) -> Fields:
    deadline_s = node.deadline_s
    return {
        "node_id": node.node_id,
        "shape": node.shape,
        "launched": node.launched,
        "released": node.released,
        "facts": node.facts,
        "held": node.held,
        "stock": node.stock,
        "kv_blocks": node.kv_blocks,
        "numerics_class": node.numerics_class,
        "deadline_unix_s": None if deadline_s is None else round(deadline_s + unix_offset_s, 3),
        "departs": node.departs,
        "taken": node.taken,
        "advised": node.advised,
        "leaving": node.leaving,
        "lost": node.lost,
    }


def _pipeline(pipeline: Pipeline) -> Fields:
    return {
        "pipeline_id": pipeline.pipeline_id,
        "model": pipeline.model,
        "weight_tokens_per_s": pipeline.weight_tokens_per_s,
        "phase": pipeline.phase,
        "onward": pipeline.onward,
        "seats": [_seat(seat) for seat in pipeline.seats],
        "formation": _formation(pipeline.formation),
        "drains": pipeline.drains,
        "departs": pipeline.departing,
        "retiring": pipeline.retiring,
    }


def _formation(formation: Formation | None) -> Fields | None:
    if formation is None:
        return None
    return {
        "formation_id": formation.formation_id,
        "members": formation.members,
        "kv_blocks": formation.kv_blocks,
        "state": formation.state,
        "numerics_class": formation.numerics_class,
        "kv_block_bytes": formation.kv_block_bytes,
    }


def _seat(seat: Seat) -> Fields:
    return {
        "layers": seat.stage.layers,
        "tp_degree": seat.stage.tp_degree,
        "shape": seat.shape,
        "node_id": seat.node_id,
        "successor_id": seat.successor_id,
        "planned_node_id": seat.planned.node_id,
        "planned_offer_id": seat.planned.offer_id,
    }


def _plain(value: object) -> Fields:
    if not is_dataclass(value):
        raise TypeError(f"{value!r} is no part of a note")
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _tell_backend(item: dict[str, Any]) -> None:
    """A node's shape once did not tell what it computes with: its facts did."""
    facts = item["facts"]
    if facts is not None and "backend" in facts:
        backend = facts.pop("backend")
        for shape in (item["shape"], facts["shape"]):
            shape.setdefault("backend", backend)


def _pipeline_from(item: dict[str, Any], now_s: float) -> Pipeline:
    model = ModelRef(**item["model"])
    formation = _formation_from(item["formation"])
    pipeline = Pipeline(
        item["pipeline_id"],
        model,
        [_seat_from(seat, model) for seat in item["seats"]],
        item["weight_tokens_per_s"],
        PipelinePhase(item.get("phase", PipelinePhase.BOTH)),  # once there were none
        tuple((name, weight) for name, weight in item.get("onward", ())),
        formation,
        retiring=item["retiring"],
        retires_s=now_s,
    )
    if formation is not None and (item["drains"] or item["retiring"]):
        drains = HandoverState.DRAINING if item["drains"] else HandoverState.PREPARING
        pipeline.handover = Handover(formation.formation_id, state=drains)
    if item.get("departs", False):  # once it was not told
        pipeline.depart_again()
    pipeline.down_since_s = None if pipeline.is_ready else now_s
    return pipeline


def _node_from(item: dict[str, Any], now_s: float, unix_offset_s: float) -> Node:
    facts, held = item["facts"], item["held"]
    deadline_unix_s = item["deadline_unix_s"]
    stock = tuple(map(_held_from, item.get("stock", ())))  # once there was none
    return Node(
        item["node_id"],
        NodeShape(**item["shape"]),
        now_s,
        item["launched"],
        None if facts is None else _facts_from(facts),
        lost=item["lost"],
        leaving=item["leaving"],
        departs=item["departs"],
        taken=item.get("taken", False),  # once nobody told
        advised=item.get("advised", False),  # once nothing was
        released=item["released"],
        served_s=None if held is None else -inf,
        held=None if held is None else _held_from(held),
        kv_blocks=item["kv_blocks"],
        numerics_class=item["numerics_class"],
        stock=stock,
        asked=stock,
        deadline_s=None if deadline_unix_s is None else deadline_unix_s - unix_offset_s,
    )


def _facts_from(item: dict[str, Any]) -> NodeFacts:
    """Older notes tell nothing of the machine."""
    machine = item.get("machine", {})
    if machine:
        devices = machine["devices"]
        found = None if devices is None else tuple(Device(**device) for device in devices)
        machine |= {"devices": found, "declared": tuple(machine["declared"])}
    shape = NodeShape(**item["shape"])
    return NodeFacts(**{**item, "shape": shape, "machine": MachineFacts(**machine)})


def _held_from(item: dict[str, Any]) -> HeldStage:
    return HeldStage(ModelRef(**item["model"]), LayerRange(**item["layers"]), item["tp_degree"])


def _seat_from(item: dict[str, Any], model: ModelRef) -> Seat:
    layers, shape = LayerRange(**item["layers"]), NodeShape(**item["shape"])
    tp_degree = item["tp_degree"]
    planned_node_id = item["planned_node_id"]
    return Seat(
        PlannedStage(layers, tp_degree, shape, planned_node_id, item["planned_offer_id"]),
        HeldStage(model, layers, tp_degree),
        shape,
        item["node_id"],
        item["successor_id"],
    )


def _formation_from(item: dict[str, Any] | None) -> Formation | None:
    if item is None:
        return None
    members = tuple(
        Member(**{**member, "layers": LayerRange(**member["layers"])}) for member in item["members"]
    )
    state = FormationState(item["state"])
    return Formation(
        item["formation_id"],
        members,
        item["kv_blocks"],
        state,
        item["numerics_class"],
        item.get("kv_block_bytes"),  # once it was not noted
    )
