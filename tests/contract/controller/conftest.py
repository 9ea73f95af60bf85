"""A real controller over real gRPC; engines, placement and provider are played by the test."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc
from shuntserve.placement.v1 import placement_pb2, placement_pb2_grpc

from services.common import channels
from services.common.errors import FailedPrecondition
from services.common.nodes import NodeFacts, NodeShape
from services.common.notices import NoticeKind
from services.common.roles import Role
from services.controller.assembly import AssembledController
from services.controller.core.cluster.market import (
    Capabilities,
    LaunchFailed,
    NodeGone,
    NodeNotice,
    Offer,
    ProviderEvent,
)
from services.controller.core.model_facts import ModelFacts
from services.controller.journal.place import SqlitePlace
from services.controller.leading import open_postgres, open_sqlite
from services.controller.settings import ControllerSettings
from tests.contract.controller.controller_process import environment, first, second

__all__ = ["environment", "first", "second"]

LAYERS = 6
VOCABULARY = 1000
FACTS = ModelFacts("tiny", "ab" * 32, LAYERS, VOCABULARY, 4096, "{}")
CALL_S = 60.0


class FakeEngine(engine_pb2_grpc.EngineServiceServicer):
    """An engine process that computes nothing: it registers, beats and does as it is told."""

    def __init__(
        self, node_id: str, shape: NodeShape, controller: Callable[[], str], incarnation: str
    ) -> None:
        self.node_id, self.shape = node_id, shape
        self.incarnation = incarnation
        self.controller = controller
        self.calls: list[tuple[str, Any]] = []
        self.formation_id = ""
        self.sampled = 0
        self.numerics_class = "exact"
        self.load_fails = 0
        self.refusal = ""
        """Why it never loads anything."""
        self.astray = 0
        """Holds that are answered for another version of the model."""
        self.crowded = 0
        self.room = 9
        """Holds that find no room yet."""
        self.form_fails = 0
        self.hold_load: asyncio.Event | None = None
        self.dissolve_s = 0.0
        self.dissolving = False
        self.on_drain: Callable[[], Any] | None = None
        self.keeps_kv: list[bool] = []
        """Whether it was to, at each drain."""
        self.cancelled = asyncio.Event()
        self.deaf = False
        """Cancels do not reach it."""
        self.beating = asyncio.Event()
        self.beating.set()
        self.interval_s = 0.0
        self.patience_s = CALL_S
        """A controller that says nothing for so long is left."""

    @asynccontextmanager
    async def living(self) -> AsyncIterator[FakeEngine]:
        server = grpc.aio.server(options=channels.options(64 << 20))
        engine_pb2_grpc.add_EngineServiceServicer_to_server(self, server)
        port = server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await server.start()
        life = asyncio.create_task(self._live())
        try:
            yield self
        finally:
            life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await life
            await server.stop(0)

    def facts(self) -> pb.RegisterRequest:
        return pb.RegisterRequest(
            node_id=self.node_id,
            incarnation=self.incarnation,
            address=self.address,
            pid=4242,
            memory_bytes=self.shape.memory_bytes,
            relative_speed=self.shape.relative_speed,
            device_type="cpu",
            metrics_port=9100,
        )

    async def _live(self) -> None:
        while True:
            try:
                async with channels.open_channel(self.controller(), Role.CONTROLLER) as channel:
                    await self._talk(controller_pb2_grpc.ControllerServiceStub(channel))
            except (grpc.RpcError, asyncio.InvalidStateError, TimeoutError):
                await asyncio.sleep(0.05)

    async def _talk(self, stub: Any) -> None:
        reply = await stub.Register(self.facts(), timeout=self.patience_s)
        self.interval_s = reply.heartbeat_interval_s
        call = stub.Heartbeat()
        try:
            while True:
                await self.beating.wait()
                await call.write(
                    pb.HeartbeatRequest(
                        node_id=self.node_id,
                        incarnation=self.incarnation,
                        formation_id=self.formation_id,
                        sampled_tokens=self.sampled,
                    )
                )
                async with asyncio.timeout(self.patience_s):
                    answer = await call.read()
                if answer is grpc.aio.EOF or answer.register_again:
                    return
                self.sampled += 1
                await asyncio.sleep(self.interval_s)
        finally:
            call.cancel()

    async def Hold(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for stage in request.stages:
            self.calls.append(("hold", (stage.layers.start, stage.layers.end)))
        if self.refusal:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refusal)
        if self.load_fails:
            self.load_fails -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no store")
        yield engine_pb2.HoldResponse(loaded_bytes=1, total_bytes=2)
        if self.hold_load is not None:
            await self.hold_load.wait()
        holdings = []
        for place, stage in enumerate(request.stages):
            holding = engine_pb2.StageHolding(model=request.model, stage=stage)
            if self.astray:
                self.astray -= 1
                holding.model.digest = "another"
            if self.crowded or place >= self.room:
                self.crowded = max(0, self.crowded - 1)
                holding.cached = True
            else:
                holding.held, holding.kv_blocks = True, 64
                holding.numerics_class = self.numerics_class
            holdings.append(holding)
        yield engine_pb2.HoldResponse(loaded_bytes=2, total_bytes=2, done=True, stages=holdings)

    async def Form(self, request: Any, context: Any) -> Any:
        self.calls.append(("form" if not self.dissolving else "overlap", request.formation_id))
        if self.form_fails:
            self.form_fails -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        self.formation_id = request.formation_id
        return engine_pb2.FormResponse(kv_block_bytes=4096)

    async def Dissolve(self, request: Any, context: Any) -> Any:
        self.calls.append(("dissolve", request.formation_id))
        self.dissolving = True
        await asyncio.sleep(self.dissolve_s)
        self.dissolving = False
        if self.formation_id == request.formation_id:
            self.formation_id = ""
        return engine_pb2.DissolveResponse()

    async def Drain(self, request: Any, context: Any) -> Any:
        self.calls.append(("drain", request.formation_id))
        self.keeps_kv.append(request.keep_kv)
        if self.on_drain is not None:
            await self.on_drain()
        return engine_pb2.DrainResponse(sealed_generations=1)

    async def Cancel(self, request: Any, context: Any) -> Any:
        if self.deaf:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "deaf")
        self.calls.append(("cancel", request.generation_id))
        self.cancelled.set()
        return engine_pb2.CancelResponse()


def layers_of(model: placement_pb2.ModelSpec) -> int:
    """As its config says."""
    found: int = json.loads(model.config_json).get("layers", LAYERS)
    return found


class FakePlacement(placement_pb2_grpc.PlacementServiceServicer):
    """Splits the layers of each pair of nodes in proportion to speed."""

    def __init__(self) -> None:
        self.fails = 0
        self.bad = False
        self.lacks_estimate = False
        self.full = ""
        """Why no more models fit."""
        self.requests: list[Any] = []
        self.reasons: tuple[str, ...] = ()
        self.runners_up: tuple[tuple[str, str], ...] = ()
        self.answers: tuple[tuple[str, str], ...] | None = None
        """To a what-if; None refuses it."""
        self.what_ifs: list[Any] = []

    async def WhatIf(self, request: Any, context: Any) -> Any:
        if self.answers is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        self.what_ifs.append(request)
        answers = [placement_pb2.WhatIfAnswer(change=c, answer=a) for c, a in self.answers or ()]
        return placement_pb2.WhatIfResponse(answers=answers)

    async def PlanDeployments(self, request: Any, context: Any) -> Any:
        """As many nodes for each; of layers as many as its config says."""
        self.requests.append(request)
        if self.fails:
            self.fails -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        if self.full:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.full)
        nodes = sorted(request.nodes, key=lambda node: node.node_id)
        size = len(nodes) // len(request.deployments)
        plans = []
        for index, deployment in enumerate(request.deployments):
            members = nodes[index * size : (index + 1) * size]
            layers, there = layers_of(deployment.model), {node.node_id for node in members}
            kept = [p for p in deployment.running if {s.node_id for s in p.stages} == there]
            ends = [layers * place // size for place in range(size + 1)]
            stages = [
                placement_pb2.Stage(
                    node_id=node.node_id,
                    layers=common_pb2.LayerRange(start=start, end=end),
                    tp_degree=1,
                )
                for node, start, end in zip(members, ends, ends[1:], strict=False)
            ]
            plans.append(
                placement_pb2.PlanResponse(
                    pipelines=kept or [placement_pb2.Pipeline(stages=stages)],
                    pipeline_estimates=[
                        placement_pb2.PipelineEstimate(throughput_tokens_per_s=100.0)
                    ],
                )
            )
        return placement_pb2.PlanDeploymentsResponse(plans=plans)

    async def Plan(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.fails:
            self.fails -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        reply = placement_pb2.PlanResponse(
            reasons=self.reasons,
            alternatives=[placement_pb2.RejectedPlan(plan=p, lacks=r) for p, r in self.runners_up],
        )
        nodes = sorted(request.nodes, key=lambda node: node.node_id)
        size, layers = len(nodes) // request.pipeline_count, layers_of(request.model)
        for first_of in range(0, len(nodes), size):
            members = nodes[first_of : first_of + size]
            total = sum(node.relative_speed for node in members)
            ends = [0]
            for node in members:
                share = round(layers * node.relative_speed / total)
                ends.append(layers if node is members[-1] else ends[-1] + share)
            if self.bad:
                self.bad = False
                ends[-1] = layers - 1
            reply.pipelines.append(
                placement_pb2.Pipeline(
                    stages=[
                        placement_pb2.Stage(
                            node_id=node.node_id,
                            layers=common_pb2.LayerRange(start=start, end=end),
                            tp_degree=1,
                        )
                        for node, start, end in zip(members, ends, ends[1:], strict=False)
                    ]
                )
            )
            reply.pipeline_estimates.append(
                placement_pb2.PipelineEstimate(throughput_tokens_per_s=100.0)
            )
        if self.lacks_estimate:
            self.lacks_estimate = False
            del reply.pipeline_estimates[-1]
        return reply


@dataclass
class FakeProvider:
    """Launches fake engines; a kill closes their sockets at once."""

    controller: Callable[[], str] = lambda: ""
    engines: dict[str, FakeEngine] = field(default_factory=dict)
    launched: list[str] = field(default_factory=list)
    fails: int = 0
    prepare: Callable[[FakeEngine], None] = lambda engine: None
    strangers: set[str] = field(default_factory=set)
    """Nodes that it can neither end nor watch."""
    capabilities: Capabilities = field(default_factory=Capabilities)
    stock: tuple[Offer, ...] = ()
    sold: dict[str, str] = field(default_factory=dict)
    """Offer by node."""
    notices: list[tuple[str, float]] = field(default_factory=list)
    _stacks: dict[str, AsyncExitStack] = field(default_factory=dict)
    _events: asyncio.Queue[ProviderEvent | None] = field(default_factory=asyncio.Queue)
    _takes: set[asyncio.Future[None]] = field(default_factory=set)
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def offers(self) -> tuple[Offer, ...]:
        return self.stock

    def offer_of(self, node_id: str) -> str:
        return self.sold.get(node_id, "")

    def tell(self, event: ProviderEvent) -> None:
        self._events.put_nowait(event)

    def give_notice(self, node_id: str, notice_s: float, kind: NoticeKind) -> None:
        self.notices.append((node_id, notice_s))
        loop = asyncio.get_running_loop()
        self.tell(NodeNotice(node_id, time.monotonic() + notice_s, kind))
        loop.call_later(notice_s, self._take_away, node_id)

    def _take_away(self, node_id: str) -> None:
        if node_id in self.engines:
            task = asyncio.ensure_future(self.kill(node_id))
            self._takes.add(task)
            task.add_done_callback(self._takes.discard)

    async def launch(self, node_id: str, offer: Offer) -> str:
        if self.fails:
            self.fails -= 1
            self.tell(LaunchFailed(node_id, "no capacity"))
            return ""
        self.sold[node_id] = offer.offer_id
        await self.start(node_id, offer.shape)
        return f"handle-{node_id}"

    async def start(self, node_id: str, shape: NodeShape) -> None:
        self.launched.append(node_id)
        engine = FakeEngine(node_id, shape, lambda: self.controller(), f"i{next(self._numbers)}")
        self.prepare(engine)
        stack = AsyncExitStack()
        await stack.enter_async_context(engine.living())
        self.engines[node_id], self._stacks[node_id] = engine, stack

    async def adopt(self, node_id: str, handle: str) -> bool:
        assert handle == f"handle-{node_id}"
        return node_id in self.engines

    async def recognise(self, facts: NodeFacts) -> str:
        return ""

    def holds(self, node_id: str) -> bool:
        return node_id in self.engines and node_id not in self.strangers

    async def terminate(self, node_id: str, grace_s: float) -> None:
        if node_id not in self.engines:
            raise FailedPrecondition("unknown")
        await self.kill(node_id)

    async def kill(self, node_id: str, *, told: bool = True) -> None:
        del self.engines[node_id]
        await self._stacks.pop(node_id).aclose()
        if told:
            self._events.put_nowait(NodeGone(node_id, "killed"))

    async def events(self) -> AsyncIterator[ProviderEvent]:
        while True:
            event = await self._events.get()
            if event is None:
                return
            yield event

    async def close(self) -> None:
        self._events.put_nowait(None)

    async def end(self) -> None:
        for node_id in list(self.engines):
            await self.kill(node_id, told=False)


class World:
    """Everything around the controller, and the controller itself, which may be restarted."""

    def __init__(self, data_dir: Path, placement_address: str, placement: FakePlacement) -> None:
        self.provider = FakeProvider(controller=lambda: self.address)
        self.placement = placement
        self.address = "127.0.0.1:1"
        self.port = 0
        self.options: dict[str, Any] = {
            "data_dir": data_dir,
            "placement_address": placement_address,
            "heartbeat_interval_s": 0.05,
            "retry_s": 0.05,
            "shutdown_grace_s": 0.0,
            "commit_interval_s": 0.001,
            "journal_reserve_bytes": 4 << 20,
        }
        self._stack = AsyncExitStack()
        self.stub: Any = None
        self.journal: Any

    async def start(self, **options: Any) -> None:
        self.options.update(options)
        settings = ControllerSettings(grpc_port=self.port, **self.options)
        place = settings.journal_place
        if isinstance(place, SqlitePlace):
            self.journal = open_sqlite(settings, place)
            recovered = await self.journal.recover()
        else:
            self.journal = shared = open_postgres(settings, place, lambda: self.address)
            recovered = await shared.lead()
        local = settings.provider == "local"
        self.provider.capabilities = Capabilities(local, local, local)
        self.provider.stock = settings.supply.offers
        controller = AssembledController(
            settings, FACTS, journal=self.journal, recovered=recovered, provider=self.provider
        )
        self._stack.push_async_callback(self.journal.close)
        self.port = await self._stack.enter_async_context(controller.serving())
        self.address = f"127.0.0.1:{self.port}"
        channel = await self._stack.enter_async_context(
            channels.open_channel(self.address, Role.CONTROLLER)
        )
        async with asyncio.timeout(CALL_S):
            await channel.channel_ready()
        self.stub = controller_pb2_grpc.ControllerServiceStub(channel)

    async def stop(self) -> None:
        await self._stack.aclose()

    async def status(self) -> Any:
        return await self.stub.GetStatus(pb.GetStatusRequest(), timeout=CALL_S)

    async def routes(self, count: int) -> list[Any]:
        """Waits until so many pipelines take requests."""
        call = self.stub.WatchRoutes(pb.WatchRoutesRequest(router_id="test"), timeout=CALL_S)
        try:
            async for message in call:
                if len(message.routes) == count:
                    return list(message.routes)
        finally:
            call.cancel()
        raise AssertionError("the stream of routes ended")

    async def events(self) -> list[Any]:
        call = self.stub.WatchEvents(pb.WatchEventsRequest(no_wait=True), timeout=CALL_S)
        return [event async for event in call]

    async def until_event(self, kind: str, **about: str) -> Any:
        """Waits until the log holds such an event."""
        call = self.stub.WatchEvents(pb.WatchEventsRequest(), timeout=CALL_S)
        try:
            async for event in call:
                if event.kind == kind and all(getattr(event, k) == v for k, v in about.items()):
                    return event
        finally:
            call.cancel()
        raise AssertionError("the stream of events ended")

    def head(self, route: Any) -> FakeEngine:
        return next(e for e in self.provider.engines.values() if e.incarnation == route.incarnation)


@pytest.fixture
def journal() -> str:
    """As SHUNT_CONTROLLER_JOURNAL has it; empty: a file in the data directory."""
    return ""


@pytest.fixture
async def world(tmp_path: Path, journal: str) -> AsyncIterator[World]:
    placement = FakePlacement()
    server = grpc.aio.server(options=channels.options(64 << 20))
    placement_pb2_grpc.add_PlacementServiceServicer_to_server(placement, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    world = World(tmp_path, f"127.0.0.1:{port}", placement)
    world.options["journal"] = journal
    try:
        yield world
    finally:
        await world.stop()
        await world.provider.end()
        await server.stop(0)
        del server
        gc.collect()  # a gRPC server that outlives its loop complains
