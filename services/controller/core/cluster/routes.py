"""Which pipelines take requests, as routers and the ledger see it."""

from __future__ import annotations

from services.common.exchange import Route
from services.controller.core.cluster.membership import FormationState, Membership, Pipeline
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.ledger.outcomes import ServingHead


def routes_of(state: Membership, settings: ClusterSettings) -> tuple[Route, ...]:
    """Pipelines that take new requests."""
    ready = (p for p in state.pipelines if p.is_ready and not p.stalled)
    routes = (_route(pipeline, settings) for pipeline in ready)
    return tuple(route for route in routes if route is not None)


def handing_over(state: Membership) -> tuple[str, ...]:
    """Formations whose generations are being sealed."""
    formations = (pipeline.formation for pipeline in state.pipelines)
    return tuple(
        formation.formation_id
        for formation in formations
        if formation is not None and formation.state is FormationState.HANDING_OVER
    )


def heads_of(state: Membership, settings: ClusterSettings, now_s: float) -> tuple[ServingHead, ...]:
    """Every living formation's head; none is granted anything while a member is silent, or after a
    restart before all were heard from."""
    heads = []
    for pipeline in state.pipelines:
        formation, route = pipeline.formation, _route(pipeline, settings)
        if formation is not None and route is not None:
            head = state.nodes[formation.members[0].node_id]
            heard = state.heard_from(formation, now_s - settings.doubt_s)
            hands_over = formation.state is FormationState.HANDING_OVER
            stalled = pipeline.stalled
            takes_new = heard and not hands_over and not stalled
            heads.append(ServingHead(route, takes_new, head.numerics_class, hands_over, stalled))
    return tuple(heads)


def _route(pipeline: Pipeline, settings: ClusterSettings) -> Route | None:
    formation = pipeline.formation
    if formation is None or formation.state is FormationState.FORMING:
        return None
    head = formation.members[0]
    return Route(
        pipeline.pipeline_id,
        formation.formation_id,
        head.incarnation,
        head.address,
        pipeline.throughput_tokens_per_s,
        settings.model,
        min(settings.max_positions, formation.kv_blocks * settings.block_positions),
    )
