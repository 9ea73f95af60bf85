"""Each strategy lacks the capability it is named for, and no other one."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from services.common.errors import FailedPrecondition
from services.common.exchange import Checkpoint, LeaveReason, ResumeQuestion
from services.common.generation import CancelReason, LayerRange, TokenSpan
from services.common.phases import PipelinePhase
from services.controller.core.cluster.actions import (
    DrainFormation,
    FormPipeline,
    LaunchNode,
    LoadStage,
    LogEvent,
)
from services.controller.core.cluster.market import Market
from services.controller.core.cluster.plan import Deployment, Plan
from services.controller.core.cluster.question import NextPlan, Replanning, Wishes
from services.controller.core.cluster.replanning import Cause, Replanner, ReplanSettings
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.succession import Succession, SuccessionSettings
from services.controller.core.cluster.workload import Workload, Workloads, WorkloadSettings
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerSettings, RunsAt
from services.controller.core.strategy import FULL, STRATEGIES, Strategy
from services.controller.settings import ControllerSettings
from tests.unit.controller.core.cluster.test_changes import ALONE, carry_out, serving
from tests.unit.controller.core.ledger.book import MODEL, REQUEST, A, B
from tests.unit.controller.small_cluster import (
    BACK,
    FRONT,
    PAIR,
    PATIENT,
    Prompt,
    all_of,
    facts,
    loaded,
    one_of,
    planned,
    ready,
)
from tests.unit.controller.test_settings import FACTS

LACKS = {
    "full": {},
    "migration": {"concurrent_initialisation": False},
    "concurrent-init": {"migration": False},
    "none": {"migration": False, "concurrent_initialisation": False},
    "spotserve": {"uniform": True},
    "thunderserve": {"weights_stay": True},
}
MIGRATES = [name for name, lacks in LACKS.items() if "migration" not in lacks]
STARTS_OVER = [name for name in LACKS if name not in MIGRATES]
OVERLAPS = [name for name, lacks in LACKS.items() if "concurrent_initialisation" not in lacks]
WAITS = [name for name in LACKS if name not in OVERLAPS]
WHOLE = LayerRange(0, 30)


@pytest.mark.parametrize("name", LACKS)
def test_a_strategy_differs_from_full_by_the_named_capability_alone(name: str) -> None:
    row, full = asdict(STRATEGIES[name]), asdict(FULL)
    assert {k: v for k, v in row.items() if v != full[k]} == LACKS[name] | (
        {} if name == "full" else {"name": name}
    )
    assert set(STRATEGIES) == set(LACKS)


@pytest.mark.parametrize("name", LACKS)
def test_the_settings_of_two_strategies_differ_by_their_capabilities_alone(name: str) -> None:
    mine, full = ControllerSettings(strategy=name), ControllerSettings()
    own = {"strategy"}
    if mine.capabilities.uniform:
        own |= {"planner"}  # of uniform degrees there is one
        assert mine.replanning == replace(full.replanning, anew=True, cool_down_s=0.0)
    else:
        looks = {"counts_lengths": mine.capabilities.weights_stay}
        assert mine.replanning == replace(full.replanning, **looks)
    if not mine.capabilities.migration:
        own |= {"ahead_s"}  # no blocks go ahead of what starts over
    cluster, ledger = asdict(mine.cluster(FACTS)), asdict(mine.ledger)
    assert _differ(cluster, asdict(full.cluster(FACTS))) == (set() if name == "full" else own)
    assert _differ(ledger, asdict(full.ledger)) == (set() if name == "full" else {"strategy"})
    rest = ("runtime", "succession", "workloads", "wishes", "aim", "engine_timeouts", "limits")
    assert all(getattr(mine, part) == getattr(full, part) for part in rest)


def _differ(mine: dict[str, object], full: dict[str, object]) -> set[str]:
    return {key for key, value in mine.items() if value != full[key]}


# Migration


def moved(strategy: Strategy) -> tuple[Ledger, tuple[TokenSpan, ...]]:
    """A generation of three ids whose reader has four, behind the loss of its head; and what the
    next head is given."""
    ledger = Ledger(LedgerSettings(strategy=strategy))
    first = Checkpoint("g", 1, "i-a", "f-a", REQUEST, (TokenSpan(0, 0, (7, 8, 9)),))
    ledger.checkpoint(first, RunsAt("p-a", MODEL), 0.0)
    held = (TokenSpan(0, 0, (7, 8, 9, 10)),)
    question = ResumeQuestion("g", 1, REQUEST, held, "f-a", LeaveReason.UNREACHABLE)
    grant = ledger.resume(question, (B,), 0.0)
    assert grant is not None
    assert grant.events[0].attributes["base"] == str(sum(len(s.ids) for s in grant.reply.base))
    return ledger, grant.reply.base


@pytest.mark.parametrize("name", MIGRATES)
def test_the_next_head_goes_on_from_the_ids_there_are(name: str) -> None:
    ledger, base = moved(STRATEGIES[name])
    assert [span.ids for span in base] == [(7, 8, 9, 10)]
    end = Checkpoint("g", 2, "i-b", "f-b", REQUEST, (TokenSpan(0, 4, (2,)),), sealed=True)
    assert "computed_again" not in _said(ledger, end)


@pytest.mark.parametrize("name", STARTS_OVER)
def test_the_next_head_starts_over_and_nothing_that_was_told_is_contradicted(name: str) -> None:
    ledger, base = moved(STRATEGIES[name])
    assert base == ()
    again = Checkpoint("g", 2, "i-b", "f-b", REQUEST, (TokenSpan(0, 0, (7, 8)),))
    outcome = ledger.checkpoint(again, RunsAt("p-b", MODEL), 0.0)
    assert (outcome.reply.lengths, outcome.records) == ((4,), ()), "the journal only grows"
    other = replace(again, spans=(TokenSpan(0, 0, (7, 1)),))
    assert ledger.checkpoint(other, None, 0.0).reply.refusal is not None
    same = ResumeQuestion("g", 1, REQUEST, ())
    answered = ledger.resume(same, (B,), 0.0)
    assert answered is not None
    assert (answered.reply.epoch, answered.reply.base) == (2, ())
    end = replace(again, spans=(TokenSpan(0, 2, (9, 10, 2)),), sealed=True)
    assert _said(ledger, end)["computed_again"] == "4"


def _said(ledger: Ledger, checkpoint: Checkpoint) -> dict[str, str]:
    (event,) = ledger.checkpoint(checkpoint, None, 0.0).events
    assert event.kind == "generation_finished"
    return event.attributes


def test_a_choice_that_has_ended_is_not_computed_again() -> None:
    ledger = Ledger(LedgerSettings(strategy=STRATEGIES["none"]))
    request = replace(REQUEST, choices=2)
    spans = (TokenSpan(0, 0, (7, 8)), TokenSpan(1, 0, (5,)))
    ledger.checkpoint(Checkpoint("g", 1, "i-a", "f-a", request, spans), RunsAt("p-a", MODEL), 0.0)
    ledger.cancel("g", 1, CancelReason.STOP, 1, 0.0)
    question = ResumeQuestion("g", 1, request, (), "f-a", LeaveReason.UNREACHABLE)
    grant = ledger.resume(question, (A, B), 0.0)
    assert grant is not None
    assert [(span.choice, span.ids) for span in grant.reply.base] == [(1, (5,))]


# Concurrent initialisation


def settings(name: str, base: ClusterSettings = PATIENT) -> ClusterSettings:
    return replace(base, strategy=STRATEGIES[name])


def noticed(name: str) -> tuple[Prompt, list[object]]:
    """The second node of a pipeline will be taken away, and one like it has come."""
    cluster = ready(settings(name))
    launch = one_of(cluster.interrupt("node-2", 60.0, False, 1.0), LaunchNode)
    assert launch.node_id == "node-3"
    return cluster, list(cluster.register(facts("node-3"), 2.0))


@pytest.mark.parametrize("name", OVERLAPS)
def test_a_replacement_loads_while_the_pipeline_serves(name: str) -> None:
    cluster, came = noticed(name)
    assert [type(a) for a in came if isinstance(a, LoadStage | DrainFormation)] == [LoadStage]
    assert all_of(loaded(cluster, "node-3", BACK, 3.0), DrainFormation)


@pytest.mark.parametrize("name", WAITS)
def test_a_replacement_loads_once_the_pipeline_has_ended(name: str) -> None:
    cluster, came = noticed(name)
    assert [type(a) for a in came if isinstance(a, LoadStage | DrainFormation)] == [DrainFormation]
    behind = cluster.drained("f1", 1, 3.0)
    assert [load.node_id for load in all_of(behind, LoadStage)] == ["node-3"]
    assert all_of(behind, FormPipeline) == []
    form = one_of(loaded(cluster, "node-3", BACK, 4.0), FormPipeline)
    assert [member.node_id for member in form.members] == ["node-1", "node-3"]


def order(name: str) -> list[str]:
    """Loads and drains of a change of shape on the same two nodes, in their order."""
    cluster = serving(PAIR, settings=settings(name, ALONE))
    plan = planned({"node-2": FRONT, "node-1": BACK}, number=2)
    done = carry_out(cluster, cluster.plan_ready(plan, 1.0), 1.0)
    assert len(cluster.routes()[1]) == 1
    kinds = {LoadStage: "load", DrainFormation: "drain", FormPipeline: "form"}
    return [kinds[type(action)] for action in done if type(action) in kinds]


def test_a_plan_is_prepared_before_or_behind_what_it_replaces() -> None:
    for name in ("full", "concurrent-init", "spotserve"):
        assert order(name) == ["load", "load", "drain", "form"]
    for name in WAITS:
        assert order(name) == ["drain", "load", "load", "form"]


@pytest.mark.parametrize("name", WAITS)
def test_a_pipeline_of_other_nodes_waits_for_what_it_replaces_too(name: str) -> None:
    cluster = serving({"a": WHOLE}, idle=("b",), settings=settings(name, ALONE))
    actions = cluster.plan_ready(planned({"b": WHOLE}, number=2), 1.0)
    assert all_of(actions, LoadStage) == []
    one_of(actions, DrainFormation)
    assert [one.node_id for one in all_of(cluster.drained("f1", 0, 2.0), LoadStage)] == ["b"]


@pytest.mark.parametrize("name", WAITS)
def test_capacity_that_replaces_nothing_loads_at_once(name: str) -> None:
    cluster = serving({"a": WHOLE}, idle=("b",), settings=settings(name, ALONE))
    actions = cluster.plan_ready(planned({"a": WHOLE}, {"b": WHOLE}, number=2), 1.0)
    assert [load.node_id for load in all_of(actions, LoadStage)] == ["b"]
    assert all_of(actions, DrainFormation) == []


@pytest.mark.parametrize("name", LACKS)
def test_only_who_may_load_beside_others_has_a_loaded_spare(name: str) -> None:
    cluster = serving(PAIR, settings=replace(settings(name, ALONE), spares=1))
    came = cluster.register(facts("spare"), 1.0)
    assert [node.node_id for node in cluster.view.spares()] == ["spare"]
    assert bool(all_of(came, LoadStage)) is (name in OVERLAPS)


# Uniform degrees


def asked(name: str) -> Replanner:
    return Replanner(ReplanSettings(anew=STRATEGIES[name].uniform))


def test_a_node_that_goes_or_comes_has_uniform_plans_made_anew() -> None:
    uniform, free = asked("spotserve"), asked("full")
    for replanner in (uniform, free):
        replanner.there(["a", "b"], 0.0)
        replanner.there(["a", "b"], 1.0)
        assert replanner.due({}, 50.0) is None
        replanner.there(["a"], 60.0)
    assert free.due({}, 61.0) is None
    ask = uniform.due({}, 60.0)
    assert ask is not None
    assert (ask.causes, ask.improve) == ((Cause.LOST,), True)
    uniform.taken(60.0)
    uniform.there(["a", "c"], 61.0)
    came = uniform.due({}, 200.0)
    assert came is not None
    assert (came.causes, came.improve) == ((Cause.CAME,), True)


@pytest.mark.parametrize("name", LACKS)
def test_a_node_whose_like_takes_its_place_is_a_question_of_uniform_degrees(name: str) -> None:
    cluster = ready(settings(name))
    following = succession(cluster)
    assert following.look(1.0).question is None
    cluster.node_gone("node-2", "i-node-2", "killed", 2.0)
    question = following.look(2.0).question
    assert (question is not None) is STRATEGIES[name].uniform
    if question is not None:
        assert question.improve


@pytest.mark.parametrize("field", ["objective", "budget_per_hour", "ttft_target_s"])
def test_what_uniform_degrees_take_no_account_of_is_refused_by_name(field: str) -> None:
    value = {"objective": "throughput-per-cost"}.get(field, 1.0)
    with pytest.raises(ValueError, match=f"takes no account of {field}"):
        ControllerSettings(strategy="spotserve", **{field: value})
    ControllerSettings(**{field: value})


def test_a_strategy_that_nobody_knows_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="known are full, migration, concurrent-init"):
        ControllerSettings(strategy="half")


# Weights that stay


def succession(cluster: Prompt) -> Succession:
    anew = cluster.settings.strategy.uniform
    return Succession(
        Replanner(ReplanSettings(anew=anew)),
        Wishes(),
        SuccessionSettings(),
        cluster=cluster.core,
        market=Market(),
        workloads=Workloads(WorkloadSettings(), 0.0),
    )


@pytest.mark.parametrize("name", LACKS)
def test_only_a_plan_that_moves_no_weights_follows_where_these_stay(name: str) -> None:
    stays = STRATEGIES[name].weights_stay
    cluster = serving(PAIR, {"c": WHOLE}, settings=settings(name, ALONE))
    moves = planned({"node-2": FRONT, "node-1": BACK}, {"c": WHOLE}, number=2)
    refused = _is_refused(cluster, moves)
    if refused:
        with pytest.raises(FailedPrecondition, match="node-2, node-1 would load"):
            cluster.check_plan(moves)
    said = [event.kind for event in all_of(cluster.plan_ready(moves, 1.0), LogEvent)]
    assert (refused, "plan_refused" in said, "plan_ready" in said) == (stays, stays, not stays)


def test_pipelines_may_go_and_have_other_shares_where_weights_stay() -> None:
    cluster = serving(PAIR, {"c": WHOLE}, settings=settings("thunderserve", ALONE))
    fewer = planned({"c": WHOLE}, number=2, weight=9.0)
    assert not _is_refused(cluster, fewer)
    done = carry_out(cluster, cluster.plan_ready(fewer, 1.0), 1.0)
    assert all_of(done, LoadStage) == []
    assert [route.throughput_tokens_per_s for route in cluster.routes()[1]] == [9.0]


def _is_refused(cluster: Prompt, plan: object) -> bool:
    try:
        cluster.check_plan(plan)
    except FailedPrecondition:
        return True
    return False


@pytest.mark.parametrize("name", LACKS)
def test_placement_is_asked_for_phases_alone_where_weights_stay(name: str) -> None:
    cluster = serving(PAIR, {"c": WHOLE}, settings=settings(name, ALONE))
    following = succession(cluster)
    following.look(1.0)
    cluster.node_gone("node-2", "i-node-2", "killed", 1.0)
    looks = [following.look(at_s) for at_s in (1.0, 20.0)]
    asked = [one.question for one in looks if isinstance(one.question, Replanning)]
    stays = STRATEGIES[name].weights_stay
    assert [one.phases_only for one in asked] == [stays]
    if stays:
        whole = [[stage.node_id for stage in one.stages] for one in asked[0].running]
        assert whole == [["c"]], "the other one waits for its like"


PREFILL, DECODE = PipelinePhase.PREFILL, PipelinePhase.DECODE


def made_of(asked: Replanning, phases: dict[str, PipelinePhase]) -> Plan:
    """As placement answers: pipelines under names of its own, by their nodes."""
    pipelines = tuple(
        replace(one, pipeline_id=f"made-{number}", phase=phases[one.stages[0].node_id])
        for number, one in enumerate(reversed(asked.running))
    )
    decode = [(one.pipeline_id, 2.0) for one in pipelines if one.phase is DECODE]
    pipelines = tuple(
        replace(one, onward=tuple(decode) if one.phase is PREFILL else (), weight_tokens_per_s=7.0)
        for one in pipelines
    )
    return Plan(asked.number, (Deployment(asked.goal.model, "throughput", pipelines),))


def test_phases_change_without_a_load_and_what_is_lost_keeps_its_seat() -> None:
    cluster = serving({"a": WHOLE}, {"b": WHOLE}, {"c": WHOLE}, settings=settings("thunderserve"))
    following = succession(cluster)
    following.look(1.0)
    following.operator_asks(2.0)
    asked = following.look(2.0).question
    assert isinstance(asked, Replanning)
    assert [one.stages[0].node_id for one in asked.running] == ["a", "b", "c"]
    ids = {one.stages[0].node_id: one.pipeline_id for one in asked.running}
    plan = made_of(asked, {"a": DECODE, "b": PREFILL, "c": DECODE})
    taken = following.answered(asked, NextPlan(plan, 0.2, ("more",)), 3.0)
    assert taken.told is not None
    assert taken.told.change
    done = carry_out(cluster, cluster.tick(3.0), 3.0)
    assert [all_of(done, kind) for kind in (LoadStage, FormPipeline, DrainFormation)] == [[]] * 3
    running = {p.pipeline_id: p for _, p in cluster.core.view.running()}
    assert {name: running[ids[name]].phase for name in ids} == {
        "a": DECODE,
        "b": PREFILL,
        "c": DECODE,
    }
    assert dict(running[ids["b"]].onward) == {ids["a"]: 2.0, ids["c"]: 2.0}
    assert [route.pipeline_id for route in cluster.routes()[1]] == [ids["b"]]
    cluster.node_gone("b", "i-b", "killed", 4.0)
    lost = following.look(4.0).question
    assert isinstance(lost, Replanning)
    assert {one.pipeline_id for one in lost.running} == {ids["a"], ids["c"]}
    plan = made_of(lost, {"a": PREFILL, "c": DECODE})
    following.answered(lost, NextPlan(plan, 0.2, ()), 5.0)
    done = carry_out(cluster, cluster.tick(5.0), 5.0)
    assert [all_of(done, kind) for kind in (LoadStage, FormPipeline, DrainFormation)] == [[]] * 3
    now = cluster.core.plan
    assert now is not None
    phases = {p.pipeline_id: (p.phase, dict(p.onward)) for _, p in now.pipelines()}
    assert phases == {
        ids["a"]: (PREFILL, {ids["c"]: 2.0}),
        ids["b"]: (PREFILL, {}),
        ids["c"]: (DECODE, {}),
    }


def test_a_workload_of_another_look_is_reason_enough_where_weights_stay() -> None:
    replanner = Replanner(ControllerSettings(strategy="thunderserve").replanning)
    full = Replanner(ControllerSettings().replanning)
    for one in (replanner, full):
        one.measured(Workload(1.0, 2000.0, 30.0, window_s=60.0), 100.0)
        one.lacking((), 100.0)
    assert full.due({}, 200.0) is None, "its objective is throughput, of any requests"
    first = replanner.due({}, 200.0)
    assert first is not None
    assert first.causes == (Cause.WORKLOAD,)
    replanner.kept(200.0)
    replanner.measured(Workload(9.0, 2100.0, 32.0, window_s=60.0), 300.0)
    assert replanner.due({}, 400.0) is None, "the same, and more of them"
    replanner.measured(Workload(1.0, 200.0, 800.0, window_s=60.0), 400.0)
    assert replanner.due({}, 500.0) is not None
