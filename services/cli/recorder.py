"""Records a running mesh: a known load is asked of it, and its stages' counters are read.

Prompts are random ids, so there is no text to keep. A request's times are those its reader sees.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

import grpc
from shuntserve.controller.v1 import controller_pb2
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc
from shuntserve.router.v1 import router_pb2

from services.cli.controller_calls import controller_address
from services.cli.conversation import stream
from services.cli.events import read_events
from services.cli.mesh_directory import MeshDirectory, MeshError
from services.cli.mesh_status import controller_status
from services.cli.told import complain
from services.common import channels
from services.common.roles import Role
from services.common.settings import TlsSettings
from simulator.fleet.recording import (
    EventRow,
    Header,
    Line,
    Recording,
    RequestRow,
    Stage,
    WindowRow,
)
from simulator.fleet.workload import Request

WINDOW_S = 2.0
"""Steps are counted as they begin and their seconds as they end: a window holds many of them."""
LEAST_WINDOWS = 32
"""Of a recording, whose windows are shorter where it is short."""
LOOK_S = 0.1
"""Between looks at which pipeline has which generation."""
DESCRIBE_S = 5.0
GRACE_S = 60.0
"""For answers that are under way at the end."""
IDS = range(3, 120)
"""Of prompts: every tokenizer has them."""


@dataclass(slots=True)
class _Seen:
    """Of a request, until its row is written."""

    pipelines: list[str] = field(default_factory=list)
    epoch: int = 1
    tokens: list[tuple[float, int]] = field(default_factory=list)
    outcome: Literal["finished", "failed", "running"] = "running"


@dataclass(frozen=True, slots=True)
class _Counted:
    """Counters of a stage at one time."""

    at_s: float
    incarnation: str
    formation: str
    stats: engine_pb2.EngineStats


class Recorder:
    """Of one mesh, once."""

    def __init__(
        self, directory: MeshDirectory, load: Sequence[Request], seconds: float, seed: int
    ) -> None:
        self._directory, self._seconds, self._seed = directory, seconds, seed
        self._load = [one for one in load if one.arrival_s < seconds]
        state = directory.running()
        self._model = state.model
        self._routers = [
            one.grpc for one in state.services if one.http is not None and one.grpc is not None
        ]
        self._began_s = 0.0
        self._seen = [_Seen() for _ in self._load]
        self._windows: list[WindowRow] = []
        self._pipelines: dict[str, tuple[Stage, ...]] = {}
        self._members: dict[str, list[str]] = {}
        """Addresses of those that serve, head first, by pipeline."""

    async def record(self) -> Recording:
        """Raises MeshError where the mesh does not serve."""
        self._see_pipelines(await self._status())
        if not self._pipelines:
            raise MeshError("no pipeline of the mesh takes requests")
        began_unix_s, self._began_s = time.time(), time.monotonic()
        looking = [asyncio.create_task(self._look()), asyncio.create_task(self._count())]
        asking = [asyncio.create_task(self._ask(number)) for number in range(len(self._load))]
        try:
            if asking:
                await asyncio.wait(asking, timeout=self._seconds + GRACE_S)
            await asyncio.sleep(max(0.0, self._seconds - self._now_s()))
        finally:
            for task in (*asking, *looking):
                task.cancel()
            ended = await asyncio.gather(*asking, *looking, return_exceptions=True)
        for one in ended:
            if isinstance(one, Exception):
                raise one
        header = Header(seconds=self._seconds, pipelines=self._pipelines)
        lines: list[Line] = [self._row(number) for number in range(len(self._load))]
        lines += self._windows
        lines += await self._events(began_unix_s)
        return Recording.of(header, lines)

    def _see_pipelines(self, status: controller_pb2.GetStatusResponse) -> None:
        """Of each its stages, once. One that forms again of the same is followed to its next nodes;
        of other ones its steps would be told of stages that it has no more. A status comes in
        pages: one of whose nodes another page said nothing is seen the next time."""
        offers = {node.node_id: node.offer_id for node in status.nodes}
        addresses = {node.node_id: node.address for node in status.nodes}
        for one in status.pipelines:
            known = all(stage.node_id in addresses for stage in one.stages)
            if known and one.state == controller_pb2.PIPELINE_STATE_READY:
                stages = (
                    Stage(
                        node=stage.node_id,
                        offer=offers.get(stage.node_id, ""),
                        begin=stage.layers.start,
                        end=stage.layers.end,
                    )
                    for stage in one.stages
                )
                now = tuple(stages)
                first = self._pipelines.setdefault(one.pipeline_id, now)
                if [stage.kind for stage in now] == [stage.kind for stage in first]:
                    self._members[one.pipeline_id] = [addresses[s.node_id] for s in one.stages]
                else:
                    self._members.pop(one.pipeline_id, None)

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    async def _status(self) -> controller_pb2.GetStatusResponse:
        status = await controller_status(await controller_address(self._directory))
        if status is None:
            raise MeshError("the controller is away just now; record once more")
        return status

    # Requests

    async def _ask(self, number: int) -> None:
        asked, seen = self._load[number], self._seen[number]
        random = Random(self._name(number))
        request = router_pb2.GenerateRequest(
            model=self._model,
            generation_id=self._name(number),
            token_ids=router_pb2.PromptIds(ids=random.choices(IDS, k=asked.input)),
            sampling=router_pb2.SamplingOptions(
                max_tokens=asked.output, ignore_eos=True, seed=number
            ),
        )
        await asyncio.sleep(max(0.0, asked.arrival_s - self._now_s()))
        had = 0
        try:
            async for event in stream(self._routers, request):
                more = sum(len(delta.token_ids) for delta in event.deltas)
                if more:
                    had += more
                    seen.tokens.append((self._now_s(), had))
            seen.outcome = "finished"
        except MeshError:
            seen.outcome = "failed"

    def _name(self, number: int) -> str:
        return f"rec-{self._seed}-{int(self._began_s * 1e3):x}-{number}"

    async def _look(self) -> None:
        """Which pipeline has which generation; nothing is seen while the controller is away."""
        numbers = {self._name(number): seen for number, seen in enumerate(self._seen)}
        while True:
            try:
                status = await self._status()
            except MeshError:
                status = controller_pb2.GetStatusResponse()
            self._see_pipelines(status)
            for one in status.generations:
                seen = numbers.get(one.generation_id)
                if seen is not None:
                    if seen.pipelines[-1:] != [one.pipeline_id] and one.pipeline_id:
                        seen.pipelines.append(one.pipeline_id)
                    seen.epoch = max(seen.epoch, one.epoch)
            await asyncio.sleep(LOOK_S)

    def _row(self, number: int) -> RequestRow:
        asked, seen = self._load[number], self._seen[number]
        return RequestRow(
            number=number,
            arrival_s=asked.arrival_s,
            prompt=asked.input,
            output=seen.tokens[-1][1] if seen.tokens else 0,
            pipeline=seen.pipelines[0] if seen.pipelines else "",
            then=tuple(seen.pipelines[1:]),
            moves=seen.epoch - 1,
            outcome=seen.outcome,
            tokens=tuple(seen.tokens),
        )

    # Steps

    async def _count(self) -> None:
        """A window a stage, for as long as the formation is the same."""
        before: dict[str, list[_Counted]] = {}
        while True:
            names = list(self._members)
            found = await asyncio.gather(*(self._counted(self._members[name]) for name in names))
            now = {name: one for name, one in zip(names, found, strict=True) if one is not None}
            for name in before.keys() & now.keys():
                self._windows += _windows(name, before[name], now[name])
            before = now
            await asyncio.sleep(min(WINDOW_S, self._seconds / LEAST_WINDOWS))

    async def _counted(self, addresses: Sequence[str]) -> list[_Counted] | None:
        try:
            return [await self._described(address) for address in addresses]
        except grpc.aio.AioRpcError:
            return None

    async def _described(self, address: str) -> _Counted:
        async with channels.open_channel(address, Role.ENGINE, tls=TlsSettings()) as channel:
            engine = engine_pb2_grpc.EngineServiceStub(channel)
            told = await engine.Describe(engine_pb2.DescribeRequest(), timeout=DESCRIBE_S)
        return _Counted(self._now_s(), told.incarnation, told.formation_id, told.stats)

    # Events

    async def _events(self, since_unix_s: float) -> list[EventRow]:
        return [
            EventRow(
                at_s=event.time_unix_s - since_unix_s,
                event=event.kind,
                node=event.node_id,
                pipeline=event.pipeline_id,
            )
            async for event in read_events(self._directory, 0, False, complain)
            if event.time_unix_s >= since_unix_s
        ]


def _windows(pipeline: str, before: Sequence[_Counted], now: Sequence[_Counted]) -> list[WindowRow]:
    """None of them where a process or the formation is another one."""
    same = [(b.incarnation, b.formation) for b in before]
    if same != [(n.incarnation, n.formation) for n in now]:
        return []
    first, last = before[0].stats, now[0].stats
    queried = last.prefix_queries - first.prefix_queries
    return [
        WindowRow(
            begin_s=b.at_s,
            end_s=n.at_s,
            pipeline=pipeline,
            stage=index,
            steps=last.steps - first.steps,
            decoded=last.decoded_sequences - first.decoded_sequences,
            prompt_rows=max(0, queried - (last.prefix_hits - first.prefix_hits)),
            stepped_s=max(0.0, n.stats.stepped_s - b.stats.stepped_s),
            computed_s=max(0.0, n.stats.computed_s - b.stats.computed_s),
        )
        for index, (b, n) in enumerate(zip(before, now, strict=True))
    ]
