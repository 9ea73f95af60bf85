"""The cluster of 1,000 nodes: what beats cost, losses at once, writes of an event, an idle day.

`python -m bench.cluster` runs the controller's core and runtime on one core, with a real journal
and without engines: nodes beat 4,000 times a second, then a hundred are lost within a second.
Prints JSON; times are of this machine, ratios and counts are what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from services.common.errors import NotFound
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import Member, NodeFacts, NodeShape, StageHolding, StageSpec
from services.controller.core.cluster.actions import (
    Action,
    AskPlan,
    Beat,
    FormPipeline,
    LaunchNode,
    Loaded,
    LoadStage,
    LogEvent,
    PersistCluster,
    TerminateNode,
)
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.goals import Goal
from services.controller.core.cluster.market import (
    MAX_COUNT,
    Capabilities,
    NodeGone,
    Offer,
    ProviderEvent,
)
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.model_facts import ModelFacts
from services.controller.event_log import EventLog
from services.controller.journal.sqlite import SqliteJournal
from services.controller.runtime import ClusterRuntime, RuntimeSettings
from services.controller.service import ControllerService, ServiceLimits
from services.controller.signal import Signal

NODES = 1000
STAGES = 4
"""Nodes of a pipeline."""
LOST = 100
BEAT_S = 0.25
SHAPE = NodeShape(1 << 34, 1.0)
LAYERS = 32
FOLD_S = 60.0
"""So long a run of regular beats reaches the core as one."""
DAY_S = 86_400.0
CHANNELS = 50
"""Connections on which the beats come in the part that has gRPC."""
TURN_S = 0.005
"""Between two lots of beats."""
WAIT_S = 120.0
CPU_GOAL, ACTED_GOAL_S, HELD_GOAL_S, DAY_GOAL_S = 0.10, 1.0, 0.050, 60.0


def settings_of(nodes: int) -> ClusterSettings:
    return ClusterSettings(
        Goal(ModelFacts("model", "digest", LAYERS, 1, 8192, "{}")),
        (SHAPE,) * nodes,
        expected_nodes=nodes,
        pipelines=nodes // STAGES,
    )


def facts_of(node_id: str) -> NodeFacts:
    return NodeFacts(node_id, f"process-of-{node_id}", f"{node_id}:50051", 7, SHAPE)


def plan_of(ask: AskPlan) -> Plan:
    """Pipelines of STAGES nodes each, in the order of the nodes."""
    names = [node.node_id for node in ask.nodes]
    size = LAYERS // STAGES
    layers = [LayerRange(at, at + size) for at in range(0, LAYERS, size)]
    pipelines = tuple(
        PlannedPipeline(
            f"pipeline-{first // STAGES + 1}",
            tuple(
                PlannedStage(part, 1, SHAPE, name)
                for part, name in zip(layers, names[first : first + STAGES], strict=True)
            ),
            100.0,
        )
        for first in range(0, len(names), STAGES)
    )
    return Plan(ask.number, (Deployment(ask.goals[0].model, THROUGHPUT, pipelines),))


# The core alone, on a clock that jumps


class Jumps:
    """A cluster core whose time jumps from what falls due to what falls due next. Whatever it asks
    for is done at once."""

    def __init__(self, nodes: int) -> None:
        ids = count(1)
        # who jumps watches all the time
        settings = replace(settings_of(nodes), glance_s=inf)
        self.core = Cluster(settings, lambda: f"formation-{next(ids)}", 0.0, 0.0)
        self.now_s = 0.0
        self.advances = self.runs = 0
        self.formations: dict[str, str] = {}
        """By node."""
        self.said: Counter[str] = Counter()
        self.writes: list[dict[str, str | None]] = []
        self.core.start(0.0)
        self.advance()

    def advance(self) -> None:
        """Until nothing more is asked for."""
        while actions := self._asked():
            for action in actions:
                self._do(action)

    def _asked(self) -> list[Action]:
        self.advances += 1
        return self.core.advance(self.now_s)

    def _do(self, action: Action) -> None:
        core, now_s = self.core, self.now_s
        match action:
            case PersistCluster(notes):
                self.writes.append(dict(notes))
            case LogEvent(kind):
                self.said[kind] += 1
            case LaunchNode(node_id):
                core.register(facts_of(node_id), now_s)
            case AskPlan():
                core.plan_ready(plan_of(action), now_s)
            case LoadStage():
                core.load_done(action, Loaded(4096, "class"), now_s)
            case FormPipeline(formation_id):
                self.formations |= {m.node_id: formation_id for m in action.members}
                core.formed(formation_id, now_s)
            case TerminateNode(node_id):
                self.formations.pop(node_id, None)

    def lose(self, node_id: str) -> None:
        self.formations.pop(node_id, None)
        self.core.node_gone(node_id, facts_of(node_id).incarnation, "exit", self.now_s)
        self.advance()

    def idle(self, for_s: float) -> None:
        """Everybody beats, and nobody asks for anything."""
        end_s = self.now_s + for_s
        while self.now_s < end_s:
            until_s = min(end_s, self.now_s + FOLD_S)
            self._beat(until_s)
            while (wakes_at_s := self.core.wakes_at_s()) <= until_s:
                self.now_s, beating = max(self.now_s, wakes_at_s), dict(self.formations)
                self.advance()
                if self.formations != beating:
                    self._beat(until_s)
            self.now_s = until_s

    def _beat(self, until_s: float) -> None:
        for node_id, formation_id in self.formations.items():
            beat = Beat(node_id, facts_of(node_id).incarnation, formation_id)
            self.core.heartbeat(beat, self.now_s, until_s)
            self.runs += 1


@dataclass(frozen=True, slots=True)
class Writes:
    """What the journal is asked to keep for a loss and its replacement, with every event in a turn
    of its own."""

    nodes: int
    writes: int
    notes: int
    size_bytes: int
    whole_bytes: int
    """Of all notes that stand."""


def writes_of_a_loss(nodes: int) -> Writes:
    world = Jumps(nodes)
    standing: dict[str, str | None] = {}
    for notes in world.writes:
        standing |= notes
    before = len(world.writes)
    world.lose("node-2")
    made = world.writes[before:]
    return Writes(
        nodes,
        len(made),
        sum(map(len, made)),
        sum(len(key) + len(note or "") for notes in made for key, note in notes.items()),
        sum(len(key) + len(note or "") for key, note in standing.items()),
    )


@dataclass(frozen=True, slots=True)
class Day:
    """An idle stretch of virtual time."""

    nodes: int
    virtual_s: float
    took_s: float
    runs: int
    """Of beats that reached the core as one each."""
    beats: int
    """That these stand for."""
    advances: int
    lost: int


def idle_day(nodes: int, for_s: float = DAY_S) -> Day:
    world = Jumps(nodes)
    advances, began_s = world.advances, time.perf_counter()
    world.idle(for_s)
    return Day(
        nodes,
        for_s,
        round(time.perf_counter() - began_s, 2),
        world.runs,
        round(nodes * for_s / BEAT_S),
        world.advances - advances,
        world.said["node_lost"],
    )


# Core and runtime, on the clock of the wall


class Cloud:
    """A provider, engines and placement that do everything at once."""

    def __init__(self) -> None:
        self.capabilities = Capabilities(launches=True, ends=True, gives_notice=False)
        self.addresses: set[str] = set()
        self.launched_s: dict[str, float] = {}
        self.launches = Signal()
        self.formations: dict[str, str] = {}
        """By node that beats; empty while it is in none."""
        self.told: asyncio.Queue[ProviderEvent] = asyncio.Queue()
        self.runtime: ClusterRuntime

    def offers(self) -> tuple[Offer, ...]:
        return (Offer("own", "own", SHAPE, count=MAX_COUNT),)

    def offer_of(self, node_id: str) -> str:
        return "own"

    async def launch(self, node_id: str, offer: Offer) -> str:
        self.launched_s[node_id] = time.monotonic()
        self.launches.fire()
        await self.runtime.started.wait()
        self.formations[node_id] = ""  # it beats from now on
        asyncio.get_running_loop().create_task(self.runtime.register(facts_of(node_id)))
        return f"handle-of-{node_id}"

    async def recognise(self, node_id: str, pid: int) -> str:
        return f"handle-of-{node_id}"

    def holds(self, node_id: str) -> bool:
        return True

    async def terminate(self, node_id: str, grace_s: float) -> None: ...

    async def events(self) -> AsyncIterator[ProviderEvent]:
        while True:
            yield await self.told.get()

    async def plan(self, ask: AskPlan) -> Plan:
        return plan_of(ask)

    async def hold(
        self, address: str, model: ModelRef, stages: Sequence[StageSpec], progress: Any
    ) -> tuple[StageHolding, ...]:
        return tuple(
            StageHolding(model, stage, held=True, kv_blocks=4096, numerics_class="class")
            for stage in stages
        )

    async def form(self, formation: FormPipeline) -> None:
        self.formations |= {m.node_id: formation.formation_id for m in formation.members}

    async def dissolve(self, formation_id: str, member: Member) -> None: ...

    async def forget(self, address: str) -> None: ...

    async def close(self) -> None: ...


class Mesh:
    """A runtime at work, and nodes that beat."""

    def __init__(self, runtime: ClusterRuntime, cloud: Cloud, events: EventLog, nodes: int) -> None:
        self.runtime, self.cloud, self.events, self.nodes = runtime, cloud, events, nodes
        self.refused = 0

    async def until_serving(self) -> None:
        """Every pipeline takes requests."""
        async with asyncio.timeout(WAIT_S):
            while len(self.runtime.cluster.routes()[1]) < self.nodes // STAGES:
                await self.runtime.routes_changed.wait()

    async def said(self) -> Counter[str]:
        """Events by kind."""
        return Counter([event.kind async for event in self.events.follow(0, wait=False)])

    def hear(self, beat: Beat) -> None:
        try:
            self.runtime.heartbeat(beat)
        except NotFound:  # it was lost, and stops
            self.refused += 1


async def beat_all(
    formations: Mapping[str, str], for_s: float, heartbeat: Callable[[Beat], None]
) -> int:
    """Every node in turn, each once in BEAT_S; how many beats there were. A node that comes
    meanwhile beats too."""
    began_s, sent = time.monotonic(), 0.0
    beats = 0
    while (now_s := time.monotonic() - began_s) < for_s:
        names = list(formations)
        due = now_s / BEAT_S * len(names)
        for index in range(int(sent), int(due)):
            name = names[index % len(names)]
            heartbeat(Beat(name, facts_of(name).incarnation, formations[name], index))
            beats += 1
        sent = due
        await asyncio.sleep(TURN_S)
    return beats


@asynccontextmanager
async def mesh(nodes: int) -> AsyncIterator[Mesh]:
    clock, cloud = time.monotonic, Cloud()
    stand_in: Any = cloud
    ids = count(1)
    with TemporaryDirectory() as folder:
        journal = SqliteJournal(Path(folder) / "journal.db", reserve_bytes=0)
        events = EventLog(journal, time.time, 100_000)
        runtime = cloud.runtime = ClusterRuntime(
            Cluster(settings_of(nodes), lambda: f"formation-{next(ids)}", clock(), time.time()),
            RuntimeSettings(),
            provider=stand_in,
            engines=stand_in,
            planning=stand_in,
            journal=journal,
            events=events,
            heads_changed=Signal(),
            clock=clock,
        )
        work = asyncio.create_task(runtime.run({}))
        try:
            made = Mesh(runtime, cloud, events, nodes)
            beating = asyncio.create_task(beat_all(cloud.formations, WAIT_S, made.hear))
            await made.until_serving()
            beating.cancel()
            yield made
        finally:
            work.cancel()
            await asyncio.wait([work])
            await journal.close()


class Held:
    """How long the event loop was not given back: wall time, and CPU time of it."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    async def watch(self) -> None:
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(0)
            before = wall_s, cpu_s
            wall_s, cpu_s = time.perf_counter(), time.thread_time()
            self.wall_s = max(self.wall_s, wall_s - before[0])
            self.cpu_s = max(self.cpu_s, cpu_s - before[1])


