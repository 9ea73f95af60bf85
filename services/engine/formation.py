"""One process's part in a formation: batches in, through its layers, and on to the next stage.

Topology: head → stage 1 → … → last. Sampled ids come back through the chain. Every message names
the formation; whatever belongs to another one, or comes behind its end, is refused. A formation
ends once and whole, and then tells its owner which neighbour it lost, if any.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Sequence,
)
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

import grpc
from opentelemetry.trace import Span
from shuntserve.engine.v1 import engine_pb2

from services.common import telemetry
from services.common.errors import (
    AlreadyExists,
    ShuntError,
    StaleEpoch,
    Superseded,
    Unavailable,
)
from services.common.generation import ModelRef
from services.common.nodes import Member
from services.engine import wire
from services.engine.backend import Batch, Hidden, Sampled, StageBackend
from services.engine.compute import Compute
from services.engine.core.contents import Contents
from services.engine.core.given_up import GivenUp
from services.engine.core.incoming import NamedBlock
from services.engine.core.kv_layout import KvLayout
from services.engine.core.throttle import Throttle
from services.engine.downstream import Downstream
from services.engine.stage_cache import StageCache

_log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

QUEUE_LIMIT = 16
"""Steps that wait at a stage; more where there are more stages, for the head keeps one more than
there are in flight."""
CANCELLATION_S = 0.05
"""A killed neighbour's stream may look ended a moment before it looks cancelled."""


@dataclass(frozen=True, slots=True)
class FormationPlace:
    """A formation and this process's place in it."""

    formation_id: str
    pipeline_id: str
    model: ModelRef
    members: tuple[Member, ...]
    stage_index: int
    kv_blocks: int

    @property
    def is_head(self) -> bool:
        return self.stage_index == 0

    @property
    def is_last(self) -> bool:
        return self.stage_index == len(self.members) - 1


@dataclass(frozen=True, slots=True)
class _Work:
    step: int
    batch: Batch
    rows: Sequence[int] | Hidden
    traceparents: Sequence[str]
    message: engine_pb2.ForwardRequest | None
    """What goes on to the next stage; None when the head has yet to build it."""


