"""From one plan to the next, while the mesh serves.

Pipelines that are equal in both go on untouched. The others serve until what takes their place
can begin, and their nodes prepare for it meanwhile: first everything is made that needs nobody's
node, then one formation at a time gives its nodes to what follows it, while the others carry the
load; what nothing follows goes last.
"""

from __future__ import annotations

from services.common.nodes import Member
from services.controller.core.cluster.actions import Action, LogEvent
from services.controller.core.cluster.ahead import copy_ahead, seated
from services.controller.core.cluster.backends import agree
from services.controller.core.cluster.lacks import waits_for_money
from services.controller.core.cluster.losses import dismiss, dissolve, end, withdraw
from services.controller.core.cluster.node import HeldStage
from services.controller.core.cluster.notices import hand_over
from services.controller.core.cluster.pipeline import Pipeline, Seat
from services.controller.core.cluster.plan import Deployment, Plan, PlannedPipeline, PlannedStage
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State


def adopt(state: State, settings: ClusterSettings, plan: Plan, now_s: float) -> list[Action]:
    """The plan takes the place of the one before, however far that one was carried out."""
    plan, kept = _named(state, plan)
    state.adopt(plan)
    told = {"plan": str(plan.number)} | ({"late": plan.why.late} if plan.why.late else {})
    actions: list[Action] = [LogEvent("plan_ready", "", "", told)]
    for pipeline in list(state.pipelines.values()):
        if pipeline.pipeline_id not in kept:
            actions += _retire(state, settings, pipeline, now_s)
    for deployment, planned in plan.pipelines():
        if planned.pipeline_id in kept:
            _keep(state, state.pipelines[planned.pipeline_id], planned, plan)
        else:
            state.add(_pipeline(state, deployment, planned, now_s), now_s)
    for node in state.nodes.values():
        if state.is_seated(node):
            node.employ()
    return actions


def must_load(state: State, plan: Plan) -> list[str]:
    """Nodes and offers that the plan has load another stage than the running one, in its order;
    what waits in both for a node that is gone loads no other."""
    if state.plan is None:
        return []
    same = _matched(state, plan)
    sit = {
        node_id: seat.stage
        for pipeline in state.wanted()
        for seat in pipeline.seats
        for node_id in seat.node_ids
    }
    return [
        stage.node_id or stage.offer_id
        for deployment, pipeline in plan.pipelines()
        if pipeline.pipeline_id not in same
        for stage in pipeline.stages
        if sit.get(stage.node_id) != HeldStage(deployment.model, stage.layers, stage.tp_degree)
    ]


def _named(state: State, plan: Plan) -> tuple[Plan, set[str]]:
    """The plan with names that mean one thing: what runs already has the name it runs by, and
    nothing else has a name that is in use. And which names those are."""
    names = _matched(state, plan)
    kept = set(names.values())
    taken = kept | set(state.pipelines)
    for _, planned in plan.pipelines():
        if planned.pipeline_id not in names:
            name = planned.pipeline_id
            while name in taken:
                name = state.next_name()
            names[planned.pipeline_id] = name
            taken.add(name)
    return plan.renamed(names), kept


def _matched(state: State, plan: Plan) -> dict[str, str]:
    """Of pipelines of the plan that run already, what they run by."""
    free = dict(state.pipelines)
    names: dict[str, str] = {}
    for deployment, planned in plan.pipelines():
        rather = free.get(planned.pipeline_id)
        candidates = ([rather] if rather is not None else []) + list(free.values())
        for running in candidates:
            if _equal(state, plan, deployment, planned, running):
                names[planned.pipeline_id] = running.pipeline_id
                del free[running.pipeline_id]
                break
    return names


def _equal(
    state: State, plan: Plan, deployment: Deployment, planned: PlannedPipeline, running: Pipeline
) -> bool:
    """The same stages on the same nodes, but for nodes that are not to be had any more."""
    if running.model != deployment.model or len(running.seats) != len(planned.stages):
        return False
    return all(
        _same_seat(state, plan, stage, seat)
        for stage, seat in zip(planned.stages, running.seats, strict=True)
    )


def _same_seat(state: State, plan: Plan, stage: PlannedStage, seat: Seat) -> bool:
    if (stage.layers, stage.tp_degree) != (seat.stage.layers, seat.stage.tp_degree):
        return False
    if not agree(stage.shape, seat.shape):
        return False
    if stage.node_id and stage.node_id == seat.node_id:
        return True
    if seat.node_id in plan.node_ids():
        return False  # it is to sit elsewhere
    sits = state.nodes.get(seat.node_id)
    bought = sits.offer_id if sits is not None and sits.offer_id else seat.planned.offer_id
    if stage.offer_id and not stage.node_id and stage.offer_id != bought:
        return False  # whoever sits here was bought elsewhere
    node = state.nodes.get(stage.node_id)
    return stage.node_id in seat.node_ids or node is None or not node.stays