@contextmanager
def cpu() -> Iterator[list[float]]:
    """Seconds of this process, once the block is over."""
    began_s, spent = time.process_time(), list[float]()
    yield spent
    spent.append(time.process_time() - began_s)


async def beats(nodes: int, for_s: float) -> dict[str, float]:
    """What regular beats cost: core and runtime, less what it costs to make the beats here; and
    the same with gRPC in front, from another process."""
    async with mesh(nodes) as made:
        formations = made.cloud.formations
        with cpu() as spent:
            sent = await beat_all(formations, for_s, made.hear)
        through_s, received = await _through_grpc(made, for_s)
        said = await made.said()
    with cpu() as nothing:
        await beat_all(formations, for_s, lambda beat: None)
    own_s = spent[0] - nothing[0]
    return {
        "beats_per_s": round(sent / for_s),
        "core_and_runtime_share": round(own_s / for_s, 4),
        "microseconds_a_beat": round(own_s / sent * 1e6, 2),
        "share_with_grpc": round(through_s / for_s, 4),
        "beats_per_s_with_grpc": round(received / for_s),
        "falsely_lost": said["node_lost"],
    }


async def _through_grpc(made: Mesh, for_s: float) -> tuple[float, int]:
    """CPU seconds of this process while another one's nodes beat for so long, and how many did."""
    heard, all_beat, seen = 0, asyncio.Event(), set[str]()

    def heartbeat(beat: Beat) -> None:
        nonlocal heard
        heard += 1
        seen.add(beat.node_id)
        if len(seen) == made.nodes:
            all_beat.set()
        made.hear(beat)

    front: Any = _Front(made.runtime, heartbeat)
    nobody: Any = None
    server = grpc.aio.server()
    service = ControllerService(
        ServiceLimits(),
        runtime=front,
        replans=nobody,
        what_ifs=nobody,
        generations=nobody,
        events=nobody,
        engines=nobody,
        deployments=nobody,
    )
    controller_pb2_grpc.add_ControllerServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    formations = json.dumps(made.cloud.formations)
    client = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.cluster",
        "--beats-to",
        str(port),
        stdin=asyncio.subprocess.PIPE,
    )
    if client.stdin is None:
        raise AssertionError
    client.stdin.write(formations.encode())
    client.stdin.write_eof()
    until_then = asyncio.create_task(beat_all(made.cloud.formations, WAIT_S, made.hear))
    try:
        async with asyncio.timeout(WAIT_S):
            await all_beat.wait()
        until_then.cancel()
        before = heard
        with cpu() as spent:
            await asyncio.sleep(for_s)
        return spent[0], heard - before
    finally:
        client.terminate()
        await client.wait()
        await server.stop(None)


