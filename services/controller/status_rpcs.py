"""What there is and how it fares, at the controller's gRPC edge."""

from __future__ import annotations

from collections import Counter
from typing import Any

from shuntserve.controller.v1 import controller_pb2 as pb

from services.controller import wire, wire_demand, wire_plans
from services.controller.core.cluster.goals import Goal
from services.controller.core.cluster.views import NodeView
from services.controller.core.ledger.population import Population
from services.controller.deployments import Deployments
from services.controller.generations import LedgerRuntime
from services.controller.pages import page
from services.controller.replans import Replans
from services.controller.runtime import ClusterRuntime


class StatusRpcs:
    """The RPC that tells the state of all, for the controller's service to inherit."""

    _runtime: ClusterRuntime
    _replans: Replans
    _generations: LedgerRuntime
    _deployments: Deployments
    _routers: Counter[str]

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        cluster, market = self._runtime.cluster, self._runtime.market
        population = self._generations.population()
        nodes = {node.node_id: node for node in cluster.view.nodes()}
        pipelines = {pipeline.pipeline_id: pipeline for pipeline in cluster.view.pipelines()}
        generations = {line.generation_id: line for line in population.open}
        shown = page(
            {"nodes": nodes, "pipelines": pipelines, "generations": generations},
            request.page_size,
            request.page_token,
        )
        answer = pb.GetStatusResponse(
            nodes=[
                wire.node_to(nodes[one], market.offer_id_of(one), self._declared(nodes[one]))
                for one in shown.ids["nodes"]
            ],
            pipelines=[wire.pipeline_to(pipelines[one]) for one in shown.ids["pipelines"]],
            generations=[wire.generation_to(generations[one]) for one in shown.ids["generations"]],
            next_page_token=shown.next_token,
        )
        if not request.page_token:
            answer.MergeFrom(self._status_of_the_whole(population))
        return answer

    def _status_of_the_whole(self, population: Population) -> pb.GetStatusResponse:
        """What only the first page has."""
        cluster, market = self._runtime.cluster, self._runtime.market
        deployments = [self._deployment(goal) for goal in cluster.goals.deployed]
        return pb.GetStatusResponse(
            router_ids=sorted(self._routers),
            model=deployments[0].model,
            newer_digest=deployments[0].newer_digest,
            deployments=deployments,
            finished_generations=population.finished,
            cancelled_generations=population.cancelled,
            faults=[wire.fault_to(fault, cluster.unix_offset_s) for fault in cluster.view.faults()],
            unusable=cluster.view.unusable(),
            plan=None if cluster.plan is None else wire_plans.plan_to(cluster.plan),
            offers=[wire.offer_to(offer, market) for offer in market.offers()],
            budget_per_hour=cluster.settings.budget_per_hour or None,
            strategy=cluster.settings.strategy.name,
            cost_per_hour=market.cost_per_hour(),
            on_demand_cost_per_hour=market.on_demand_cost_per_hour(),
            spares=[wire.spare_to(spare) for spare in cluster.view.spares()],
            spares_cost_per_hour=cluster.view.spares_cost_per_hour(),
            workloads=[
                wire_demand.workload_to(name, workload, self._replans.open(name))
                for name in (goal.model.model_id for goal in cluster.goals.deployed)
                if (workload := self._replans.workload(name)) is not None
            ],
        )

    def _deployment(self, goal: Goal) -> pb.DeploymentView:
        cluster = self._runtime.cluster
        ready = sum(route.model == goal.model for route in cluster.routes()[1])
        reasons = (one.unusable for one in cluster.view.models() if one.model == goal.model)
        return wire.deployment_to(
            goal, ready, next(reasons, ""), self._deployments.newer_digest(goal.model)
        )

    def _declared(self, node: NodeView) -> bool:
        market = self._runtime.market
        offer = market.offer(market.offer_id_of(node.node_id))
        return offer is not None and offer.declared