def _keep(state: State, pipeline: Pipeline, planned: PlannedPipeline, plan: Plan) -> None:
    pipeline.keep(planned)
    for seat in pipeline.seats:
        wanted = seat.planned.node_id
        if seat.successor_id in plan.node_ids() and seat.successor_id != wanted:
            withdraw(state, pipeline, seat)


def _retire(
    state: State, settings: ClusterSettings, pipeline: Pipeline, now_s: float
) -> list[Action]:
    """What serves goes on for now; the rest is over."""
    formation = pipeline.formation
    actions: list[Action] = []
    if formation is not None and formation.forming:
        actions = dissolve(state, settings, pipeline, "not in the plan", now_s)
        formation = None
    if formation is None:
        end(state, pipeline)
    elif not pipeline.retiring:
        for seat in pipeline.seats:
            dismiss(state, seat)
        pipeline.retire(state.sampled(formation), now_s)
    return actions


def _pipeline(
    state: State, deployment: Deployment, planned: PlannedPipeline, now_s: float
) -> Pipeline:
    seats = []
    for stage in planned.stages:
        held = HeldStage(deployment.model, stage.layers, stage.tp_degree)
        node = state.nodes.get(stage.node_id)
        shape = node.shape if node is not None else stage.shape
        seat = Seat(stage, held, shape)
        if node is not None and not node.lost and not node.leaving:
            seat.take(node.node_id)
        seats.append(seat)
    return Pipeline(
        planned.pipeline_id,
        deployment.model,
        seats,
        planned.weight_tokens_per_s,
        planned.phase,
        planned.onward,
        down_since_s=now_s,
    )


def blockers(state: State, pipeline: Pipeline) -> list[Pipeline]:
    """Pipelines whose formations have nodes that this one is to have."""
    found = {}
    for seat in pipeline.seats:
        other = _blocked_by(state, pipeline, seat)
        if other is not None:
            found[other.pipeline_id] = other
    return list(found.values())


def in_the_way(state: State, settings: ClusterSettings, pipeline: Pipeline) -> list[Pipeline]:
    """Pipelines that have to end before this one can be: they have its nodes, or the money, or
    nothing that takes their place may load while they serve."""
    found = blockers(state, pipeline)
    if found:
        return found
    if any(waits_for_money(seat) for seat in pipeline.seats):
        return state.retiring()
    if not settings.strategy.concurrent_initialisation:
        return [other for other in state.retiring() if other.model == pipeline.model]
    return []


def may_load(state: State, settings: ClusterSettings, pipeline: Pipeline) -> bool:
    """Its nodes may load now what they are to have."""
    if settings.strategy.concurrent_initialisation:
        return True
    return pipeline.formation is None and not in_the_way(state, settings, pipeline)


def _blocked_by(state: State, pipeline: Pipeline, seat: Seat) -> Pipeline | None:
    node = state.nodes.get(seat.node_id)
    other = state.pipeline_of(node) if node is not None else None
    return None if other is pipeline else other


def take_turns(state: State, settings: ClusterSettings, now_s: float) -> list[Action]:
    """Drains the next formation that is in the way of the plan, when it is time for it."""
    retiring = state.retiring()
    if not retiring or any(pipeline.drains for pipeline in state.restless()):
        return []
    lacking = state.lacking()
    if all(pipeline.is_ready for pipeline in lacking):
        done = [
            one for one in retiring if not one.departing and _is_done(state, settings, one, now_s)
        ]
        return _next(state, settings, done[0], None, now_s) if done else []
    if any(_goes_on(state, settings, pipeline) for pipeline in lacking):
        return []
    waiting = [(in_the_way(state, settings, p), p) for p in lacking if p.formation is None]
    next_to_go = [
        (other, pipeline)
        for others, pipeline in sorted(waiting, key=lambda one: len(one[0]))
        if _has_what_it_needs(state, settings, pipeline)
        for other in others
        if _is_done(state, settings, other, now_s)
    ]
    for last_resort in (False, True):
        for other, pipeline in next_to_go:
            if _can_be_spared(state, settings, other, last_resort=last_resort):
                return _next(state, settings, other, pipeline, now_s)
    return []


def switches(state: State, settings: ClusterSettings, now_s: float) -> bool:
    """A formation was drained for the plan's sake, and what follows it is about to serve."""
    if now_s - state.switched_s >= settings.switch_s:
        return False
    return any(_is_about_to_serve(state, pipeline) for pipeline in state.lacking())


def _is_about_to_serve(state: State, pipeline: Pipeline, behind: Pipeline | None = None) -> bool:
    """It forms, or does as soon as what is drained has ended, and the one `behind` which it would
    come; it has not failed to."""
    if pipeline.formation is not None:
        return pipeline.formation.forming
    if pipeline.forms.failures or not _is_prepared(state, pipeline):
        return False
    if any(waits_for_money(seat) for seat in pipeline.seats):
        return False
    return all(other is behind or other.drains for other in blockers(state, pipeline))


