"""Which pipelines take requests, as routers and the ledger see it."""

from __future__ import annotations

from services.common.exchange import Route
from services.common.generation import ModelRef
from services.common.numerics import form_one, pipeline_class
from services.common.phases import PipelinePhase
from services.controller.core.cluster.changes import switches
from services.controller.core.cluster.pipeline import Pipeline
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State
from services.controller.core.ledger.outcomes import ServingHead


def routes_of(state: State, settings: ClusterSettings) -> tuple[Route, ...]:
    """Pipelines that take new requests."""
    roles = Roles(state, settings)
    ready = (p for p in state.pipelines.values() if _is_open(state, p) and roles.begin(p))
    routes = (_route(state, pipeline, settings, roles) for pipeline in ready)
    return tuple(route for route in routes if route is not None)


def not_for_new(state: State, settings: ClusterSettings) -> tuple[str, ...]:
    """Formations that serve what they have and take no new requests: their generations are being
    sealed, or have their last time there, or their model is not deployed any more, or they take
    what begins elsewhere."""
    roles, pipelines = Roles(state, settings), state.pipelines.values()
    serving = (
        p
        for p in pipelines
        if p.drains
        or (p.is_ready and not _takes_new(state, p))
        or (_is_open(state, p) and not roles.begin(p))
    )
    formations = (pipeline.formation for pipeline in serving)
    return tuple(formation.formation_id for formation in formations if formation is not None)


class Roles:
    """Where generations begin and go on, as things are now: a pipeline that lacks the others of its
    arithmetic does their part, too."""

    def __init__(self, state: State, settings: ClusterSettings) -> None:
        serving = [p for p in state.pipelines.values() if _is_open(state, p)]
        goes_on = settings.strategy.migration  # else the next head would begin again
        self._prefill = {_kind(p) for p in serving if p.phase is not PipelinePhase.DECODE}
        self._decode = {
            _kind(p) for p in serving if goes_on and p.phase is not PipelinePhase.PREFILL
        }

    def begin(self, pipeline: Pipeline) -> bool:
        """Generations begin there."""
        return pipeline.phase is not PipelinePhase.DECODE or _kind(pipeline) not in self._prefill

    def hands_on(self, pipeline: Pipeline) -> bool:
        """They go on elsewhere behind their first token."""
        return pipeline.phase is PipelinePhase.PREFILL and _kind(pipeline) in self._decode


def _kind(pipeline: Pipeline) -> tuple[ModelRef, str]:
    numerics = pipeline.formation.numerics_class if pipeline.formation is not None else ""
    return pipeline.model, numerics


def _is_open(state: State, pipeline: Pipeline) -> bool:
    return pipeline.is_ready and not pipeline.stalled and _takes_new(state, pipeline)


def _takes_new(state: State, pipeline: Pipeline) -> bool:
    return not pipeline.departing and state.goals.have(pipeline.model)


def heads_of(state: State, settings: ClusterSettings, now_s: float) -> tuple[ServingHead, ...]:
    """Every living formation's head; none is granted anything while a member is silent, or after a
    restart before all were heard from."""
    heads, switching = [], switches(state, settings, now_s)
    roles = Roles(state, settings)
    for pipeline in state.pipelines.values():
        formation, route = pipeline.formation, _route(state, pipeline, settings, roles)
        if formation is not None and route is not None:
            heard = state.trusts(formation, now_s)
            takes_new = heard and _is_open(state, pipeline)
            heads.append(
                ServingHead(
                    route,
                    takes_new,
                    formation.numerics_class,
                    pipeline.drains,
                    pipeline.stalled,
                    pipeline.departing,
                    switching,
                    pipeline.phase,
                    dict(pipeline.onward),
                )
            )
    return tuple(heads)


def coming(state: State) -> frozenset[tuple[ModelRef, str]]:
    """Numerics classes, by model, of pipelines of the plan that take nothing new just now."""
    away = ((p.model, _class_of(state, p)) for p in state.wanted() if not p.is_ready)
    return frozenset((model, numerics_class) for model, numerics_class in away if numerics_class)


def _class_of(state: State, pipeline: Pipeline) -> str:
    """Of its formation; where it has none, of its nodes if they agree, or of the one it had."""
    if pipeline.formation is not None:
        return pipeline.formation.numerics_class
    nodes = (state.nodes.get(seat.node_id) for seat in pipeline.seats)
    classes = {node.numerics_class for node in nodes if node is not None} - {""}
    if not classes or not form_one(classes):
        return pipeline.numerics_class
    return pipeline_class(min(classes), [seat.stage.spec for seat in pipeline.seats])


def _route(
    state: State, pipeline: Pipeline, settings: ClusterSettings, roles: Roles
) -> Route | None:
    formation = pipeline.formation
    if formation is None or formation.forming:
        return None
    head, goal = formation.head, state.goals.find(pipeline.model.model_id)
    positions = formation.kv_blocks * settings.block_positions
    if goal is not None:
        positions = min(positions, goal.facts.context_length)
    return Route(
        pipeline.pipeline_id,
        formation.formation_id,
        head.incarnation,
        head.address,
        pipeline.weight_tokens_per_s,
        pipeline.model,
        positions,
        roles.hands_on(pipeline),
    )
