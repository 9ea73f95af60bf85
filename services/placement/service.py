"""The gRPC edge: parse, search in a worker thread until done or out of time, build the reply."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from shuntserve.placement.v1 import placement_pb2 as pb
from shuntserve.placement.v1 import placement_pb2_grpc

from services.common.errors import DeadlineExceeded, InvalidArgument
from services.placement import wire, wire_replan
from services.placement.estimate.calibration import load_calibration
from services.placement.estimate.catalogue import HardwareCatalogue
from services.placement.estimate.cluster import PlacedPipeline
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import estimate_plan
from services.placement.estimate.explain import explain_pipeline
from services.placement.replan.change import Change
from services.placement.replan.moves import LOAD_BYTES_PER_S, node_moves
from services.placement.replan.next_plan import replan
from services.placement.replan.redivision import redivide
from services.placement.replan.what_if import what_ifs
from services.placement.search.budget import SearchBudget
from services.placement.search.division import divide
from services.placement.search.problem import Planner, Problem, Solution
from services.placement.search.registry import planner
from services.placement.search.score import goodput
from services.placement.search.shares import Limits
from services.placement.search.telling import lacks, shape
from services.placement.search.transport import sides_of
from services.placement.settings import PlacementSettings
from services.placement.stopwatch import Stopwatch

_log = logging.getLogger(__name__)
ANSWER_SHARE = 0.4  # of the deadline, kept for finishing what was found
Reply = TypeVar("Reply")
Request = pb.PlanRequest | pb.EstimateRequest | pb.ReplanRequest | pb.ExplainRequest
Context = grpc.aio.ServicerContext[Any, Any]


class PlacementServicer(placement_pb2_grpc.PlacementServiceServicer):
    """PlacementService. A search runs in one of `max_searches` threads and polls its deadline."""

    def __init__(self, settings: PlacementSettings, catalogue: HardwareCatalogue) -> None:
        self._settings, self._catalogue = settings, catalogue
        self._threads = ThreadPoolExecutor(settings.max_searches, "search")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def Plan(self, request: pb.PlanRequest, context: Context) -> pb.PlanResponse:
        return await self._search(context, lambda budget: self._plan(request, budget))

    async def PlanDeployments(
        self, request: pb.PlanDeploymentsRequest, context: Context
    ) -> pb.PlanDeploymentsResponse:
        return await self._search(context, lambda budget: self._plan_deployments(request, budget))

    async def Estimate(self, request: pb.EstimateRequest, context: Context) -> pb.EstimateResponse:
        return await self._search(context, lambda _: self._estimate(request))

    async def Replan(self, request: pb.ReplanRequest, context: Context) -> pb.ReplanResponse:
        return await self._search(context, lambda budget: self._replan(request, budget))

    async def ReplanDeployments(
        self, request: pb.ReplanDeploymentsRequest, context: Context
    ) -> pb.ReplanDeploymentsResponse:
        return await self._search(context, lambda budget: self._replan_deployments(request, budget))

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        return await self._search(context, lambda _: self._explain(request))

    async def WhatIf(self, request: pb.WhatIfRequest, context: Context) -> pb.WhatIfResponse:
        return await self._search(context, lambda budget: self._what_if(request, budget))

    async def _search(self, context: Context, work: Callable[[SearchBudget], Reply]) -> Reply:
        """Runs `work` in a thread; it is told to stop before the deadline and on cancellation."""
        limit_s = self._settings.max_search_s
        remaining_s = context.time_remaining()
        if remaining_s is not None:
            margin_s = max(self._settings.deadline_margin_s, remaining_s * ANSWER_SHARE)
            limit_s = min(limit_s, remaining_s - margin_s)
        if limit_s <= 0:
            raise DeadlineExceeded("no time was left to search")
        budget = Stopwatch(limit_s)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, budget)
        finally:
            budget.cancel()

    def _costs(self, request: Request) -> Costs:
        return Costs(
            wire.model_from(request.model),
            wire.workload_from(request.workload),
            load_calibration(wire.calibration_from(request.calibration)),
            self._catalogue,
        )

    def _plan(self, request: pb.PlanRequest, budget: SearchBudget) -> pb.PlanResponse:
        begin = time.monotonic()
        costs = self._costs(request)
        problem = Problem(
            costs=costs,
            nodes=wire.nodes_from(self._catalogue, request.nodes),
            objective=wire.objective_from(request.objective),
            pipeline_count=request.pipeline_count,
            seed=request.seed,
            runners_up=request.runners_up,
        )
        name = wire.planner_from(request.planner)
        solution = planner(name)(problem, budget)
        answer = _answer(name, problem, solution)
        answer.solve_time_s = time.monotonic() - begin
        return answer

    def _plan_deployments(
        self, request: pb.PlanDeploymentsRequest, budget: SearchBudget
    ) -> pb.PlanDeploymentsResponse:
        begin = time.monotonic()
        nodes = wire.nodes_from(self._catalogue, request.nodes)
        calibration = load_calibration(wire.calibration_from(request.calibration))
        shares = wire.shares_from(
            request.deployments, nodes, self._catalogue, calibration, request.seed
        )
        found = divide(nodes, shares, budget)
        names = [wire.planner_from(one.planner) for one in request.deployments]
        plans = zip(names, found.problems, found.solutions, strict=True)
        return pb.PlanDeploymentsResponse(
            plans=[_answer(*plan) for plan in plans],
            solve_time_s=time.monotonic() - begin,
            complete=found.complete,
            reasons=found.reasons,
        )

    def _estimate(self, request: pb.EstimateRequest) -> pb.EstimateResponse:
        problem, pipelines = self._given(request)
        total, each = estimate_plan(problem.costs, pipelines)
        expected = goodput(problem, pipelines, [e.throughput_rps for e in each])
        known = {node.node_id: node for node in problem.nodes}
        resident = wire_replan.resident_from(request.resident, known)
        moves = node_moves(problem.costs.model, pipelines, resident, LOAD_BYTES_PER_S)
        sides = sides_of(problem.costs, pipelines, [e.throughput_rps for e in each])
        return pb.EstimateResponse(
            pipeline_estimates=[wire.pipeline_estimate_message(e) for e in each],
            estimate=wire.plan_estimate_message(total, expected),
            node_moves=[wire_replan.node_move_message(move) for move in moves],
            flows=wire_replan.flow_messages(sides),
        )

    def _explain(self, request: pb.ExplainRequest) -> pb.ExplainResponse:
        problem, pipelines = self._given(request)
        explained = [explain_pipeline(problem.costs, pipeline) for pipeline in pipelines]
        return pb.ExplainResponse(
            pipelines=[wire_replan.explanation_message(one) for one in explained]
        )

    def _given(
        self, request: pb.EstimateRequest | pb.ExplainRequest
    ) -> tuple[Problem, tuple[PlacedPipeline, ...]]:
        nodes = wire.nodes_from(self._catalogue, request.nodes)
        pipelines = wire.pipelines_from(nodes, request.pipelines)
        if not pipelines:
            raise InvalidArgument("at least one pipeline is needed", field="pipelines")
        return Problem(self._costs(request), nodes), pipelines

    def _replan(self, request: pb.ReplanRequest, budget: SearchBudget) -> pb.ReplanResponse:
        begin = time.monotonic()
        problem, change, search = self._question(request)
        found = replan(problem, change, search, budget)
        total, each = estimate_plan(problem.costs, found.pipelines)
        running = self._total(problem, found.left)
        expected = goodput(problem, found.pipelines, [e.throughput_rps for e in each])
        return pb.ReplanResponse(
            pipelines=[wire.pipeline_message(p) for p in found.pipelines],
            pipeline_estimates=[wire.pipeline_estimate_message(e) for e in each],
            estimate=wire.plan_estimate_message(total, expected),
            running_estimate=running,
            change=found.change,
            node_moves=[wire_replan.node_move_message(move) for move in found.node_moves],
            generation_moves=[
                wire_replan.generation_move_message(move) for move in found.generation_moves
            ],
            time_to_serve_s=found.time_to_serve_s,
            gained_requests=found.gained_requests,
            lost_requests=found.lost_requests,
            reasons=found.reasons,
            solve_time_s=time.monotonic() - begin,
            gain=found.gain,
            alternatives=[
                pb.RejectedPlan(plan=one.plan, lacks=one.lacks) for one in found.alternatives
            ],
            late=found.late,
        )

    def _replan_deployments(
        self, request: pb.ReplanDeploymentsRequest, budget: SearchBudget
    ) -> pb.ReplanDeploymentsResponse:
        begin = time.monotonic()
        nodes = wire.nodes_from(self._catalogue, request.nodes)
        calibration = load_calibration(wire.calibration_from(request.calibration))
        shares = [
            wire.share_from(one, index, self._catalogue, calibration, request.seed)
            for index, one in enumerate(request.deployments)
        ]
        limits = Limits(request.budget_per_hour, request.nodes_min, request.nodes_max)
        changes = wire_replan.changes_from(request, nodes)
        found = redivide(nodes, shares, changes, limits, budget)
        names = [wire.planner_from(one.planner) for one in request.deployments]
        plans = zip(names, found.problems, found.plans, strict=True)
        return pb.ReplanDeploymentsResponse(
            plans=[
                _answer(
                    name, problem, Solution(plan.pipelines, reasons=plan.reasons, late=plan.late)
                )
                for name, problem, plan in plans
            ],
            change=found.change,
            gain=found.gain,
            node_moves=[
                wire_replan.node_move_message(move)
                for plan in found.plans
                for move in plan.node_moves
            ],
            time_to_serve_s=found.time_to_serve_s,
            reasons=found.reasons,
            alternatives=[
                pb.RejectedPlan(plan=one.plan, lacks=one.lacks) for one in found.alternatives
            ],
            solve_time_s=time.monotonic() - begin,
            complete=found.complete,
        )

    def _what_if(self, request: pb.WhatIfRequest, budget: SearchBudget) -> pb.WhatIfResponse:
        problem, change, search = self._question(request.question)
        groups = wire_replan.groups_from(self._catalogue, request.groups)
        found = what_ifs(problem, change, groups, search, budget)
        return pb.WhatIfResponse(
            answers=[pb.WhatIfAnswer(change=a.change, answer=a.answer) for a in found.answers],
            complete=found.complete,
        )

    def _question(self, request: pb.ReplanRequest) -> tuple[Problem, Change, Planner]:
        problem = Problem(
            costs=self._costs(request),
            nodes=wire.nodes_from(self._catalogue, request.nodes),
            objective=wire.objective_from(request.objective),
        )
        change = wire_replan.change_from(request, problem.nodes)
        return problem, change, planner(wire.planner_from(request.planner))

    def _total(self, problem: Problem, pipelines: tuple[PlacedPipeline, ...]) -> pb.PlanEstimate:
        if not pipelines:
            return pb.PlanEstimate()
        total, each = estimate_plan(problem.costs, pipelines)
        expected = goodput(problem, pipelines, [e.throughput_rps for e in each])
        return wire.plan_estimate_message(total, expected)


def _answer(name: str, problem: Problem, solution: Solution) -> pb.PlanResponse:
    """A planner's answer, estimated."""
    if not solution.pipelines:
        return pb.PlanResponse(planner=wire.planner_number(name), reasons=solution.reasons)
    total, each = estimate_plan(problem.costs, solution.pipelines)
    expected = goodput(problem, solution.pipelines, [e.throughput_rps for e in each])
    return pb.PlanResponse(
        planner=wire.planner_number(name),
        pipelines=[wire.pipeline_message(p) for p in solution.pipelines],
        pipeline_estimates=[wire.pipeline_estimate_message(e) for e in each],
        estimate=wire.plan_estimate_message(total, expected),
        upper_bound_rps=solution.upper_bound_rps,
        complete=solution.complete,
        reasons=solution.reasons,
        alternatives=[
            pb.RejectedPlan(plan=shape(one), lacks=lacks(problem, one, solution.pipelines))
            for one in solution.runners_up
        ],
        late=solution.late,
    )
