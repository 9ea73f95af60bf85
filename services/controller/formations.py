"""Has nodes load, form, drain and leave in their turn, and tells the cluster what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable

from services.common.errors import ShuntError
from services.common.nodes import Member
from services.controller import metrics
from services.controller.core.cluster.actions import (
    CopyAhead,
    DepartFormation,
    DissolveFormation,
    DrainFormation,
    FormPipeline,
    Loaded,
    LoadStage,
)
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.turns import Turns
from services.controller.core.departure.move import Move
from services.controller.departures import Departures
from services.controller.engines import Engines
from services.controller.kv_sources import KvSources

_log = logging.getLogger(__name__)


FormationAction = (
    LoadStage | FormPipeline | DissolveFormation | CopyAhead | DepartFormation | DrainFormation
)


class Formations:
    """What becomes of nodes by calls to their engines, which run beside each other."""

    def __init__(
        self,
        cluster: Cluster,
        engines: Engines,
        departures: Departures,
        kv: KvSources,
        *,
        begin: Callable[[Coroutine[None, None, None], str | None], asyncio.Task[None]],
        stir: Callable[[], object],
        clock: Callable[[], float],
    ) -> None:
        """`begin` starts a call, which ends with the node that is named; `stir` has the core asked
        what comes of its answer."""
        self._cluster = cluster
        self._engines = engines
        self._kv = kv
        self._begin = begin
        self._stir = stir
        self._clock = clock
        self._turns = Turns()
        self._departures = departures
        self._departing: dict[str, asyncio.Task[None]] = {}
        """By formation."""

    def carry_out(self, action: FormationAction) -> None:
        """Begins it, or keeps it until its turn has come."""
        match action:
            case LoadStage():
                self._begin_all(self._turns.load(action))
            case FormPipeline():
                self._begin_all(self._turns.form(action))
            case DissolveFormation():
                self._turns.dissolve(action)
                self._kv.dissolved(action.formation_id)
                self._end_departure(action.formation_id)
                self._departures.forget(action.formation_id)
                for member in action.members:
                    self._begin(self._dissolve(action.formation_id, member), None)
            case DepartFormation():
                self._end_departure(action.formation_id)
                left = self._begin(self._depart(action), action.head.node_id)
                self._departing[action.formation_id] = left
            case CopyAhead():
                self._begin(self._copy_ahead(action), action.head.node_id)
            case DrainFormation():
                self._end_departure(action.formation_id)
                moves = self._departures.end(action.formation_id)
                self._begin(self._drain(action, moves), action.head.node_id)

    def look(self) -> None:
        """Something has happened to the cluster."""
        self._departures.forget_stayed()

    def _begin_all(self, actions: Iterable[FormPipeline | LoadStage]) -> None:
        for action in actions:
            if isinstance(action, LoadStage):
                self._begin(self._load(action), action.node_id)
            else:
                self._begin(self._form(action), None)

    async def _load(self, action: LoadStage) -> None:
        progress = metrics.LOADED.labels(action.node_id)
        try:
            holdings = await self._engines.hold(
                action.address, action.model, action.stages, lambda done, total: progress.set(done)
            )
        except ShuntError as error:
            self._cluster.load_failed(action, error.message, error.permanent, self._clock())
        else:
            self._cluster.load_done(action, Loaded.of(action, holdings), self._clock())
        finally:
            metrics.LOADED.remove(action.node_id)
        self._stir()

    async def _form(self, action: FormPipeline) -> None:
        if not self._cluster.view.pipeline_of(action.formation_id):
            return  # a member was lost meanwhile
        try:
            block_bytes = await self._engines.form(action)
        except ShuntError as error:
            self._cluster.form_failed(action.formation_id, error.message, self._clock())
        else:
            self._cluster.formed(action.formation_id, self._clock(), block_bytes)
        self._stir()

    async def _dissolve(self, formation_id: str, member: Member) -> None:
        try:
            await self._engines.dissolve(formation_id, member)
        except ShuntError as error:
            _log.info("member not told", extra={"node_id": member.node_id, "why": error.message})
        self._begin_all(self._turns.left(member.incarnation, formation_id))

    async def _copy_ahead(self, action: CopyAhead) -> None:
        try:
            await self._departures.copy_ahead(action)
        except ShuntError as error:
            _log.warning("blocks do not go ahead", extra={"why": error.message})
        finally:
            self._cluster.copied(action.formation_id, self._clock())
            self._stir()

    async def _depart(self, action: DepartFormation) -> None:
        await self._departures.leave(action)
        self._stir()

    def _end_departure(self, formation_id: str) -> None:
        """One that is told anew, or has no time left, or no formation any more."""
        departing = self._departing.pop(formation_id, None)
        if departing is not None:
            departing.cancel()

    async def _drain(self, action: DrainFormation, moves: Collection[Move]) -> None:
        kv, name = self._kv, action.formation_id
        replayed = kv.drains(name, action.members, moves)
        sealed = None
        try:
            sealed = await self._engines.drain(
                name,
                action.head,
                keep_kv=replayed is not None,
                keep_s=kv.lasts_s(name),
                replayed=replayed or (),
            )
        except ShuntError as error:
            self._cluster.drain_failed(action.formation_id, error.message, self._clock())
        else:
            self._cluster.drained(action.formation_id, sealed, self._clock())
        finally:
            kv.drained(name, sealed=sealed is not None)
        self._stir()