class _Front:
    """The runtime, as far as beats need it."""

    def __init__(self, runtime: ClusterRuntime, heartbeat: Callable[[Beat], None]) -> None:
        self.cluster, self.started, self.heartbeat = runtime.cluster, runtime.started, heartbeat

    def suspect(self, node_id: str) -> None:
        """Its stream broke: nobody is asked here whether it lives."""


async def _beat_to(port: int, formations: dict[str, str]) -> None:
    """Nodes that beat until they are stopped, each on a stream of its own."""

    async def requests(name: str, formation_id: str) -> AsyncIterator[pb.HeartbeatRequest]:
        incarnation = facts_of(name).incarnation
        for steps in count():
            yield pb.HeartbeatRequest(
                node_id=name, incarnation=incarnation, formation_id=formation_id, steps=steps
            )
            await asyncio.sleep(BEAT_S)

    async def one(stub: Any, name: str, formation_id: str) -> None:
        async for _ in stub.Heartbeat(requests(name, formation_id)):
            pass

    stubs = []
    for number in range(CHANNELS):
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("bench.channel", number)])
        stubs.append(controller_pb2_grpc.ControllerServiceStub(channel))
    async with asyncio.TaskGroup() as tasks:
        for index, (name, formation_id) in enumerate(formations.items()):
            tasks.create_task(one(stubs[index % CHANNELS], name, formation_id))
            await asyncio.sleep(BEAT_S / len(formations))


