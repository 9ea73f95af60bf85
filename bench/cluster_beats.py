"""What the beats of a cluster cost its controller, without gRPC and with it.

`python -m bench.cluster_beats` is the other process of the part with gRPC: its nodes beat.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import grpc
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from bench.cluster_made import BEAT_S, facts_of
from bench.cluster_mesh import WAIT_S, Mesh, beat_all, mesh
from services.common import event_loop
from services.common.nodes import ASKED_BEATS
from services.common.server import Server
from services.common.settings import ServiceSettings
from services.controller.core.cluster.actions import Beat
from services.controller.runtime import ClusterRuntime
from services.controller.service import ControllerService, ServiceLimits

SETTLES_S = 5.0
"""All have beaten; so long later each beats as it was told."""
CHANNELS = 50
"""Connections on which the beats come in the part that has gRPC."""


@dataclass(frozen=True)
class Manner:
    """How nodes beat."""

    asked_beats: int
    """Each beat of so many is answered."""
    as_told: bool
    """As often as they are told to; else once in BEAT_S."""


MANNERS = {
    "every_beat_answered": Manner(1, as_told=False),
    "every_fourth_answered": Manner(ASKED_BEATS, as_told=False),
    "as_engines_do": Manner(ASKED_BEATS, as_told=True),
}


@contextmanager
def cpu() -> Iterator[list[float]]:
    """Seconds of this process, once the block is over."""
    began_s, spent = time.process_time(), list[float]()
    yield spent
    spent.append(time.process_time() - began_s)


async def beats(nodes: int, for_s: float) -> dict[str, Any]:
    """What regular beats cost: core and runtime, less what it costs to make the beats here; and
    the same with gRPC in front, from another process whose nodes beat in each manner."""
    async with mesh(nodes) as made:
        formations = made.cloud.formations
        with cpu() as spent:
            sent = await beat_all(formations, for_s, made.hear)
        through = {
            name: await _through_grpc(made, for_s, manner) for name, manner in MANNERS.items()
        }
        said = await made.said()
    with cpu() as nothing:
        await beat_all(formations, for_s, lambda beat: None)
    own_s = spent[0] - nothing[0]
    return {
        "beats_per_s": round(sent / for_s),
        "core_and_runtime_share": round(own_s / for_s, 4),
        "microseconds_a_beat": round(own_s / sent * 1e6, 2),
        "with_grpc": through,
        "falsely_lost": said["node_lost"],
    }


async def _through_grpc(made: Mesh, for_s: float, manner: Manner) -> dict[str, float]:
    """Of a core, what this process takes while another one's nodes beat for so long."""
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
    server = Server(ServiceSettings(shutdown_grace_s=0), [])
    service = ControllerService(
        ServiceLimits(),
        runtime=front,
        replans=nobody,
        what_ifs=nobody,
        generations=nobody,
        events=nobody,
        engines=nobody,
        deployments=nobody,
        documents=nobody,
        dealing=nobody,
    )
    controller_pb2_grpc.add_ControllerServiceServicer_to_server(service, server.grpc_server)
    port = await server.start()
    order = {"port": port, "manner": asdict(manner), "formations": made.cloud.formations}
    client = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.cluster_beats",
        stdin=asyncio.subprocess.PIPE,
    )
    if client.stdin is None:
        raise AssertionError
    client.stdin.write(json.dumps(order).encode())
    client.stdin.write_eof()
    until_then = asyncio.create_task(beat_all(made.cloud.formations, WAIT_S, made.hear))
    try:
        async with asyncio.timeout(WAIT_S):
            await all_beat.wait()
        until_then.cancel()
        await asyncio.sleep(SETTLES_S)
        before = heard
        with cpu() as spent:
            await asyncio.sleep(for_s)
        received = heard - before
        return {
            "share": round(spent[0] / for_s, 4),
            "beats_per_s": round(received / for_s),
            "microseconds_a_beat": round(spent[0] / received * 1e6, 2),
        }
    finally:
        until_then.cancel()
        client.terminate()
        await client.wait()
        await server.stop()


class _Front:
    """The runtime, as far as beats need it."""

    def __init__(self, runtime: ClusterRuntime, heartbeat: Callable[[Beat], None]) -> None:
        self.cluster, self.started, self.heartbeat = runtime.cluster, runtime.started, heartbeat

    def suspect(self, node_id: str) -> None:
        """Its stream broke: nobody is asked here whether it lives."""


async def _beat_to(port: int, manner: Manner, formations: dict[str, str]) -> None:
    """Nodes that beat until they are stopped, each on a stream of its own."""
    told_s = dict.fromkeys(formations, BEAT_S)

    async def requests(name: str, formation_id: str) -> AsyncIterator[pb.HeartbeatRequest]:
        incarnation = facts_of(name).incarnation
        for steps in count():
            yield pb.HeartbeatRequest(
                node_id=name,
                incarnation=incarnation,
                formation_id=formation_id,
                steps=steps,
                no_answer=steps % manner.asked_beats > 0,
            )
            await asyncio.sleep(told_s[name])

    async def one(stub: Any, name: str, formation_id: str) -> None:
        async for answer in stub.Heartbeat(requests(name, formation_id)):
            if manner.as_told:
                told_s[name] = answer.heartbeat_interval_s

    stubs = []
    for number in range(CHANNELS):
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("bench.channel", number)])
        stubs.append(controller_pb2_grpc.ControllerServiceStub(channel))
    async with asyncio.TaskGroup() as tasks:
        for index, (name, formation_id) in enumerate(formations.items()):
            tasks.create_task(one(stubs[index % CHANNELS], name, formation_id))
            await asyncio.sleep(BEAT_S / len(formations))


if __name__ == "__main__":
    order = json.loads(sys.stdin.read())
    manner = Manner(**order["manner"])
    event_loop.run(_beat_to(order["port"], manner, order["formations"]))
