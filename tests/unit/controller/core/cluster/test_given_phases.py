from dataclasses import replace

from services.common.phases import PipelinePhase
from services.controller.core.cluster.given_phases import in_phases
from services.controller.core.cluster.plan import Plan
from tests.unit.controller.small_cluster import BACK, FRONT, planned

PREFILL, DECODE, BOTH = PipelinePhase.PREFILL, PipelinePhase.DECODE, PipelinePhase.BOTH
PLAN = planned({"a": FRONT, "b": BACK}, {"c": FRONT, "d": BACK}, {"e": FRONT, "f": BACK}, number=3)


def phases(plan: Plan) -> list[PipelinePhase]:
    return [pipeline.phase for _, pipeline in plan.pipelines()]


def test_pipelines_have_them_in_their_order_and_those_behind_the_last_do_both() -> None:
    assert phases(in_phases(PLAN, (PREFILL, DECODE))) == [PREFILL, DECODE, BOTH]
    assert in_phases(PLAN, ()) == PLAN


def test_a_pipeline_that_runs_already_keeps_its_phase() -> None:
    """By its nodes and layers, whatever its name is now."""
    runs = next(p for _, p in PLAN.pipelines() if p.stages[0].node_id == "c")
    running = [replace(runs, pipeline_id="other", phase=PREFILL)]
    assert phases(in_phases(PLAN, (DECODE, DECODE), running)) == [DECODE, PREFILL, BOTH]