class FormationPart:
    """Runs until `end`, which anything may call any number of times."""

    def __init__(
        self,
        membership: FormationPlace,
        backend: StageBackend,
        compute: Compute,
        *,
        cache: StageCache,
        throttle: Throttle,
        on_step: Callable[[float, float], None],
        connect: Callable[[str], grpc.aio.Channel],
        on_sampled: Callable[[FormationPart, int, Sequence[Sampled]], None],
        on_end: Callable[[FormationPart, tuple[str, ...]], None],
    ) -> None:
        """`cache` is that of the backend; `on_step` hears how long each step was computed, and how
        long it took."""
        self.membership = membership
        self.steps = 0
        self.alive = True
        self._backend = backend
        self._compute = compute
        self.cache = cache
        self._throttle = throttle
        self._on_step = on_step
        self._on_sampled = on_sampled
        self._on_end = on_end
        limit = max(QUEUE_LIMIT, len(membership.members) + 1)
        self._inbox: asyncio.Queue[_Work] = asyncio.Queue(limit)
        self._answers: asyncio.Queue[engine_pb2.ForwardResponse | None] = asyncio.Queue(limit)
        self._given_up = GivenUp()
        """Of what the head had asked to be done to blocks."""
        self._stands = asyncio.Event()
        self._attached = False
        self._tasks: list[asyncio.Task[None]] = []
        self._reading: asyncio.Task[None] | None = None
        self._downstream: Downstream | None = None
        if not membership.is_last:
            following = membership.members[membership.stage_index + 1]
            self._downstream = Downstream(following.address, self.id, connect)

    @property
    def id(self) -> str:
        return self.membership.formation_id

    def start(self) -> None:
        """Begins to work, and to connect the stages behind this one."""
        self._spawn(self._begin())

    async def stand(self) -> None:
        """Returns when this stage and all behind it stand; raises Unavailable if it ended."""
        await self._stands.wait()
        if not self.alive:
            raise Unavailable("the formation ended before it stood", field="formation_id")

    def submit(
        self, step: int, batch: Batch, token_ids: Sequence[int], traceparents: Sequence[str]
    ) -> None:
        """The head's next step; the answer comes through `on_sampled`."""
        self._inbox.put_nowait(_Work(step, batch, token_ids, traceparents, None))

    @property
    def layers(self) -> range:
        """Of this stage."""
        return self._backend.facts.layers

    @property
    def contents(self) -> Contents:
        """What is known of its cache."""
        return self.cache.contents

    @property
    def kv_layout(self) -> KvLayout:
        """How `export_blocks` and `import_blocks` have blocks, and what they were computed with at
        this stage and those before it."""
        return replace(self._backend.kv_layout, numerics_class=self.cache.numerics_class)

    @property
    def kv_block_bytes(self) -> int:
        """Of a full block of all the formation's layers; 0: its blocks go nowhere."""
        return self.membership.members[-1].layers.end * self.kv_layout.layer_bytes

    async def export_blocks(self, number: int, blocks: Sequence[int]) -> list[bytes]:
        """What blocks hold, between steps, as the head asked by this number. Raises StaleEpoch when
        the formation has ended, Superseded for what was given up."""
        export = self._living(number, self._backend.export_blocks)
        return await self._compute.run(export, blocks)

    async def import_blocks(
        self, number: int, blocks: Sequence[int], data: Sequence[bytes | memoryview]
    ) -> None:
        """Has blocks hold this, between steps; raises what `export_blocks` raises."""
        self.contents.written(blocks)
        await self._compute.run(self._living(number, self._backend.import_blocks), blocks, data)

    def keeps(self, number: int, blocks: Iterable[NamedBlock]) -> None:
        """They hold what goes by these names, as the head said by this number. What it has given up
        counts for nothing: it may have given them to others since."""
        if self.alive and number not in self._given_up:
            self.contents.note(blocks)

    async def give_up(self, number: int) -> None:
        """Returns when no block is read or written any more for what the head asked by this number,
        be it here already or still on its way."""
        self._given_up.add(number)
        await self._compute.run(lambda: None)  # behind what was handed in before

    def _living(self, number: int, function: Callable[P, R]) -> Callable[P, R]:
        """In the compute thread: what waited there when the formation ended, or when it was given
        up, must not run."""

        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            if not self.alive:
                raise StaleEpoch("the formation was dissolved")
            if number in self._given_up:
                raise Superseded("the head has given it up", field="number")
            return function(*args, **kwargs)

        return run

    async def serve(
        self, requests: AsyncIterator[engine_pb2.ForwardRequest]
    ) -> AsyncGenerator[engine_pb2.ForwardResponse, None]:
        """The stream from the stage before, behind its first message."""
        if self._attached or self.membership.is_head:
            raise AlreadyExists("the formation has its upstream", field="formation_id")
        self._attached = True
        try:
            await self.stand()
            yield engine_pb2.ForwardResponse(formation_id=self.id)
            self._spawn(self._read_upstream(requests))
            while (answer := await self._answers.get()) is not None and self.alive:
                yield answer
            raise StaleEpoch("the formation was dissolved", field="formation_id")
        finally:
            self.upstream_gone()

    def upstream_gone(self) -> None:
        """The stream from the stage before broke; if the formation lives, that stage is lost."""
        if self._attached:
            self.end(self.membership.members[self.membership.stage_index - 1].node_id)

    def end(self, *lost_node_ids: str) -> None:
        """Nothing more is accepted, computed or sent; neighbours are told."""
        if not self.alive:
            return
        self.alive = False
        self._stands.set()
        if not self._answers.full():
            self._answers.put_nowait(None)
        current = asyncio.current_task()
        for task in self._tasks:
            if task not in (current, self._reading):
                task.cancel()
        if self._downstream is not None:
            farewell = self._downstream.farewell(self._reading)
            self._tasks.append(asyncio.create_task(farewell))
        self._on_end(self, lost_node_ids)

    async def closed(self) -> None:
        """Ends, and waits for the farewell to the next stage."""
        self.end()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._watched(coroutine))
        self._tasks.append(task)
        return task

    async def _watched(self, coroutine: Coroutine[object, object, None]) -> None:
        """A fault of any part is the end of the whole."""
        try:
            await coroutine
        except Unavailable as error:
            members, index = self.membership.members, self.membership.stage_index
            self._log_end("next stage lost", error)
            self.end(members[index + 1].node_id)
        except ShuntError as error:
            self._log_end("formation ends", error)
            self.end()
        except Exception:
            _log.exception("formation ends", extra={"formation_id": self.id})
            self.end()

    def _log_end(self, what: str, error: ShuntError) -> None:
        if self.alive:
            _log.warning(what, extra={"formation_id": self.id, "why": error.message})

    async def _begin(self) -> None:
        try:
            await self._compute.run(self.cache.begin)
        except Exception:
            self.cache.contents = Contents()
            raise
        self._spawn(self._work())
        if self._downstream is not None:
            await self._downstream.stand()
            self._reading = self._spawn(self._read_downstream(self._downstream))
        self._stands.set()

    async def _work(self) -> None:
        while True:
            work = await self._inbox.get()
            self.contents.stepped(work.batch.steps)
            spans = self._begin_spans(work)
            began_s = time.monotonic()
            try:
                computing = self._compute.run(self._forward, work.batch, work.rows)
                message = work.message
                if message is None and self._downstream is not None:
                    message = wire.batch_to(self.id, work.step, work.batch, work.traceparents)
                output, computed_s = await computing
                await self._rest(began_s, computed_s)
            finally:
                for span in spans:
                    span.end()
            self.steps += 1
            if isinstance(output, Hidden):
                assert message is not None
                assert self._downstream is not None
                wire.put_hidden(message, output)
                await self._downstream.send(message)
            elif self.membership.is_head:
                self._on_sampled(self, work.step, output)
            else:
                await self._answers.put(wire.sampled_to(self.id, work.step, output))

    def _forward(
        self, batch: Batch, rows: Sequence[int] | Hidden
    ) -> tuple[Hidden | tuple[Sampled, ...], float]:
        """What the step comes to, and its time on a core. In the compute thread: what waited there
        when the formation ended must not run."""
        if not self.alive:
            raise StaleEpoch("the formation was dissolved")
        began_s = self._backend.computed_s
        output = self._backend.forward(batch, rows)
        return output, self._backend.computed_s - began_s

    async def _rest(self, began_s: float, computed_s: float) -> None:
        """Behind a step, so that it takes as long as the node is slow; no thread waits for it."""
        rest_s = self._throttle.rest_s(began_s, computed_s, time.monotonic())
        if rest_s:
            await asyncio.sleep(rest_s)
        ended_s = time.monotonic()
        self._throttle.done(ended_s)
        self._on_step(computed_s, ended_s - began_s)

    async def _read_upstream(self, requests: AsyncIterator[engine_pb2.ForwardRequest]) -> None:
        async for message in requests:
            self._check(message.formation_id)
            batch, hidden = wire.batch_from(message)
            work = _Work(message.step, batch, hidden, tuple(message.traceparents), message)
            await self._inbox.put(work)
        await asyncio.sleep(CANCELLATION_S)
        self.end()

    async def _read_downstream(self, downstream: Downstream) -> None:
        async for message in downstream.responses():
            self._check(message.formation_id)
            if not self.alive:
                continue
            if self.membership.is_head:
                self._on_sampled(self, message.step, wire.sampled_from(message))
            else:
                await self._answers.put(message)

    def _check(self, formation_id: str) -> None:
        if formation_id != self.id:
            raise StaleEpoch("a message of another formation", field="formation_id")

    def _begin_spans(self, work: _Work) -> list[Span]:
        layers = self.membership.members[self.membership.stage_index].layers
        return [
            telemetry.tracer.start_span(
                "engine.stage",
                context=telemetry.parent_of(parent),
                attributes={
                    "shunt.stage": self.membership.stage_index,
                    "shunt.layers": f"[{layers.start}, {layers.end})",
                    "shunt.rows": work.batch.rows,
                },
            )
            for parent in work.traceparents
        ]
