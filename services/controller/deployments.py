"""Deploys models and undeploys them: facts from the store, a plan from placement, then a note."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from services.common.errors import NotFound, ShuntError, Unavailable
from services.common.generation import ModelRef
from services.common.settings import TlsSettings
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.goals import Aim, Goal, Goals
from services.controller.core.cluster.plan import Plan
from services.controller.core.model_facts import ModelFacts
from services.controller.event_log import EventLog
from services.controller.journal.journal import Journal, Saved
from services.controller.model_store import facts_now, newest_digest
from services.controller.planning import Planning
from services.controller.runtime import ClusterRuntime

_log = logging.getLogger(__name__)

DEPLOYMENTS = "deployments"
"""The note that holds the goals."""
STORE_CHECK_S = 5.0


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """How to ask the tensor store."""

    address: str
    timeout_s: float
    tls: TlsSettings


class Deployments:
    """One change at a time. A model counts as deployed once a plan that has pipelines for it and
    for all others is found, and the wish is durable; then the plan is adopted."""

    def __init__(
        self,
        store: StoreAccess,
        *,
        runtime: ClusterRuntime,
        planning: Planning,
        journal: Journal,
        events: EventLog,
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._planning = planning
        self._journal = journal
        self._events = events
        self._changing = asyncio.Lock()
        self._newer: dict[ModelRef, str] = {}

    @property
    def goals(self) -> Goals:
        """What is deployed."""
        return self._cluster.goals

    @property
    def _cluster(self) -> Cluster:
        return self._runtime.cluster

    def vocab_size(self, model: ModelRef | None) -> int | None:
        """Of a version that is deployed; None for any other."""
        goal = self.goals.find(model.model_id) if model is not None else None
        known = goal is not None and goal.model == model
        return goal.facts.vocab_size if known and goal is not None else None

    def newer_digest(self, model: ModelRef) -> str:
        """Of the version that the store has under this name since; empty while it is the same."""
        return self._newer.get(model, "")

    async def write(self, goals: Goals) -> None:
        """Makes them durable."""
        await self._journal.write((Saved(DEPLOYMENTS, goals.to_json()),), fsync=True)

    async def deploy(self, model: ModelRef, aim: Aim) -> tuple[int, ModelRef]:
        """Number of the plan that has pipelines for it, and the version. Raises AlreadyExists,
        NotFound for what the store does not have, FailedPrecondition where it does not fit, naming
        what is missing, and Unavailable while there is nobody to ask or no plan yet."""
        async with self._changing:
            cluster = self._cluster
            if cluster.plan is None:
                raise Unavailable("the mesh has no plan yet: its nodes are starting")
            if cluster.view.asleep():
                raise Unavailable("the mesh sleeps, and has no node: ask its model for something")
            facts = await self._facts(model)
            goals = self.goals.adding(Goal(facts, aim))
            plan = await self._planning.plan(cluster.view.plan_question(goals))
            number = await self._change(goals, lambda: plan)
            return number, facts.ref

    async def undeploy(self, model_id: str) -> int:
        """Number of the plan without it; 0 while there is none. Raises NotFound, and
        FailedPrecondition for the last one."""
        async with self._changing:
            goals, cluster = self.goals.removing(model_id), self._cluster
            if cluster.plan is None:
                return await self._change(goals, lambda: None)
            try:
                plan = await self._planning.plan(cluster.view.plan_question(goals))
            except ShuntError as error:
                _log.warning("others do not get the nodes yet", extra={"why": error.message})
                return await self._change(goals, lambda: _without(cluster.plan, model_id))
            return await self._change(goals, lambda: plan)

    async def _change(self, goals: Goals, plan: Callable[[], Plan | None]) -> int:
        """The plan is made for what is there once the wish is durable."""
        await self.write(goals)
        made = plan()
        if made is not None:
            made = replace(made, number=self._cluster.view.next_plan_number)
        await self._runtime.aim_at(goals, made)
        return made.number if made is not None else 0

    async def _facts(self, model: ModelRef) -> ModelFacts:
        store = self._store
        try:
            return await facts_now(
                store.address,
                model.model_id,
                digest=model.digest,
                timeout_s=store.timeout_s,
                tls=store.tls,
            )
        except NotFound:
            version = f" in version {model.digest[:12]}" if model.digest else ""
            raise NotFound(f"the store has no {model.model_id}{version}", field="model") from None

    async def watch_store(self) -> None:
        """Tells when somebody imports another version; what runs stays what it is."""
        while True:
            await asyncio.sleep(STORE_CHECK_S)
            for goal in self.goals.deployed:
                await self._look(goal.model)
            self._newer = {m: d for m, d in self._newer.items() if m in self.goals.models}

    async def _look(self, served: ModelRef) -> None:
        store = self._store
        try:
            found = await newest_digest(
                store.address, served.model_id, timeout_s=store.timeout_s, tls=store.tls
            )
        except ShuntError:
            return  # a store that is away, or has the name no more, has nothing newer
        newer = "" if found == served.digest else found
        if newer and newer != self._newer.get(served):
            attributes = {"model": served.model_id, "served": served.digest, "stored": newer}
            self._events.add("model_newer_in_store", attributes=attributes)
        self._newer[served] = newer


def _without(plan: Plan | None, model_id: str) -> Plan | None:
    """What is left of the plan; None where that is nothing."""
    if plan is None:
        return None
    rest = tuple(one for one in plan.deployments if one.model.model_id != model_id)
    return replace(plan, deployments=rest) if rest else None