async def losses(nodes: int, lost: int) -> dict[str, float]:
    """So many nodes are lost within a second, all others beat on."""
    async with mesh(nodes) as made:
        cloud, held = made.cloud, Held()
        victims = [f"node-{number}" for number in range(2, nodes, nodes // lost)][:lost]
        ready = set(cloud.launched_s)
        beating = asyncio.create_task(beat_all(cloud.formations, WAIT_S, made.hear))
        watching = asyncio.create_task(held.watch())
        told_s = []
        began_s = time.monotonic()
        for index, victim in enumerate(victims):
            await asyncio.sleep(max(0.0, began_s + index / lost - time.monotonic()))
            cloud.formations.pop(victim)
            told_s.append(time.monotonic())
            cloud.told.put_nowait(NodeGone(victim, "exit"))
        async with asyncio.timeout(WAIT_S):
            while len(cloud.launched_s) < nodes + lost:
                await cloud.launches.wait()
        await made.until_serving()
        served_s = time.monotonic() - told_s[-1]
        await asyncio.sleep(made.runtime.cluster.settings.node_lost_s + 1.0)
        beating.cancel()
        watching.cancel()
        # Replacements are launched in the order of the losses.
        acted_s = [
            launched_s - at_s
            for launched_s, at_s in zip(
                sorted(s for name, s in cloud.launched_s.items() if name not in ready),
                told_s,
                strict=True,
            )
        ]
        said = await made.said()
    return {
        "lost": lost,
        "acted_upon_s_max": round(max(acted_s), 4),
        "serves_again_s": round(served_s, 3),
        "loop_held_s_max": round(held.wall_s, 4),
        "loop_held_cpu_s_max": round(held.cpu_s, 4),
        "falsely_lost": said["node_lost"] - lost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--seconds", type=float, default=10.0, help="of beats")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--beats-to", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.beats_to is not None:
        asyncio.run(_beat_to(chosen.beats_to, json.loads(sys.stdin.read())))
        return
    gc.freeze()  # as the controller does
    figures = {
        "nodes": chosen.nodes,
        "beats": asyncio.run(beats(chosen.nodes, chosen.seconds)),
        "losses": asyncio.run(losses(chosen.nodes, chosen.nodes // (NODES // LOST))),
        "writes": [asdict(writes_of_a_loss(n)) for n in (chosen.nodes // 10, chosen.nodes)],
        "idle_day": asdict(idle_day(chosen.nodes)),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text + "\n")
    missed = list(_missed(figures))
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


def _missed(figures: dict[str, Any]) -> Iterator[str]:
    beats, losses, day = figures["beats"], figures["losses"], figures["idle_day"]
    if beats["core_and_runtime_share"] > CPU_GOAL:
        yield f"beats cost more than {CPU_GOAL:.0%} of a core"
    if losses["acted_upon_s_max"] > ACTED_GOAL_S:
        yield f"a loss waited for longer than {ACTED_GOAL_S:g} s"
    if losses["loop_held_cpu_s_max"] > HELD_GOAL_S:
        yield f"the loop was held for longer than {HELD_GOAL_S * 1000:g} ms"
    if beats["falsely_lost"] or losses["falsely_lost"] or day["lost"]:
        yield "a node counted as lost that was not"
    if day["took_s"] > DAY_GOAL_S:
        yield f"an idle day took longer than {DAY_GOAL_S:g} s"
    small, large = figures["writes"]
    if (small["writes"], small["notes"]) != (large["writes"], large["notes"]):
        yield "a larger cluster writes more of an event"


if __name__ == "__main__":
    main()
