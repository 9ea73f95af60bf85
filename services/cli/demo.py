"""`shunt demo`: one question three times: undisturbed, with a kill, with a notice."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from rich.console import Console
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from shuntserve.router.v1 import router_pb2

from services.cli.conversation import stream
from services.cli.down import take_down
from services.cli.interrupt import interrupt
from services.cli.layout import MeshOptions
from services.cli.mesh_directory import MeshDirectory, MeshError, MeshState
from services.cli.mesh_status import controller_status, ready_pipelines
from services.cli.ports import free_ports
from services.cli.processes import open_own
from services.cli.up import run_detached
from services.common import channels
from services.common.nodes import Backend
from services.common.roles import Role
from services.common.settings import TlsSettings

QUESTION = "Explain to a child, step by step, how rain comes about."
MAX_TOKENS = 1000
DISTURB_AFTER = 200
SEED, TEMPERATURE = 7, 0.8
SHOWN_CHARS = 500
NOTICE_S = 20.0
READY_TIMEOUT_S = 60.0
TIMEOUT_S = 5.0


@dataclass
class Reading:
    """What one reader saw, with the wall-clock time of every event that brought tokens."""

    generation_id: str = ""
    text: str = ""
    tokens: int = 0
    arrivals_s: list[float] = field(default_factory=list)

    def longest_gap_s(self) -> float:
        pairs = zip(self.arrivals_s, self.arrivals_s[1:], strict=False)
        return max((after - before for before, after in pairs), default=0.0)

    def first_after(self, time_s: float) -> float:
        """The first arrival after a time; the last one if there is none."""
        return next((t for t in self.arrivals_s if t > time_s), self.arrivals_s[-1])


Event = controller_pb2.WatchEventsResponse


def run_demo(directory: MeshDirectory, console: Console, backend: Backend = "native") -> bool:
    """Whether both disturbed texts equal the undisturbed one."""
    http_port, grpc_port = free_ports(2)
    options = MeshOptions(http_port=http_port, grpc_port=grpc_port, backend=backend)
    run_detached(directory, options, console)
    try:
        return asyncio.run(_Demo(directory, options.pipelines, console).run())
    finally:
        take_down(directory)


class _Demo:
    def __init__(self, directory: MeshDirectory, pipelines: int, console: Console) -> None:
        self._directory, self._pipelines, self._console = directory, pipelines, console
        self._state: MeshState = directory.running()
        self._controller = self._state.service("controller").grpc or ""

    async def run(self) -> bool:
        self._say(f"\n[bold]1. The undisturbed answer[/] to: {QUESTION}")
        undisturbed = await self._read()
        self._say(f"{undisturbed.tokens} tokens, longest gap {_ms(undisturbed.longest_gap_s())}")

        self._say("\n[bold]2. The same question; an engine is killed (SIGKILL) in mid-stream[/]")
        killed = await self._killed()
        self._compare(killed, undisturbed)

        await self._until_ready()
        self._say(f"\n[bold]3. The same again; a node gets {NOTICE_S:.0f} s of notice[/]")
        drained = await self._drained()
        self._compare(drained, undisturbed)

        same = killed.text == drained.text == undisturbed.text
        self._say("\nAll three texts are equal." if same else "\nThe texts are NOT equal.")
        return same

    def _compare(self, reading: Reading, undisturbed: Reading) -> None:
        same = reading.text == undisturbed.text
        verdict = "the text is the undisturbed one" if same else "THE TEXT DIFFERS"
        self._say(f"{reading.tokens} tokens; {verdict}")

    async def _killed(self) -> Reading:
        at_s = 0.0

        async def kill(reading: Reading) -> None:
            nonlocal at_s
            node = await self._carrier(reading.generation_id)
            process = open_own(node.pid, self._state.mesh_id)
            if process is None:
                raise MeshError(f"engine {node.node_id} ended by itself")
            self._say(f"\n[red]-- SIGKILL to {node.node_id} (pid {node.pid}) --[/]")
            at_s = time.time()
            process.signal(signal.SIGKILL)
            process.close()

        reading = await self._read(kill)
        events = await self._events()
        lost = _first(events, at_s, "node_lost")
        granted = _first(events, at_s, "generation_granted", reading.generation_id)
        if lost is None or granted is None:
            raise MeshError("the event log shows no loss and no grant: the kill missed the stream")
        first_again_s = reading.first_after(granted.time_unix_s)
        self._say(
            f"detection {_ms(granted.time_unix_s - at_s)} "
            f"(the node counted as lost after {_ms(lost.time_unix_s - at_s)}), "
            f"replay {_ms(first_again_s - granted.time_unix_s)}, "
            f"longest gap {_ms(reading.longest_gap_s())}"
        )
        return reading

    async def _drained(self) -> Reading:
        at_s = 0.0

        async def notify(reading: Reading) -> None:
            nonlocal at_s
            node = await self._carrier(reading.generation_id)
            self._say(f"\n[magenta]-- {node.node_id} will be taken away --[/]")
            at_s = time.time()
            await interrupt(self._directory, node.node_id, NOTICE_S, kill=False)

        reading = await self._read(notify)
        events = await self._events()
        ready = _first(events, at_s, "replacement_ready")
        granted = _first(events, at_s, "generation_granted", reading.generation_id)
        times = [f"replacement ready after {_ms(ready.time_unix_s - at_s)}"] if ready else []
        if granted is not None:
            first_again_s = reading.first_after(granted.time_unix_s)
            times.append(f"handed over after {_ms(granted.time_unix_s - at_s)}")
            times.append(f"replay {_ms(first_again_s - granted.time_unix_s)}")
        else:
            raise MeshError("the answer ended on the old pipeline, before the hand-over")
        self._say(f"{', '.join(times)}, longest gap {_ms(reading.longest_gap_s())}")
        return reading

    async def _read(self, disturb: Callable[[Reading], Awaitable[None]] | None = None) -> Reading:
        """Asks the question; shows the answer's beginning and what follows a disturbance."""
        reading, to_show = Reading(), SHOWN_CHARS
        routers = [s.grpc for s in self._state.services if s.http and s.grpc]
        async for event in stream(routers, _request(self._state.model)):
            reading.generation_id = event.generation_id
            count = sum(len(delta.token_ids) for delta in event.deltas)
            if count:
                reading.tokens += count
                reading.arrivals_s.append(time.time())
            for delta in event.deltas:
                reading.text += delta.text
                if to_show:
                    shown = delta.text[:to_show]
                    to_show -= len(shown)
                    self._console.out(shown, end="" if to_show else " [...]\n", highlight=False)
            if disturb is not None and reading.tokens >= DISTURB_AFTER:
                await disturb(reading)
                disturb, to_show = None, SHOWN_CHARS
        if to_show:
            self._console.print()
        return reading

    async def _carrier(self, generation_id: str) -> controller_pb2.NodeStatus:
        """The last stage of the pipeline that runs a generation."""
        status = await controller_status(self._controller)
        if status is None:
            raise MeshError("the controller does not answer")
        for generation in status.generations:
            if generation.generation_id == generation_id:
                members = [n for n in status.nodes if n.pipeline_id == generation.pipeline_id]
                members = [n for n in members if n.state == controller_pb2.NODE_STATE_READY]
                if members:
                    return max(members, key=lambda node: node.stage_index)
        raise MeshError("the controller knows no pipeline that runs the generation")

    async def _events(self) -> list[Event]:
        async with channels.open_channel(
            self._controller, Role.CONTROLLER, tls=TlsSettings()
        ) as channel:
            stub = controller_pb2_grpc.ControllerServiceStub(channel)
            request = controller_pb2.WatchEventsRequest(no_wait=True)
            return [event async for event in stub.WatchEvents(request, timeout=TIMEOUT_S)]

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        with self._console.status("the lost node is being replaced"):
            while time.monotonic() < deadline:
                status = await controller_status(self._controller)
                if status is not None and ready_pipelines(status) >= self._pipelines:
                    return
                await asyncio.sleep(0.2)
        raise MeshError(f"the lost node was not replaced within {READY_TIMEOUT_S:.0f} s")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def _request(model: str) -> router_pb2.GenerateRequest:
    return router_pb2.GenerateRequest(
        model=model,
        chat=router_pb2.Chat(messages=[router_pb2.ChatMessage(role="user", content=QUESTION)]),
        sampling=router_pb2.SamplingOptions(
            temperature=TEMPERATURE, seed=SEED, min_tokens=MAX_TOKENS, max_tokens=MAX_TOKENS
        ),
    )


def _first(events: list[Event], after_s: float, kind: str, generation_id: str = "") -> Event | None:
    for event in events:
        about = generation_id in ("", event.generation_id)
        if about and event.kind == kind and event.time_unix_s >= after_s:
            return event
    return None


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
