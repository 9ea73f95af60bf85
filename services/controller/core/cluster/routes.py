"""Which pipelines take requests, as routers and the ledger see it."""

from __future__ import annotations

from services.common.exchange import Route
from services.controller.core.cluster.changes import switches
from services.controller.core.cluster.pipeline import Pipeline
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State
from services.controller.core.ledger.outcomes import ServingHead


def routes_of(state: State, settings: ClusterSettings) -> tuple[Route, ...]:
    """Pipelines that take new requests."""
    ready = (p for p in state.pipelines.values() if p.is_ready and not p.stalled)
    routes = (_route(pipeline, settings) for pipeline in ready)
    return tuple(route for route in routes if route is not None)


def handing_over(state: State) -> tuple[str, ...]:
    """Formations whose generations are being sealed."""
    formations = (p.formation for p in state.pipelines.values() if p.drains)
    return tuple(formation.formation_id for formation in formations if formation is not None)


def heads_of(state: State, settings: ClusterSettings, now_s: float) -> tuple[ServingHead, ...]:
    """Every living formation's head; none is granted anything while a member is silent, or after a
    restart before all were heard from."""
    heads, switching = [], switches(state, settings, now_s)
    for pipeline in state.pipelines.values():
        formation, route = pipeline.formation, _route(pipeline, settings)
        if formation is not None and route is not None:
            heard = state.trusts(formation, now_s)
            takes_new = heard and not pipeline.drains and not pipeline.stalled
            heads.append(
                ServingHead(
                    route,
                    takes_new,
                    formation.numerics_class,
                    pipeline.drains,
                    pipeline.stalled,
                    switching,
                )
            )
    return tuple(heads)


def _route(pipeline: Pipeline, settings: ClusterSettings) -> Route | None:
    formation = pipeline.formation
    if formation is None or formation.forming:
        return None
    head = formation.head
    return Route(
        pipeline.pipeline_id,
        formation.formation_id,
        head.incarnation,
        head.address,
        pipeline.weight_tokens_per_s,
        pipeline.model,
        min(settings.max_positions, formation.kv_blocks * settings.block_positions),
    )
