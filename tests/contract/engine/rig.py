"""Engines over real gRPC, and readers of what they stream."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from shuntserve.common.v1 import common_pb2
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common import channels, wire
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.common.roles import Role
from services.common.server import Server
from services.engine.assembly import assemble
from services.engine.backend import BLOCK_SIZE
from services.engine.engine import Engine
from services.engine.service import EngineService
from services.engine.settings import EngineSettings
from services.engine.stages import StageLoader
from tests.contract.engine.tiny import LAYERS, MODEL, TinyLoader

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60.0


@dataclass
class Worker:
    """An engine behind real gRPC; `engine` is None when it is a process of its own."""

    node_id: str
    incarnation: str
    address: str
    stub: engine_pb2_grpc.EngineServiceAsyncStub
    engine: Engine | None = None
    loader: TinyLoader | None = None
    process: asyncio.subprocess.Process | None = None


@dataclass
class Rig:
    """Starts workers and makes pipelines of them, as the controller would."""

    stack: AsyncExitStack
    model: ModelRef = MODEL
    layer_count: int = LAYERS
    names: itertools.count[int] = field(default_factory=itertools.count)

    async def worker(
        self,
        *,
        step_s: float = 0.0,
        kv_blocks: int = 128,
        loader: StageLoader | None = None,
        there_bytes: int | None = None,
        **settings: Any,
    ) -> Worker:
        """`there_bytes`: what it found of memory."""
        node_id = f"n{next(self.names)}"
        chosen = EngineSettings(
            node_id=node_id, shutdown_grace_s=0, kv_positions=kv_blocks * BLOCK_SIZE, **settings
        )
        tiny = TinyLoader(step_s)
        engine = assemble(chosen, loader or tiny, memory_bytes=there_bytes)
        server = Server(chosen, ["shuntserve.engine.v1.EngineService"])
        engine_pb2_grpc.add_EngineServiceServicer_to_server(
            EngineService(engine), server.grpc_server
        )
        port = await server.start()
        running = asyncio.create_task(engine.run())

        async def close() -> None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await engine.close()
            await server.stop()

        self.stack.push_async_callback(close)
        stub = await self.stub(f"127.0.0.1:{port}")
        return Worker(node_id, engine.incarnation, f"127.0.0.1:{port}", stub, engine, tiny)

    async def process(self, *, step_s: float = 0.0) -> Worker:
        node_id = f"n{next(self.names)}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.contract.engine.stage_process",
            node_id,
            str(step_s),
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}", "PATH": "/usr/bin:/bin"},
        )

        async def close() -> None:
            if process.returncode is None:
                process.kill()
            await process.communicate()

        self.stack.push_async_callback(close)
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line, f"it ended before it served, with {await process.wait()}: see above"
        port, incarnation = line.split()
        address = f"127.0.0.1:{port}"
        return Worker(node_id, incarnation, address, await self.stub(address), process=process)

    async def stub(self, address: str) -> engine_pb2_grpc.EngineServiceAsyncStub:
        channel = await self.stack.enter_async_context(channels.open_channel(address, Role.ENGINE))
        return engine_pb2_grpc.EngineServiceStub(channel)

    async def hold(
        self, worker: Worker, *ranges: tuple[int, int], tp_degree: int = 1
    ) -> engine_pb2.HoldResponse:
        """The last answer."""
        asked = self.hold_request(*ranges, tp_degree=tp_degree)
        call = worker.stub.Hold(asked, timeout=DEADLINE_S)
        messages = [message async for message in call]
        assert [message.done for message in messages] == [False] * (len(messages) - 1) + [True]
        return messages[-1]

    def hold_request(self, *ranges: tuple[int, int], tp_degree: int = 1) -> engine_pb2.HoldRequest:
        return engine_pb2.HoldRequest(
            model=wire.model_to(self.model),
            stages=[
                engine_pb2.StageSpec(
                    layers=common_pb2.LayerRange(start=start, end=end), tp_degree=tp_degree
                )
                for start, end in ranges
            ],
        )

    async def form(
        self,
        workers: Sequence[Worker],
        cuts: Sequence[int],
        formation_id: str,
        blocks: int = 64,
        degrees: Sequence[int] = (),
    ) -> None:
        """Holds and joins; cuts are the layer boundaries between stages, `degrees` the ranks of
        each, one where none are named."""
        degrees = degrees or [1] * len(workers)
        for worker, layers, degree in zip(workers, self._ranges(cuts), degrees, strict=True):
            await self.hold(worker, layers, tp_degree=degree)
        await self.join(workers, cuts, formation_id, blocks, degrees)

    async def join(
        self,
        workers: Sequence[Worker],
        cuts: Sequence[int],
        formation_id: str,
        blocks: int = 64,
        degrees: Sequence[int] = (),
    ) -> None:
        """Forms a pipeline of what they hold."""
        for index in reversed(range(len(workers))):
            request = self.form_request(workers, cuts, formation_id, index, blocks, degrees)
            await workers[index].stub.Form(request, timeout=DEADLINE_S)

    def form_request(
        self,
        workers: Sequence[Worker],
        cuts: Sequence[int],
        formation_id: str,
        stage_index: int,
        blocks: int = 64,
        degrees: Sequence[int] = (),
    ) -> engine_pb2.FormRequest:
        members = [
            engine_pb2.Member(
                node_id=worker.node_id,
                incarnation=worker.incarnation,
                address=worker.address,
                layers=common_pb2.LayerRange(start=start, end=end),
                tp_degree=degree,
            )
            for worker, (start, end), degree in zip(
                workers, self._ranges(cuts), degrees or [1] * len(workers), strict=True
            )
        ]
        return engine_pb2.FormRequest(
            formation_id=formation_id,
            pipeline_id="p",
            model=wire.model_to(self.model),
            members=members,
            stage_index=stage_index,
            kv_blocks=blocks,
        )

    def _ranges(self, cuts: Sequence[int]) -> list[tuple[int, int]]:
        return list(itertools.pairwise([0, *cuts, self.layer_count]))


@dataclass
class Stream:
    """One reader's view of a generation at a head."""

    call: grpc.aio.UnaryStreamCall[engine_pb2.GenerateRequest, engine_pb2.GenerateResponse]
    ids: dict[int, list[int]] = field(default_factory=dict)
    frames: list[engine_pb2.GenerateResponse] = field(default_factory=list)
    finishes: dict[int, int] = field(default_factory=dict)

    async def until(self, done: Callable[[Stream], bool]) -> Stream:
        """Reads frames until the condition holds or the stream closes."""
        async with asyncio.timeout(DEADLINE_S):
            while not done(self) and not self.closed:
                frame = await self.call.read()
                assert isinstance(frame, engine_pb2.GenerateResponse), "closed without a reason"
                self.frames.append(frame)
                for run in frame.tokens.runs:
                    ids = self.ids.setdefault(run.choice, [])
                    ids.extend(run.ids)
                    if run.finish_reason:
                        self.finishes[run.choice] = run.finish_reason
        return self

    @property
    def closed(self) -> int:
        """The reason the head closed it; 0 while it is open."""
        last = self.frames[-1] if self.frames else engine_pb2.GenerateResponse()
        return last.closed.reason if last.HasField("closed") else 0

    async def end(self) -> Stream:
        return await self.until(lambda _: False)


def request(name: str, prompt: Sequence[int], max_tokens: int, **more: Any) -> GenerationRequest:
    choices = more.pop("choices", 1)
    return GenerationRequest(
        name, MODEL, tuple(prompt), Sampling(max_tokens, temperature=0.0, **more), choices
    )


def generate(
    worker: Worker,
    asked: GenerationRequest,
    formation_id: str,
    *,
    epoch: int = 1,
    held: Sequence[int] = (),
    start: int = 0,
    metadata: tuple[tuple[str, str], ...] = (),
    kv_source: common_pb2.KvSource | None = None,
    hand_on: bool = False,
    prefix_holder: engine_pb2.PrefixHolder | None = None,
) -> Stream:
    message = engine_pb2.GenerateRequest(
        request=wire.request_to(asked),
        epoch=epoch,
        formation_id=formation_id,
        kv_source=kv_source,
        hand_on=hand_on,
        prefix_holder=prefix_holder,
    )
    if held:
        message.held.append(common_pb2.TokenSpan(choice=0, start=0, ids=held))
    if start:
        getattr(message, "from").append(common_pb2.ChoiceLength(choice=0, length=start))
    return Stream(worker.stub.Generate(message, timeout=DEADLINE_S, metadata=metadata))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.01)
