from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.nodes import NodeShape
from services.controller.core.cluster.goals import Aim, Goal
from services.controller.core.cluster.question import Dividing, NodeAsked, Wishes
from services.controller.core.model_facts import ModelFacts
from simulator.processes.placement import next_division, small_judge
from simulator.processes.stages import LAYER_COUNT, VOCAB_SIZE

SHAPE = NodeShape(8 << 30, 1.0)
GOALS = tuple(
    Goal(ModelFacts(name, f"sha256:{name}", LAYER_COUNT, VOCAB_SIZE, 4096, "{}")) for name in "ab"
)
NODES = tuple(NodeAsked(f"n{number}", SHAPE) for number in range(2))


@pytest.mark.parametrize("tpot_target_s", [0.0, 1e-6])
def test_a_division_says_why_and_which_models_are_late(tpot_target_s: float) -> None:
    goals = tuple(replace(goal, aim=Aim(tpot_target_s=tpot_target_s)) for goal in GOALS)
    asked = Dividing(2, goals, NODES, (), (), Wishes(), (None, None))
    answer = next_division(small_judge(), asked)
    assert answer.plan is not None
    assert [len(one.pipelines) for one in answer.plan.deployments] == [1, 1]
    assert answer.plan.why.reasons == answer.reasons
    assert len(answer.reasons) == len(goals)
    late = [one.split()[:2] for one in answer.plan.why.late.split("; ") if one]
    assert late == ([["a:", "TPOT"], ["b:", "TPOT"]] if tpot_target_s else [])
