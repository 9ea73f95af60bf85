from __future__ import annotations

import json
from dataclasses import replace

import pytest

from services.common.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from services.controller.core.cluster.goals import MAX_GOALS, Aim, Goal, Goals
from services.controller.core.model_facts import ModelFacts


def goal(name: str, digest: str = "d", aim: Aim | None = None) -> Goal:
    return Goal(ModelFacts(name, digest, 30, 1000, 4096, "{}"), aim or Aim())


A, B = goal("a"), goal("b", aim=Aim("goodput-per-cost", 2.0, 0.1, 3.0))


def names(goals: Goals) -> list[str]:
    return [one.model.model_id for one in goals.deployed]


def test_they_are_read_as_they_were_written() -> None:
    goals = Goals.of(A).adding(B)
    assert Goals.from_json(goals.to_json()) == goals


def test_sizes_that_do_not_follow_from_a_config_are_kept() -> None:
    whole = replace(A, facts=replace(A.facts, part_bytes=(5, *[7] * 30, 6)))
    goals = Goals.of(whole)
    assert Goals.from_json(goals.to_json()) == goals
    assert ModelFacts.from_json(whole.facts.to_json()) == whole.facts


def test_a_note_without_sizes_is_read() -> None:
    document = json.loads(Goals.of(A).to_json())
    del document["deployed"][0]["facts"]["part_bytes"]
    assert Goals.from_json(json.dumps(document)).find("a") == A


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"first": 1, "deployed": []}', Goals.of(A).to_json()[:-9]]
)
def test_what_nobody_wrote_is_no_note(text: str) -> None:
    with pytest.raises(DataLoss):
        Goals.from_json(text)
    document = json.loads(Goals.of(A).to_json())
    with pytest.raises(DataLoss):
        Goals.from_json(json.dumps(document | {"deployed": []}))


def test_what_the_settings_name_anew_takes_the_first_ones_place() -> None:
    goals = Goals.of(A).adding(B)
    assert goals.begun_with(A) == goals
    newer = goal("a", "d2")
    assert goals.begun_with(newer).models == {newer.model, B.model}
    assert names(goals.begun_with(goal("c"))) == ["c", "b"]
    cheaper = replace(A, aim=Aim("throughput-per-cost"))
    assert goals.begun_with(cheaper).find("a") == cheaper
    other_b = goal("b", "d2")
    assert goals.begun_with(other_b).deployed == (other_b,)


def test_a_first_one_that_was_undeployed_stays_so() -> None:
    goals = Goals.of(A).adding(B).removing("a")
    assert (names(goals), names(goals.begun_with(A))) == (["b"], ["b"])
    assert names(goals.begun_with(goal("a", "d2"))) == ["a", "b"]


def test_a_name_is_deployed_once_and_the_last_one_stays() -> None:
    goals = Goals.of(A)
    with pytest.raises(AlreadyExists, match="undeploy it to serve another version"):
        goals.adding(goal("a", "d2"))
    with pytest.raises(AlreadyExists):
        goals.adding(A)
    with pytest.raises(NotFound):
        goals.removing("b")
    with pytest.raises(FailedPrecondition, match="the last"):
        goals.removing("a")
    for number in range(MAX_GOALS - 1):
        goals = goals.adding(goal(f"m{number}"))
    with pytest.raises(ResourceExhausted, match=str(MAX_GOALS)):
        goals.adding(B)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective", "fame"),
        ("ttft_target_s", -1.0),
        ("tpot_target_s", float("nan")),
        ("weight", 0.0),
        ("weight", float("inf")),
    ],
)
def test_an_aim_that_cannot_be_names_its_field(field: str, value: float | str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Aim(**{field: value})  # type: ignore[arg-type]
    assert refused.value.field == field


def test_throughput_without_targets_is_plain() -> None:
    assert Aim(weight=2.0).is_plain
    assert not Aim(ttft_target_s=1.0).is_plain
    assert not Aim("throughput-per-cost").is_plain