def _next(
    state: State,
    settings: ClusterSettings,
    pipeline: Pipeline,
    follower: Pipeline | None,
    now_s: float,
) -> list[Action]:
    """It is drained, behind its blocks where these go ahead: to the one that waits for its nodes
    and serves as soon as it has them, for then its readers wait for that one."""
    followers: tuple[Member, ...] = ()
    waited_for = (
        follower is not None
        and follower.model == pipeline.model
        and _is_about_to_serve(state, follower, behind=pipeline)
    )
    if follower is not None and waited_for:
        followers = seated(state, follower, [seat.node_id for seat in follower.seats])
    copies = copy_ahead(state, settings, pipeline, followers, now_s, waited_for=waited_for)
    if copies is not None:
        return copies
    state.switched_s = now_s
    pipeline.be_ready_to_hand_over()
    return hand_over(state, pipeline, now_s)


def _goes_on(state: State, settings: ClusterSettings, pipeline: Pipeline) -> bool:
    """It does not serve and will, or is getting nearer to it: its nodes load, and need nothing for
    that which another one has."""
    if pipeline.is_ready or pipeline.drains:
        return False
    if pipeline.formation is not None:
        return True
    if pipeline.unlike or pipeline.forms.failures >= settings.load_attempts:
        return False
    for seat in pipeline.seats:
        node = state.nodes.get(seat.node_id)
        if node is None or not node.present:
            return False
        if node.cannot_load(seat.stage, settings.load_attempts):
            return False
    has_all = _has_what_it_needs(state, settings, pipeline)
    return not has_all or not _ends_first(state, settings, pipeline)


def _ends_first(state: State, settings: ClusterSettings, pipeline: Pipeline) -> list[Pipeline]:
    """What serves and has to end for it, or for it to load."""
    if settings.strategy.concurrent_initialisation:
        return blockers(state, pipeline)
    return in_the_way(state, settings, pipeline)


def _has_what_it_needs(state: State, settings: ClusterSettings, pipeline: Pipeline) -> bool:
    """Nothing more can be done for it while others serve: it is prepared, or may load no sooner and
    every node of it that is paid for is there."""
    if settings.strategy.concurrent_initialisation:
        return _is_prepared(state, pipeline)
    nodes = ((seat, state.nodes.get(seat.node_id)) for seat in pipeline.seats)
    return all((n is not None and n.present) or waits_for_money(seat) for seat, n in nodes)


def _is_prepared(state: State, pipeline: Pipeline) -> bool:
    """Every node of it that is paid for holds its stage, or has fetched it and serves."""
    for seat in pipeline.seats:
        node = state.nodes.get(seat.node_id)
        if node is None or not node.present:
            if waits_for_money(seat):
                continue
            return False
        serves = _blocked_by(state, pipeline, seat) is not None
        if not node.holds(seat.stage) and not (serves and node.has_fetched(seat.stage)):
            return False
    return True


def _is_done(state: State, settings: ClusterSettings, pipeline: Pipeline, now_s: float) -> bool:
    """It may be drained: others go on with what it serves, or it serves nothing, or what it serves
    has had its time. Of a model that was undeployed nobody could go on with it."""
    if pipeline.formation is None or state.goals.have(pipeline.model):
        return True
    rests = not state.has_work(pipeline.formation)
    return rests or now_s - pipeline.retires_s >= settings.undeploy_grace_s


def _can_be_spared(
    state: State, settings: ClusterSettings, pipeline: Pipeline, *, last_resort: bool
) -> bool:
    """Others serve its model, or there is no other way. As a last resort one that waits for
    another model's nodes is no such way: those may wait for these."""
    if pipeline.stalled:
        return True
    others = [other for other in state.of_model(pipeline.model) if other is not pipeline]
    if any(other.is_ready and not other.stalled for other in others):
        return True
    for other in others:
        if other.is_ready or _is_hopeless(state, settings, other):
            continue
        waits_for = in_the_way(state, settings, other)
        if last_resort and any(one.model != pipeline.model for one in waits_for):
            continue
        if pipeline not in waits_for or not _has_what_it_needs(state, settings, other):
            return False  # it may serve first, or be nearer to it
    return True


def _is_hopeless(state: State, settings: ClusterSettings, pipeline: Pipeline) -> bool:
    """Nothing will make it serve as things are."""
    if pipeline.unlike:
        return True
    for seat in pipeline.seats:
        node = state.nodes.get(seat.node_id)
        if node is None and not settings.can_launch:
            return True
        if node is not None and node.refused == seat.stage and node.loads.permanent:
            return True
    return False
