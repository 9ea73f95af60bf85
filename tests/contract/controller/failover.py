"""Two controllers as processes over one journal, among played engines, and what is done to them."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import psycopg
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc
from shuntserve.placement.v1 import placement_pb2_grpc

from services.common import channels
from services.common.errors import NotFound, ShuntError
from services.common.exchange import Grant, ResumeQuestion, Route
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.common.nodes import NodeShape
from services.common.roles import Role
from services.controller.__main__ import SUPERSEDED
from services.router.controller import ControllerClient
from tests.contract.controller.conftest import FakeEngine, FakePlacement
from tests.contract.controller.controller_process import running_process
from tests.postgres import Cluster
from tests.waiting import until

FAULTS = ("leader killed", "leader stopped", "database killed")
WAIT_S = 60.0
CALL_S = 5.0
ENGINES_PATIENCE_S = 2.0
TOKENS = 100_000
MODEL = ModelRef("tiny", "ab")


def token(name: str, position: int) -> int:
    """What a head has computed there."""
    return (sum(name.encode()) * 31 + position * 7) % 100


@dataclass
class Controller:
    """A process that is started again whenever it ends."""

    environment: dict[str, str]
    process: asyncio.subprocess.Process | None = None
    statuses: list[int] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.environment['SHUNT_CONTROLLER_GRPC_PORT']}"

    async def keep(self) -> None:
        while True:
            async with running_process(self.environment) as self.process:
                await self.process.communicate()
                self.statuses.append(self.process.returncode or 0)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.send_signal(number)


class Head:
    """Writes one generation, as far as anybody takes it."""

    def __init__(self, name: str, route: Route) -> None:
        self.name = name
        self._route = route
        self.acknowledged = 0
        self._sent = 0

    async def write(self, addresses: itertools.cycle[str]) -> None:
        """For ever, at whichever controller takes it."""
        while True:
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                async with channels.open_channel(next(addresses), Role.CONTROLLER) as channel:
                    await self._write_to(controller_pb2_grpc.ControllerServiceStub(channel))
            await asyncio.sleep(0.05)

    async def _write_to(self, stub: Any) -> None:
        call = stub.StreamCheckpoints()
        self._sent = self.acknowledged
        try:
            for sequence in itertools.count(1):
                await call.write(self._next(sequence))
                async with asyncio.timeout(CALL_S):
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                (result,) = answer.results
                assert result.refusal == pb.CHECKPOINT_REFUSAL_UNSPECIFIED, result
                self._sent = result.lengths[0].length
                assert self._sent >= self.acknowledged, "what was answered is lost"
                self.acknowledged = self._sent
                await asyncio.sleep(0.002)
        finally:
            call.cancel()

    def _next(self, sequence: int) -> pb.StreamCheckpointsRequest:
        ids = [token(self.name, self._sent + n) for n in range(3)]
        checkpoint = pb.Checkpoint(
            generation_id=self.name,
            epoch=1,
            incarnation=self._route.incarnation,
            formation_id=self._route.formation_id,
            runs=[common_pb2.TokenSpan(start=self._sent, ids=ids)],
            request=common_pb2.GenerationRequest(
                generation_id=self.name,
                model=common_pb2.ModelRef(model_id=MODEL.model_id, digest=MODEL.digest),
                prompt_ids=[1],
                choices=1,
                sampling=common_pb2.Sampling(
                    top_p=1.0, repetition_penalty=1.0, max_tokens=TOKENS, ignore_eos=True
                ),
                kind=common_pb2.GENERATION_KIND_CHAT,
            ),
        )
        return pb.StreamCheckpointsRequest(sequence=sequence, checkpoints=[checkpoint])


class Failover:
    """The rig."""

    def __init__(
        self, controllers: list[Controller], client: ControllerClient, cluster: Cluster
    ) -> None:
        self.controllers = controllers
        self._client = client
        self._cluster = cluster
        self.heads: list[Head] = []
        self._routes: list[Route] = []
        self._granted: dict[str, int] = {}
        self._names = (f"probe-{number}" for number in itertools.count())

    def routes_changed(self, routes: Any, *_: Any) -> None:
        self._routes = list(routes)

    async def begin(self, tasks: asyncio.TaskGroup, count: int) -> list[asyncio.Task[None]]:
        """Starts to write generations, once there are routes."""
        await until(lambda: len(self._routes) == 2, WAIT_S)
        self.heads = [Head(f"g{n}", self._routes[n % 2]) for n in range(count)]
        ways = [itertools.cycle([c.address for c in self.controllers]) for _ in self.heads]
        pairs = zip(self.heads, ways, strict=True)
        return [tasks.create_task(head.write(way)) for head, way in pairs]

    async def written(self, more: int) -> None:
        """Waits until each generation has grown by so much."""
        wanted = [head.acknowledged + more for head in self.heads]
        pairs = list(zip(self.heads, wanted, strict=True))
        await until(lambda: all(head.acknowledged >= least for head, least in pairs), WAIT_S)

    async def inflict(self, fault: str) -> float:
        """And waits for a grant that was given behind it: seconds from the fault, or from when the
        database is there again."""
        leader = await self._leader()
        await self._until_followed(leader)
        began_s = time.monotonic()
        if fault == "leader killed":
            leader.send(signal.SIGKILL)
        elif fault == "leader stopped":
            leader.send(signal.SIGSTOP)
        else:
            await asyncio.to_thread(self._cluster.kill)
            await asyncio.to_thread(self._cluster.start)
            began_s = time.monotonic()
        await self.grant()
        waited_s = time.monotonic() - began_s
        if fault == "leader stopped":
            before = leader.statuses.count(SUPERSEDED)
            leader.send(signal.SIGCONT)
            await until(lambda: leader.statuses.count(SUPERSEDED) > before, WAIT_S)
        return waited_s

    async def _until_followed(self, leader: Controller) -> None:
        """Waits until the other one stands by: it may be starting yet."""
        (other,) = (controller for controller in self.controllers if controller is not leader)
        async with (
            channels.open_channel(other.address, Role.CONTROLLER) as channel,
            asyncio.timeout(WAIT_S),
        ):
            stub = controller_pb2_grpc.ControllerServiceStub(channel)
            while True:
                with suppress(grpc.aio.AioRpcError):
                    await channel.channel_ready()
                    await stub.GetStatus(pb.GetStatusRequest(), timeout=CALL_S)
                    return  # the leader is another one than was thought
                if channel.get_state() is grpc.ChannelConnectivity.READY:
                    return
                await asyncio.sleep(0.05)

    async def _leader(self) -> Controller:
        by_address = {controller.address: controller for controller in self.controllers}
        async with asyncio.timeout(WAIT_S):
            while True:
                with suppress(psycopg.Error, KeyError):
                    return by_address[await asyncio.to_thread(self._holder)]
                await asyncio.sleep(0.05)

    def _holder(self) -> str:
        uri = self.controllers[0].environment["SHUNT_CONTROLLER_JOURNAL"]
        with psycopg.connect(uri) as connection:
            row = connection.execute("SELECT address FROM shunt_journal").fetchone()
        return "" if row is None else str(row[0])

    async def grant(self) -> None:
        """Another generation is granted, by whoever can."""
        name = next(self._names)
        request = GenerationRequest(name, MODEL, (1,), Sampling(max_tokens=4))
        grant: Grant = await self._answered(
            lambda: self._client.resume(ResumeQuestion(name, 0, request, ()), CALL_S)
        )
        self._granted[name] = grant.epoch

    async def check(self) -> None:
        """What was answered is there, exactly; no grant has gone back."""
        known = [(head, head.acknowledged) for head in self.heads]
        for head, acknowledged in known:
            held = await self._answered(lambda name=head.name: self._client.generation(name))
            ids = held.spans[0].ids
            assert len(ids) >= acknowledged, head.name
            assert ids == tuple(token(head.name, position) for position in range(len(ids)))
        for name, epoch in self._granted.items():
            view = await self._answered(lambda name=name: self._client.generation(name))
            assert view.epoch >= epoch, name

    async def _answered(self, ask: Any) -> Any:
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    return await ask()
                except NotFound as error:
                    raise AssertionError("what was answered is not known any more") from error
                except ShuntError:
                    await asyncio.sleep(0.05)


@asynccontextmanager
async def running(
    environments: list[Mapping[str, str]], cluster: Cluster
) -> AsyncIterator[Failover]:
    """Controllers of these environments, a placement and two engines, all over inside the block."""
    async with AsyncExitStack() as stack:
        placement = grpc.aio.server(options=channels.options(64 << 20))
        placement_pb2_grpc.add_PlacementServiceServicer_to_server(FakePlacement(), placement)
        port = placement.add_insecure_port("127.0.0.1:0")
        await placement.start()
        stack.push_async_callback(placement.stop, 0)
        more = {
            "PLACEMENT_ADDRESS": f"127.0.0.1:{port}",
            "EXPECTED_NODES": "2",
            "PIPELINES": "2",
            "HEARTBEAT_INTERVAL_S": "0.1",
            "REPLAN": "false",
        }
        settings = {f"SHUNT_CONTROLLER_{name}": value for name, value in more.items()}
        controllers = [Controller({**one, **settings}) for one in environments]
        opened = [
            await stack.enter_async_context(
                channels.open_channel(controller.address, Role.CONTROLLER)
            )
            for controller in controllers
        ]
        client = ControllerClient(opened, CALL_S, 3600.0)
        rig = Failover(controllers, client, cluster)
        for name in "ab":
            way = itertools.cycle([controller.address for controller in controllers])
            engine = FakeEngine(name, NodeShape(1 << 30, 1.0), way.__next__, f"i-{name}")
            engine.patience_s = ENGINES_PATIENCE_S
            await stack.enter_async_context(engine.living())
        work = [asyncio.create_task(controller.keep()) for controller in controllers]
        work.append(asyncio.create_task(client.watch_routes("test", rig.routes_changed)))
        try:
            yield rig
        finally:
            for task in work:
                task.cancel()
            for controller in controllers:
                controller.send(signal.SIGCONT)
            await asyncio.gather(*work, return_exceptions=True)


async def go_through(rig: Failover, faults: int, generations: int = 4) -> None:
    """One fault after another, under generations that are written."""
    async with asyncio.TaskGroup() as tasks:
        writing = await rig.begin(tasks, generations)
        await rig.grant()
        for number in range(faults):
            await rig.written(30)
            fault = FAULTS[number % len(FAULTS)]
            waited_s = await rig.inflict(fault)
            await rig.check()
            print(f"{number + 1}/{faults} {fault}: granted after {waited_s:.2f} s", flush=True)
        await rig.written(30)
        await rig.check()
        for task in writing:
            task.cancel()
