"""What the cluster's nouns refuse: whoever tells them so has a defect."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.common.generation import LayerRange, ModelRef
from services.common.nodes import Member, NodeShape
from services.controller.core.cluster.actions import Loaded
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.handover import Handover, HandoverState
from services.controller.core.cluster.liveness import Liveness
from services.controller.core.cluster.node import HeldStage, Node
from services.controller.core.cluster.pipeline import Formation, Pipeline, Seat
from services.controller.core.cluster.plan import PlannedStage
from services.controller.core.cluster.state import State
from services.controller.core.cluster.transitions import IllegalTransition
from tests.unit.controller.small_cluster import GOAL, PATIENT, facts

MODEL = ModelRef("m", "d")
WHOLE = LayerRange(0, 4)
STAGE = HeldStage(MODEL, WHOLE, 1)
SHAPE = NodeShape(0, 1.0)


def node(*steps: Callable[[Node], object]) -> Node:
    made = Node("a", SHAPE, 0.0)
    for step in steps:
        step(made)
    return made


def registered(one: Node) -> None:
    one.register(facts("a"), 0.0)


def lost(one: Node) -> None:
    one.lose(1.0)


@pytest.mark.parametrize(
    ("before", "step"),
    [
        ((lost,), lost),
        ((registered,), lambda n: n.register(facts("a", "other"), 1.0)),
        ((lost,), lambda n: n.give_notice(5.0)),
        ((registered,), lambda n: n.lapse()),
        ((registered, lambda n: n.give_notice(5.0, departs=True)), lambda n: n.lapse()),
        ((), lambda n: n.load(STAGE)),
        ((registered, lambda n: n.load(STAGE)), lambda n: n.load(STAGE)),
        ((registered,), lambda n: n.loaded(Loaded(1, "a"))),
        ((registered,), lambda n: n.fetch()),
        (
            (registered, lambda n: n.load(STAGE), lambda n: n.fetch(), lambda n: n.load(STAGE)),
            lambda n: n.fetch(),
        ),
        ((registered,), lambda n: n.refuse(PATIENT, "no", False, 1.0)),
    ],
)
def test_a_node_refuses(before: tuple[Callable[[Node], object], ...], step: Callable) -> None:
    made = node(*before)
    with pytest.raises(IllegalTransition, match="a "):
        step(made)


def formation(name: str = "f") -> Formation:
    return Formation(name, (Member("a", "i-a", "i-a:1", WHOLE),), 8)


def pipeline(*, stands: bool = False) -> Pipeline:
    seat = Seat(PlannedStage(WHOLE), STAGE, SHAPE, "a")
    made = Pipeline("p", MODEL, [seat], 1.0)
    if stands:
        made.form(formation())
        made.stand(0.0)
    return made


@pytest.mark.parametrize(
    ("stands", "step"),
    [
        (False, lambda p: p.stand(1.0)),
        (True, lambda p: p.stand(1.0)),
        (True, lambda p: p.form(formation("g"))),
        (False, lambda p: p.fall(PATIENT, "no", 1.0)),
        (False, lambda p: p.prepare(0)),
        (False, lambda p: p.drain(0, 1.0)),
        (False, lambda p: p.retire(0, 0.0)),
        (False, lambda p: p.be_ready_to_hand_over()),
    ],
)
def test_a_pipeline_refuses(stands: bool, step: Callable) -> None:
    made = pipeline(stands=stands)
    with pytest.raises(IllegalTransition):
        step(made)


def test_a_pipeline_that_is_drained_neither_stays_nor_drains_again() -> None:
    made = pipeline(stands=True)
    assert made.drain(3, 1.0)[1] == 0
    for step in (made.stay, lambda: made.drain(3, 2.0)):
        with pytest.raises(IllegalTransition):
            step()
    made.fall(PATIENT, "drained", 2.0)
    assert made.handover is None


def test_a_retired_pipeline_forms_no_more() -> None:
    made = pipeline(stands=True)
    made.retire(0, 0.0)
    made.fall(PATIENT, "lost", 1.0)
    with pytest.raises(IllegalTransition, match="forms no more"):
        made.form(formation("g"))


def test_a_hand_over_goes_one_way() -> None:
    handover = Handover("f")
    handover.ready()
    with pytest.raises(IllegalTransition):
        handover.ready()
    handover.drain()
    with pytest.raises(IllegalTransition):
        handover.drain()
    handover.end()
    assert handover.state is HandoverState.OVER
    with pytest.raises(IllegalTransition):
        handover.end()


def test_a_process_is_in_one_formation_and_an_index_finds_it() -> None:
    state = State("", Goals.of(GOAL), Liveness(PATIENT, 0.0))
    one, other = pipeline(), pipeline()
    other.pipeline_id = "q"
    for made in (one, other):
        state.add(made, 0.0)
    state.put(node(registered))
    state.form(one, formation(), 0.0)
    assert state.pipeline("f") is state.pipeline_of(state.nodes["a"]) is one
    with pytest.raises(IllegalTransition, match="a is in a formation"):
        state.form(other, formation("g"), 0.0)
    with pytest.raises(IllegalTransition, match="has a formation still"):
        state.remove(one)
    state.end_formation(one, PATIENT, "lost", 1.0)
    assert state.pipeline("f") is state.pipeline_of(state.nodes["a"]) is None
    with pytest.raises(IllegalTransition, match="not lost"):
        state.forget(state.nodes["a"])
