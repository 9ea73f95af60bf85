from __future__ import annotations

from services.common.generation import LayerRange, ModelRef
from services.common.nodes import Member
from services.controller.core.cluster.actions import DissolveFormation, FormPipeline, LoadStage
from services.controller.core.cluster.turns import Turns

MODEL = ModelRef("m", "d")


def members(*incarnations: str) -> tuple[Member, ...]:
    return tuple(Member(f"n-{i}", i, f"{i}:1", LayerRange(0, 1)) for i in incarnations)


def form(name: str, *incarnations: str) -> FormPipeline:
    return FormPipeline(name, "p", MODEL, members(*incarnations), 8)


def test_who_leaves_nothing_is_formed_at_once() -> None:
    assert Turns().form(form("f", "a", "b")) == [form("f", "a", "b")]


def test_a_formation_waits_for_all_of_its_members() -> None:
    turns = Turns()
    turns.dissolve(DissolveFormation("old", members("a", "b", "c")))
    assert turns.form(form("new", "a", "b")) == []
    assert turns.left("a", "old") == []
    assert turns.left("b", "old") == [form("new", "a", "b")]
    assert turns.left("c", "old") == []


def test_only_those_wait_whose_members_leave() -> None:
    turns = Turns()
    turns.dissolve(DissolveFormation("old", members("a")))
    assert turns.form(form("new", "a")) == []
    assert turns.form(form("other", "b")) == [form("other", "b")]


def test_what_is_dissolved_before_its_turn_is_not_formed() -> None:
    turns = Turns()
    turns.dissolve(DissolveFormation("old", members("a")))
    turns.form(form("new", "a"))
    turns.dissolve(DissolveFormation("new", members("a")))
    assert turns.left("a", "old") == []
    assert turns.left("a", "new") == []


def test_a_load_waits_for_what_its_node_leaves_and_outlives_what_it_left() -> None:
    turns = Turns()
    turns.dissolve(DissolveFormation("old", members("a")))
    load = LoadStage("n-a", "a", "a:1", MODEL, LayerRange(0, 1), 1)
    assert turns.load(load) == []
    turns.dissolve(DissolveFormation("new", members("a")))
    assert turns.left("a", "old") == []
    assert turns.left("a", "new") == [load]


def test_a_load_that_waits_gives_way_to_the_next_of_its_node() -> None:
    turns = Turns()
    turns.dissolve(DissolveFormation("old", members("a")))
    older, newer = (LoadStage("n-a", "a", "a:1", MODEL, LayerRange(0, end), 1) for end in (1, 2))
    turns.load(older)
    assert turns.load(LoadStage("n-b", "b", "b:1", MODEL, LayerRange(0, 1), 1)) != []
    turns.load(newer)
    assert turns.left("a", "old") == [newer]
